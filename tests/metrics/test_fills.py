"""Fills of the user's own: a number, a tensor, a function; what is refused, and how options are printed."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.bright import Bright, made
from torchpeek.errors import InputError, OptionError
from torchpeek.metrics import METRICS, CleanPass
from torchpeek.metrics.fills import FILLS, filled

WITH_FILL = [name for name, each in METRICS.items() if "baseline" in each.options]
SMALL: dict[str, Any] = {"cells": 3, "steps": 4, "samples": 6}
COLOURS = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return PooledNet().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def heatmap(model: nn.Module, x: Tensor) -> tp.Heatmap:
    return tp.explain(model, x, target=[[1, 3], [0, 2]])


def half(inputs: Tensor) -> Tensor:
    return torch.full_like(inputs, 0.5)


def drawn(inputs: Tensor) -> Tensor:
    return torch.rand_like(inputs)


def scored(name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, baseline: Any, **more: Any) -> Any:
    options = {key: value for key, value in SMALL.items() if key in METRICS[name].options}
    return tp.evaluate(model, x, heatmap, metrics={name: {**options, "baseline": baseline}}, **more)[name]


@pytest.mark.parametrize("name", WITH_FILL)
class TestEveryMetricWithAFill:
    def test_the_same_fill_in_every_form(self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        number = scored(name, model, x, heatmap, 0.5)
        whole = torch.full((3, 12, 9), 0.5, dtype=torch.float64)
        forms = 1 / 2, np.float32(0.5), torch.tensor(0.5), whole, whole[None], whole.expand(2, -1, -1, -1), half
        forms += torch.full((3, 1, 1), 0.5), torch.full((12, 9), 0.5), np.full((3, 12, 9), 0.5), nn.Threshold(9, 0.5)
        for form in forms:
            assert torch.equal(scored(name, model, x, heatmap, form).values, number.values)
        if name != "sufficiency":  # which counts predictions: here these stay the same
            assert not torch.equal(scored(name, model, x, heatmap, 3.0).values, number.values)

    def test_zero_and_the_mean_are_those_of_the_names(
        self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap
    ) -> None:
        zeros, means = (scored(name, model, x, heatmap, each).values for each in ("zeros", "mean"))
        for zero in (0, 0.0, torch.zeros(3, 1, 1), torch.zeros_like):
            assert torch.equal(scored(name, model, x, heatmap, zero).values, zeros)
        found = scored(name, model, x, heatmap, x.mean((2, 3), keepdim=True)).values
        torch.testing.assert_close(found, means, rtol=1e-4, atol=1e-5)

    def test_in_another_dtype_and_without_gradients(self, name: str, model: nn.Module, x: Tensor) -> None:
        wide = PooledNet().double().eval()
        heatmap = tp.explain(wide, x.double(), target=1)
        tensor = COLOURS.clone().requires_grad_()
        with torch.inference_mode():
            found = scored(name, wide, x.double(), heatmap, tensor)
        assert found.values.dtype == torch.float64
        assert not found.values.requires_grad


class TestValues:
    def test_deletion_by_hand(self) -> None:
        """p is the mean of the first channel: four columns of 0.8 become 0.25 one by one."""
        model, x = Bright().double().eval(), torch.full((1, 3, 4, 4), 0.8, dtype=torch.float64)
        heatmap = tp.explain(model, x, method="random", layer="layer", target=0)
        heatmap = made(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64).expand(4, 4), heatmap)
        for baseline in (0.25, COLOURS, lambda inputs: COLOURS.expand_as(inputs)):
            found = tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": 4, "baseline": baseline}})["deletion"]
            line = torch.tensor([3.2, 2.65, 2.1, 1.55, 1.0], dtype=torch.float64) / 4
            torch.testing.assert_close(found.curve[0, 0], line, rtol=0, atol=1e-9)

    def test_a_fill_for_each_sample(self, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        mine = torch.rand(2, 3, 1, 1)
        both = scored("deletion", model, x, heatmap, mine).values
        for n in range(2):
            alone = scored("deletion", model, x[n : n + 1], heatmap[n], mine[n]).values
            torch.testing.assert_close(alone[0], both[n])

    def test_a_list_of_inputs_has_one_fill_for_each_call(self, model: nn.Module, x: Tensor) -> None:
        pictures = [x[:1], x[1:, :, :8]]
        shapes: list[torch.Size] = []

        def grey(inputs: Tensor) -> Tensor:
            shapes.append(inputs.shape)
            return half(inputs)

        maps = tp.explain(model, pictures, target=1)
        found = scored("deletion", model, pictures, maps, grey)
        assert shapes == [each.shape for each in pictures]
        assert torch.equal(found.values, scored("deletion", model, pictures, maps, 0.5).values)

    def test_a_function_is_called_once_with_a_copy(self, model: nn.Module, x: Tensor) -> None:
        calls: list[int] = []

        def spoil(inputs: Tensor) -> Tensor:
            calls.append(len(inputs))
            return inputs.fill_(0.5)

        before = x.clone()
        maps = tp.compare(model, x, methods=["gradcam", "eigencam"], target=1)
        options = {"steps": 3, "baseline": spoil}
        found = tp.evaluate(model, x, maps, metrics={"deletion": options, "insertion": options})
        assert calls == [2]
        assert torch.equal(x, before)
        expected = scored("deletion", model, x, maps["gradcam"], 0.5, batch=1)
        assert found["gradcam"]["deletion"].curve[..., -1].equal(expected.curve[..., -1])

    def test_what_a_function_draws_follows_from_the_seed(
        self, model: nn.Module, x: Tensor, heatmap: tp.Heatmap
    ) -> None:
        state = torch.get_rng_state()
        first, again, other = (scored("deletion", model, x, heatmap, drawn, seed=seed).values for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_in_half_precision(self) -> None:
        half_model, x = PooledNet().eval().bfloat16(), torch.randn(1, 3, 8, 8).bfloat16()
        clean = CleanPass(tp.trace(half_model, x, layer="act", target=1))
        for baseline in (0.1, torch.full((3, 1, 1), 0.1, dtype=torch.float64)):
            fill = filled(clean, baseline)
            assert fill.dtype == torch.bfloat16
            assert torch.equal(fill, torch.full_like(x, 0.1))

    def test_signals_and_volumes(self) -> None:
        for size in ((7,), (4, 5, 6)):
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
            net = nn.Sequential(conv(2, 3, 1), nn.Flatten()).eval()
            clean = CleanPass(tp.trace(net, torch.randn(1, 2, *size), layer="0", target=1))
            lengths = torch.arange(2.0).view(2, *(1 for _ in size))
            assert torch.equal(filled(clean, lengths), lengths.expand(1, 2, *size))


class TestRefused:
    @pytest.mark.parametrize(
        ("baseline", "said"),
        [
            ("grey", "'grey'; allowed: 'zeros', 'mean', 'blur', 'noise', a number, a tensor, or a function"),
            (None, "None; allowed"),
            (True, "True; allowed"),
            ([0.1, 0.2, 0.3], r"\[0.1, 0.2, 0.3\]; allowed"),
            (float("nan"), "nan, with NaN or infinity"),
            (1e300, "NaN or infinity as torch.float32"),
            (torch.full((3, 1, 1), torch.inf), "NaN or infinity"),
            (torch.zeros(3), r"tensor \(3,\) of torch.float32.* for each channel is \(3, 1, 1\)"),
            (torch.zeros(5, 3, 12, 9), r"allowed: real numbers of shape \(12, 9\), \(3, 12, 9\) or \(2, 3, 12, 9\)"),
            (np.array(["grey"]), "no tensor"),
            (torch.zeros(12, 9, 3), r"\(12, 9, 3\)"),
            (torch.zeros(1, 1, 1, 1, 1), r"\(1, 1, 1, 1, 1\)"),
            (torch.zeros(3, 0, 1), r"\(3, 0, 1\)"),
            (torch.zeros(3, 1, 1, dtype=torch.complex64), "complex64"),
            (torch.zeros(3, 1, 1, dtype=torch.bool), "bool"),
            (torch.zeros(3, 12, 9).to_sparse(), r"tensor \(3, 12, 9\)"),
            (torch.zeros(3, 12, 9, device="meta"), r"tensor \(3, 12, 9\)"),
            (lambda inputs: inputs[:1], r"function .*test_fills.*lambda.*returned a Tensor \(1, 3, 12, 9\)"),
            (lambda inputs: inputs.mean(), r"returned a Tensor \(\); allowed: a tensor \(2, 3, 12, 9\)"),
            (lambda inputs: 0.5, "returned a float; allowed"),
            (lambda inputs: inputs * torch.nan, "NaN"),
        ],
    )
    def test_what_is_no_fill(self, baseline: Any, said: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        with pytest.raises(OptionError, match=said):
            scored("deletion", model, x, heatmap, baseline)

    def test_a_row_of_pixels_is_no_channel(self) -> None:
        """Three columns and three channels: (3,) could be either, so it is neither."""
        net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten()).eval()
        clean = CleanPass(tp.trace(net, torch.randn(1, 3, 4, 3), layer="0", target=1))
        with pytest.raises(OptionError, match=r"\(3, 1, 1\)"):
            filled(clean, torch.zeros(3))

    def test_an_error_of_the_function_is_the_users_own(self, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        def broken(inputs: Tensor) -> Tensor:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            scored("deletion", model, x, heatmap, broken)


class TestPrinted:
    def test_options_are_readable_and_json(self, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        texts = []
        for baseline in (0.5, torch.tensor(0.5), np.float32(0.5), COLOURS, COLOURS * 2, half, functools.partial(half)):
            options = dict(scored("deletion", model, x, heatmap, baseline).options)
            assert json.loads(json.dumps(options)) == options
            texts.append(options["baseline"])
        assert texts[:3] == [0.5, 0.5, 0.5]
        assert texts[3].startswith("tensor (3, 1, 1) float32 ")
        assert texts[3] != texts[4]
        assert texts[5:] == [f"function {half.__module__}.half", "function functools.partial"]

    def test_measurements_of_several_batches_are_joined(self, model: nn.Module, x: Tensor) -> None:
        pictures = [x[:1], x[1:]]
        maps = tp.explain(model, pictures, target=1)
        assert scored("deletion", model, pictures, maps, COLOURS).values.shape == (2, 1)
        parts = [
            tp.evaluate(model, picture, each, metrics={"deletion": {"steps": 3, "baseline": colours}})
            for picture, each, colours in zip(pictures, maps, (COLOURS, COLOURS + 1), strict=True)
        ]
        with pytest.raises(InputError, match="different options"):
            tp.metrics.joined(parts)


def test_the_names_stay() -> None:
    assert list(FILLS) == ["zeros", "mean", "blur", "noise"]
