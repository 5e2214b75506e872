"""Misspelt keywords of public functions are errors that name the keyword that is meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.errors import OptionError

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
X = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("function", "keyword", "meant"),
    [
        (tp.trace, "targets", "target"),
        (tp.trace, "target_layer", "layer"),
        (tp.trace, "class_idx", "target"),
        (tp.trace, "reshape_transform", "layout"),
        (tp.trace, "gradient", "gradients"),
        (tp.compare, "method", "methods"),
        (tp.compare, "layers", "layer"),
        (tp.compare, "smoothing", "smooth"),
        (tp.evaluate, "metric", "metrics"),
        (tp.evaluate, "batch_size", "batch"),
        (tp.evaluate, "mask", "masks"),
        (tp.record, "layer", "layers"),
        (tp.record, "gradient", "gradients"),
        (tp.edit, "output", "outputs"),
        (tp.layers, "input_tensor", "inputs"),
        (tp.activations, "layer", "layers"),
        (tp.plan, "layer", "layers"),
        (tp.statistics, "inputs", "batches"),
        (tp.kernels, "layer", "layers"),
        (tp.gradient_flow, "targets", "target"),
        (tp.load_model, "weight", "weights"),
        (tp.explain, "targets", "target"),
        (tp.explain, "target_layers", "layer"),
    ],
)
def test_the_keyword_that_is_meant(function: Callable[..., Any], keyword: str, meant: str) -> None:
    with pytest.raises(OptionError, match=rf"has no keyword '{keyword}'; did you mean {meant}=\?"):
        function(MODEL, **{keyword: 1})
    assert meant in inspect.signature(function).parameters


def test_a_keyword_that_is_like_none_lists_all() -> None:
    with pytest.raises(
        OptionError, match=r"trace has no keyword 'colour'\. Its keywords: model, inputs, layer, layout"
    ):
        tp.trace(MODEL, X, colour=1)


def test_too_many_arguments_by_position() -> None:
    with pytest.raises(OptionError, match=r"explain takes model and inputs by position; got 3 .* method=, layer=, "):
        tp.explain(MODEL, X, "gradcam")  # type: ignore[call-overload]


def test_a_missing_argument_is_the_error_of_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'methods'"):
        tp.compare(MODEL, X)  # type: ignore[call-overload]
