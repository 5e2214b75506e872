"""Random weights: the same for the same seed, which is said with their name, and the caller's states untouched."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.errors import InputError

SPECS = ["torchvision:squeezenet1_1", "timm:test_vit"]


def states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def weights_of(loaded: tp.LoadedModel) -> list[torch.Tensor]:
    return list(loaded.module.state_dict().values())


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_bits_for_the_same_seed(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    torch.manual_seed(5)
    first = weights_of(tp.load_model(spec, "random", seed=3))
    torch.manual_seed(6)
    second = weights_of(tp.load_model(spec, "random", seed=3))
    other = weights_of(tp.load_model(spec, "random"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_the_callers_random_states_are_untouched(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    before = states()
    tp.load_model(spec, "random")
    assert states() == before


def test_also_after_an_error(in_folder: Path) -> None:
    (in_folder / "drawing.py").write_text(
        "import random, torch, numpy\n"
        "def make():\n    random.random(), torch.rand(1), numpy.random.rand()\n    raise ValueError('no')\n"
    )
    before = states()
    with pytest.raises(ValueError, match="no"):
        tp.load_model("drawing:make")
    assert states() == before


def test_a_callable_that_draws_gives_the_same_network(in_folder: Path) -> None:
    (in_folder / "drawn.py").write_text(
        "import torch, torchpeek as tp\ndef make():\n"
        "    return tp.LoadedModel(torch.nn.Conv2d(3, 2, 3), tp.Preprocess())\n"
    )
    first, second = tp.load_model("drawn:make"), tp.load_model("drawn:make")
    assert torch.equal(first.module.weight, second.module.weight)
    assert first.seed is None  # the callable decides itself what is random


def test_the_seed_is_said() -> None:
    loaded = tp.load_model("torchvision:squeezenet1_1", "random", seed=7)
    assert (loaded.weights, loaded.seed, loaded.weights_label) == ("random", 7, "random, seed 7")
    assert "weights random, seed 7" in repr(loaded)
    heatmap = tp.explain(loaded, torch.rand(1, 3, 64, 64), layer="features.12")
    assert heatmap.provenance.weights == "random, seed 7"


def test_overlays_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["torchpeek.render.overlay"]  # the function has the same name
    stamps: list[str] = []

    def stamped(image: object, words: str) -> object:
        stamps.append(words)
        return image

    monkeypatch.setattr(module, "stamped", stamped)
    for weights, seed, words in (("random", 7, "random weights, seed 7"), ("random", None, "random weights")):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        loaded = tp.LoadedModel(network, weights=weights, seed=seed)
        x = torch.rand(1, 3, 16, 16)
        tp.render.overlay(x, tp.explain(loaded, x, layer="0", target=0)[0, 0], signed=True)
        assert stamps[-1] == words


def test_a_file_of_weights_has_no_seed(in_folder: Path) -> None:
    loaded = tp.load_model("torchvision:squeezenet1_1", "random")
    torch.save(loaded.module.state_dict(), "own.pt")
    pretrained = tp.LoadedModel(loaded.module, weights="own.pt")
    assert pretrained.weights_label == "own.pt"


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, 2**63])
def test_what_is_no_seed(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed is .*; allowed: a whole number, 0 to"):
        tp.load_model("torchvision:squeezenet1_1", "random", seed=seed)  # type: ignore[arg-type]


def test_preprocess_and_class_names_in_place_of_the_models_own(in_folder: Path) -> None:
    (in_folder / "greys.py").write_text("import torch\nmake = lambda: torch.nn.Conv2d(1, 2, 3)\n")
    preprocess = tp.Preprocess(resize=8, crop=(8, 8), mean=(0.5,), std=(0.5,))
    loaded = tp.load_model("greys:make", preprocess=preprocess, class_names=["a", "b"])  # without a notice
    assert (loaded.preprocess, loaded.class_names) == (preprocess, ["a", "b"])
