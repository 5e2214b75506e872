"""Occlusion and RISE: captum, identities, and their options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import SplitNet
from networks.split import X
from torchpeek.errors import OptionError


class Linear(nn.Module):
    """A score that is a weighted sum of the positions, plus an offset."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.randn(3, 8, 6, dtype=torch.float64)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum((1, 2, 3)).unsqueeze(1) + self.offset


class TestOcclusion:
    @pytest.mark.parametrize(
        ("window", "stride", "fill"), [((3, 2), (2, 1), 0.0), ((3, 2), (3, 2), 0.7), ((4, 3), (3, 2), 0.0)]
    )
    def test_captum(self, net: SplitNet, window: tuple[int, int], stride: tuple[int, int], fill: float) -> None:
        from captum.attr import Occlusion

        theirs = Occlusion(net).attribute(
            X, sliding_window_shapes=(3, *window), strides=(3, *stride), baselines=fill, target=2
        )
        ours = tp.explain(net, X, method="occlusion", target=2, window=window, stride=stride, fill=fill).values
        torch.testing.assert_close(ours[:, 0].float(), theirs[:, 0], rtol=1e-5, atol=1e-7)  # it computes in float32

    def test_one_position_at_a_time_of_a_linear_score(self) -> None:
        """What each position contributes: weight times value less fill, whatever the offset."""
        model = Linear(offset=5.0)
        fill = torch.randn(3, 1, 1, dtype=torch.float64)
        got = tp.explain(model, X, method="occlusion", target=0, window=1, stride=1, fill=fill).values[:, 0]
        torch.testing.assert_close(got, ((X - fill) * model.weight).sum(1))

    def test_one_window_over_everything(self, net: SplitNet) -> None:
        got = tp.explain(net, X, method="occlusion", target=1, window=(8, 6)).values
        fall = (net(X) - net(torch.zeros_like(X))).detach()[:, 1]
        torch.testing.assert_close(got, fall.view(2, 1, 1, 1).expand(2, 1, 8, 6))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"window": 9}, "option window is 9; allowed: a whole number for each axis.*from 1 up to 8, 6"),
            ({"window": (2, 2, 2)}, r"option window is \(2, 2, 2\)"),
            ({"window": 2.5}, "option window is 2.5"),
            ({"window": 2, "stride": 3}, "option stride is 3.*up to 2, 2, the window, so that every position"),
            ({"fill": "mean"}, "option fill is 'mean'"),
            ({"fill": torch.zeros(4)}, r"option fill is a tensor \(4,\)"),
            ({"precision": "int8"}, "precision is 'int8'"),
        ],
    )
    def test_options_that_make_no_sense(self, net: SplitNet, options: dict, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            tp.explain(net, X, method="occlusion", **options)


class TestRise:
    def test_everything_visible(self, net: SplitNet) -> None:
        """With probability 1 each mask is the picture as it is, and each position has the score."""
        heatmap = tp.explain(net, X, method="rise", samples=3, probability=1.0, target=[[0, 1], [2, 3]])
        torch.testing.assert_close(heatmap.values, heatmap.scores[..., None, None].expand(2, 2, 8, 6))

    def test_the_offset_of_the_score_is_the_mean_of_the_masks(self) -> None:
        model = Linear()
        first = tp.explain(model, X, method="rise", samples=20).values
        model.offset = 2.0
        second = tp.explain(model, X, method="rise", samples=20).values
        difference = (second - first) / 2
        assert torch.equal(difference[0], difference[1]) or torch.allclose(difference[0], difference[1])
        many = tp.explain(Linear(offset=1e6), X, method="rise", samples=4000).values / 1e6
        torch.testing.assert_close(many, torch.ones_like(many), rtol=0, atol=0.05)

    def test_of_a_linear_score_it_has_the_weights(self) -> None:
        """With many masks the map rises with what the cells around a position contribute."""
        model = Linear()
        model.weight = torch.zeros(3, 8, 6, dtype=torch.float64)
        model.weight[:, 5, 4] = 1.0
        values = tp.explain(model, torch.ones_like(X), method="rise", samples=2000).values[0, 0]
        assert divmod(int(values.argmax()), 6) == (5, 4)

    @pytest.mark.parametrize("shape", [(1, 3, 5), (1, 3, 3, 40), (1, 3, 4, 9, 5), (1, 3, 1, 1)])
    def test_sizes_that_the_cells_do_not_divide(self, shape: tuple[int, ...]) -> None:
        class Mean(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1).mean(1, keepdim=True)

        values = tp.explain(Mean(), torch.ones(shape), method="rise", samples=50).values
        assert values.shape == (1, 1, *shape[2:])
        assert bool((values > 0).all())

    def test_chunks_do_not_change_the_masks(self, net: SplitNet, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = tp.explain(net, X, method="rise", samples=30).values
        monkeypatch.setattr("torchpeek.engine.perturbation.chunk_size", lambda sample: 7)
        monkeypatch.setattr("torchpeek.cam.input_masks._MASKS", 11)
        torch.testing.assert_close(tp.explain(net, X, method="rise", samples=30).values, expected)

    def test_the_seed(self, net: SplitNet) -> None:
        state = torch.get_rng_state().tolist()
        one, same, other = (tp.explain(net, X, method="rise", samples=9, seed=seed) for seed in (1, 1, 2))
        assert torch.get_rng_state().tolist() == state
        assert torch.equal(one.values, same.values)
        assert not torch.equal(one.values, other.values)
        assert one.provenance.options["seed"] == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"samples": 0}, "option samples is 0"),
            ({"cells": 2.0}, "option cells is 2.0"),
            ({"probability": 0}, "option probability is 0"),
            ({"probability": 1.5}, "option probability is 1.5"),
        ],
    )
    def test_options_that_make_no_sense(self, net: SplitNet, options: dict, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            tp.explain(net, X, method="rise", **options)
