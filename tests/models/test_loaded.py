"""LoadedModel: what it refuses, its dtype, and that layers() takes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchpeek as tp
from images import noise
from networks import PooledNet
from torchpeek.errors import InputError
from torchpeek.models import Preprocess


def test_what_a_loaded_model_cannot_be() -> None:
    for names in ("cat", [1, 2]):
        with pytest.raises(InputError, match=r"allowed: a list \(each a text\)"):
            tp.LoadedModel(PooledNet(), class_names=names)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a path or a PIL image"):
        tp.LoadedModel(PooledNet()).read(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="preprocess gave a ndarray"):
        tp.LoadedModel(PooledNet(), lambda image: np.zeros((3, 8, 8))).read(noise((20, 10)))


def test_layers_takes_what_explain_takes(photograph) -> None:
    loaded = tp.LoadedModel(PooledNet(), Preprocess(resize=16, crop=(16, 16)))
    table = tp.layers(loaded, photograph)
    assert table[0].name == "features"
    assert "suggested for heatmaps: act" in str(table)
    assert "<table" in table._repr_html_()


def test_half_precision_models_read_half_precision() -> None:
    loaded = tp.LoadedModel(PooledNet().half())
    assert loaded.read(noise((20, 10))).tensor.dtype == torch.float16
