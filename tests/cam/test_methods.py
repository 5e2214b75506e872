"""Every method in the registry: against its replica, and the contract that all of them keep."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import Attending, InPlaceNet, PooledNet, SplitNet, messy, state_of
from networks.split import X
from replicas.further_passes import REPLICAS_OF_PASSES
from replicas.input_level import REPLICAS_OF_INPUTS
from replicas.one_pass import REPLICAS
from torchpeek.cam import METHODS
from torchpeek.engine import capture
from torchpeek.engine.attention.recorder import Attention
from torchpeek.errors import MethodNotApplicable, OptionError

CHEAP = [name for name, method in METHODS.items() if method.cheap]

# Scaled, cut off or climbed along, or one position at a time: rounding is carried further by these. The falls of
# occlusion are differences of two scores that are nearly the same.
ROUGH = {
    "groupcam": 0.3,
    "opticam": 0.3,
    "polycam": 0.3,
    "fullgrad": 0.3,
    "saliency": 0.3,
    "input-x-gradient": 0.3,
    "occlusion": 0.5,
}

# Fewer draws and steps than a user would take: the replicas are slow.
SMALL = {
    "smoothgradcam++": {"samples": 4},
    "sscam": {"samples": 3},
    "iscam": {"steps": 4},
    "groupcam": {"groups": 3, "kernel": 5, "sigma": 2.0},
    "integrated-gradcam": {"steps": 6},
    "opticam": {"steps": 8},
    "fem": {"k": 0.5},
    "smoothgrad": {"samples": 4},
    "integrated-gradients": {"steps": 6},
    "rise": {"samples": 12, "cells": 3},
}


def attention(name: str) -> bool:
    """Whether a network has to have attention for this method."""
    return METHODS[name].needs == "attention"


def test_every_method_has_an_oracle() -> None:
    """So that a new method is not without a test: a replica, or tests of its own in one of the files of this folder."""
    assert set(METHODS) - set(REPLICAS) - set(REPLICAS_OF_PASSES) - set(REPLICAS_OF_INPUTS) == {
        "cam",
        "random",
        "fullgrad",
        "polycam",
        "refinecam",
        # tests/cam/test_attention.py
        "rollout",
        "legrad",
        "transformer-attribution",
        # tests/cam/test_input_gradients.py
        "guided-backprop",
        "guided-gradcam",
    }


@pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")  # some of the small network's really are
@pytest.mark.parametrize("name", REPLICAS_OF_PASSES)
def test_replica_of_passes(net: SplitNet, name: str) -> None:
    """Two samples, three classes of each, a grid that is not square."""
    labels, options = [[2, 0, 3], [1, 3, 0]], SMALL.get(name, {})
    values = tp.explain(net, X, method=name, layer="prefix", target=labels, **options).values
    assert values.shape == (2, 3, 4, 3)
    assert values.dtype == torch.float64
    for n in range(2):
        for k in range(3):
            expected = REPLICAS_OF_PASSES[name](net, X[n : n + 1], labels[n][k], **options)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-7, atol=1e-9 * largest)


@pytest.mark.filterwarnings("ignore:integrated-gradients.* steps are too few")
@pytest.mark.parametrize("name", REPLICAS_OF_INPUTS)
def test_replica_of_inputs(net: SplitNet, name: str) -> None:
    labels, options = [[2, 0, 3], [1, 3, 0]], SMALL.get(name, {})
    values = tp.explain(net, X, method=name, target=labels, **options).values
    assert values.shape == (2, 3, 8, 6)
    assert values.dtype == torch.float64
    for n in range(2):
        for k in range(3):
            expected = REPLICAS_OF_INPUTS[name](net, X[n : n + 1], labels[n][k], **options)
            np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", REPLICAS)
@pytest.mark.parametrize("scale", [1.0, 1e-9], ids=["", "tiny scores"])
def test_replica(net: SplitNet, name: str, scale: float) -> None:
    """Two samples, three classes of each, a grid that is not square; gradients from the split network."""
    with torch.no_grad():
        net.head.weight.mul_(scale)
        net.head.bias.mul_(scale)
    labels = [[2, 0, 3], [1, 3, 0]]
    values = tp.explain(net, X, method=name, layer="prefix", target=labels).values
    assert values.shape == (2, 3, 4, 3)
    assert values.dtype == torch.float64
    for n in range(2):
        a = net.prefix(X[n : n + 1]).detach()
        for k in range(3):
            leaf = a.clone().requires_grad_()
            (g,) = torch.autograd.grad(net.suffix(leaf)[0, labels[n][k]], leaf)
            expected = REPLICAS[name](a[0].numpy(), g[0].numpy())
            np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:polycam.*are exactly zero everywhere")  # where no channel raises the score
@pytest.mark.parametrize("name", METHODS)
class TestContract:
    """What holds for every method, also for one that is registered tomorrow."""

    def test_the_model_is_left_as_found(self, name: str) -> None:
        model = messy(attention=attention(name))
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        tp.explain(model, x, method=name, layer="act", target=[[0, 1], [2, 3]])
        assert state_of(model) == before
        for error in (RuntimeError("broken"), KeyboardInterrupt()):
            model.fail_with = error
            with pytest.raises(type(error)):
                tp.explain(model, x, method=name, layer="act")
            assert state_of(model) == before

    def test_nothing_lives_on(self, name: str, monkeypatch) -> None:
        kept = []

        class Watched(capture.Capture):
            def __init__(self, layer, returned, handle, layout) -> None:
                super().__init__(layer, returned, handle, layout)
                kept.append(weakref.ref(returned))

        class WatchedAttention(Attention):
            def __init__(self, layer, block, weights, handle, after) -> None:
                super().__init__(layer, block, weights, handle, after)
                kept.append(weakref.ref(weights))

        monkeypatch.setattr(capture, "Capture", Watched)
        monkeypatch.setattr("torchpeek.engine.attention.recorder.Attention", WatchedAttention)
        heatmap = tp.explain(PooledNet(attention=attention(name)), X.float(), method=name, layer="act")
        assert kept or METHODS[name].layers == "none"
        assert all(reference() is None for reference in kept)
        assert heatmap.values.grad_fn is None

    def test_under_autocast(self, name: str) -> None:
        """The model runs in bfloat16, as the caller wants; the method's own mathematics does not."""
        model, x = PooledNet(attention=attention(name)).eval(), X.float()
        with torch.autocast("cpu", torch.bfloat16):
            half = tp.explain(model, x, method=name, layer="act", target=1)
        exact = tp.explain(model, x, method=name, layer="act", target=1)
        assert half.values.dtype == half.scores.dtype == torch.float32
        tolerance = ROUGH.get(name, 0.05)
        assert (half.values - exact.values).abs().max() <= tolerance * exact.values.abs().max()

    def test_shape_type_and_provenance(self, name: str) -> None:
        model = PooledNet(attention=attention(name)).eval()
        heatmap = tp.explain(model, torch.randn(2, 3, 7, 5), method=name, target=tp.targets.TopClasses(3))
        assert heatmap.values.shape == (2, 3, 7, 5)
        assert heatmap.values.dtype == torch.float32
        assert not heatmap.values.requires_grad
        assert heatmap.scores.shape == heatmap.question.labels.shape == (2, 3)
        assert heatmap.provenance.method == name
        assert heatmap.provenance.layer == {"all": "every layer", "none": "the input"}.get(METHODS[name].layers, "act")
        assert heatmap.provenance.paper == METHODS[name].paper

    def test_a_pictures_map_does_not_depend_on_the_batch(self, name: str) -> None:
        """Each picture alone, in another place of the batch, twice in it, and in a list. In float64."""
        torch.manual_seed(5)
        model = PooledNet(attention=attention(name)).double().eval()
        x, labels, options = torch.randn(3, 3, 8, 6).double(), [[1, 3], [0, 2], [4, 1]], SMALL.get(name, {})

        def maps(inputs, target, **more) -> list[torch.Tensor]:
            found = tp.explain(model, inputs, method=name, target=target, seed=3, **more, **options)
            return [each.values[0] for each in found] if isinstance(found, list) else list(found.values)

        def agree(found: list[torch.Tensor], numbers: list[int], expected: list[torch.Tensor]) -> None:
            for one, number in zip(found, numbers, strict=True):
                largest = float(expected[number].abs().max())
                torch.testing.assert_close(one, expected[number], rtol=1e-7, atol=1e-9 * largest)

        alone = [maps(x[n : n + 1], labels[n : n + 1])[0] for n in range(3)]
        assert all(not torch.equal(alone[n], alone[m]) for n, m in ((0, 1), (0, 2), (1, 2)))
        several = [0, 1, 2], [2, 0, 1], [1, 1, 0, 2, 1]
        for numbers in several:
            agree(maps(x[numbers], [labels[n] for n in numbers]), numbers, alone)
        agree(maps([x[n : n + 1] for n in (2, 0, 1)], [labels[n] for n in (2, 0, 1)]), [2, 0, 1], alone)
        # One class is as good as several, and their places do not matter.
        agree(maps(x, [each[::-1] for each in labels]), [0, 1, 2], [each.flip(0) for each in alone])
        agree(maps(x, [each[1:] for each in labels]), [0, 1, 2], [each[1:] for each in alone])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, name: str, dtype: torch.dtype) -> None:
        """Peers: a TypeError, or NaN in a flat map."""
        model, x = PooledNet(attention=attention(name)).eval(), torch.randn(1, 3, 6, 6).to(dtype)
        exact = tp.explain(model, x.float(), method=name, target=1).values
        half = tp.explain(model.to(dtype), x, method=name, target=1).values
        assert half.dtype == torch.float32
        error = (half - exact).abs().max() / exact.abs().max()
        if name in ROUGH:
            assert error < ROUGH[name]
        else:
            assert error < (0.02 if dtype == torch.float16 else 0.12)

    @pytest.mark.parametrize("shape", [(1, 3, 9), (1, 3, 5, 4, 3)], ids=["1D", "3D"])
    def test_signals_and_volumes(self, name: str, shape: tuple[int, ...]) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = (nn.Conv1d if len(shape) == 3 else nn.Conv3d)(3, 4, 3, padding=1)
                self.act = nn.ReLU()
                self.mix = Attending(4) if attention(name) else nn.Identity()
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                return self.head(self.mix(self.act(self.conv(x))).flatten(2).mean(2))

        values = tp.explain(Net(), torch.randn(shape), method=name, target=[[0, 2]]).values
        assert values.shape == (1, 2, *shape[2:])
        assert torch.isfinite(values).all()

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")  # blurred, it is the same
    def test_a_flat_picture_is_no_trouble(self, name: str) -> None:
        heatmap = tp.explain(PooledNet(attention=attention(name)), torch.full((1, 3, 6, 6), 0.5), method=name)
        assert torch.isfinite(heatmap.positive().unit().values).all()

    def test_in_place_after_the_layer(self, name: str) -> None:
        model = InPlaceNet(attention=attention(name)).double().eval()
        if METHODS[name].needs == "head":  # something lies between the layer and the head
            with pytest.raises(MethodNotApplicable):
                tp.explain(model, X, method=name, layer="conv", target=1)
            return
        wrong = tp.explain(model, X, method=name, layer="conv", target=1).values
        model.clean = True
        torch.testing.assert_close(wrong, tp.explain(model, X, method=name, layer="conv", target=1).values)

    def test_unknown_option(self, name: str) -> None:
        with pytest.raises(OptionError, match=f"method '{name.replace('+', '.')}' has no option 'nonsense'"):
            tp.explain(PooledNet(attention=attention(name)), X.float(), method=name, nonsense=1)
