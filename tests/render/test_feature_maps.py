"""Feature grids of traces, tokens and chosen channels; contributions to the score; clipped scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from sheet_tiles import squares, tiles_of
from torchpeek.errors import GradUnavailable, InputError, OptionError
from torchpeek.render import COLORMAPS, feature_grid, kernel_grid

DIVERGING, VIRIDIS = COLORMAPS["diverging"], COLORMAPS["viridis"]


def same(a: object, b: object) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


class Patches(nn.Module):
    """A class token before a 3 x 4 grid of tokens, and a head that reads the class token after they are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.mix, self.norm, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        tokens = self.norm(tokens)
        return self.head(self.mix(tokens, tokens, tokens)[0][:, 0])


X = torch.linspace(-1, 1, 3 * 12 * 16, dtype=torch.float64).sin().reshape(1, 3, 12, 16)


class TestTraces:
    def test_tokens_are_drawn_as_their_grid_without_the_class_token(self, words: list[str]) -> None:
        model = Patches().double().eval()
        trace = tp.trace(model, X, layer="norm", target=2)
        made = feature_grid(trace)
        assert words[-2].startswith(
            "norm: all 8 channels, 3 x 4 values each; 1 token before the grid left out, such as a class token"
        )
        returned = tp.activations(model, X, "norm")["norm"]  # (1, 13, 8)
        grid = torch.empty(8, 3, 4, dtype=torch.float64)
        for row in range(3):
            for column in range(4):
                grid[:, row, column] = returned[0, 1 + 4 * row + column]
        tiles = tiles_of(made, 60, 80, 3, 3, 21, count=8)
        for channel in range(8):
            largest = float(grid[channel].abs().max())
            index = np.rint((grid[channel].numpy() / largest + 1) / 2 * 255).astype(int)
            assert np.array_equal(squares(tiles[divmod(channel, 3)], 20), DIVERGING[index])
        layout = tp.Layout("tokens", (3, 4), prefix=1)
        assert same(made, feature_grid(returned, layout=layout, title="norm"))
        sequence = tp.Layout("sequence-first", (3, 4), suffix=1)
        turned = torch.cat([returned[:, 1:], returned[:, :1]], 1).transpose(0, 1)
        feature_grid(turned, layout=sequence)
        assert words[-2] == "all 8 channels, 3 x 4 values each; 1 token after the grid left out"

    def test_one_of_several_calls(self) -> None:
        act = nn.ReLU()
        model = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 6, 3), act, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = model.double()
        for call, part in (("1[0]", model[:2]), ("1[1]", model[:4])):
            made = feature_grid(tp.trace(model, X, layer=call))
            assert same(made, feature_grid(part(X).detach(), title=call))

    def test_signals_and_volumes(self, words: list[str]) -> None:
        signal = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        made = feature_grid(tp.trace(signal, torch.randn(1, 2, 700), layer="0"))
        assert words[-2].startswith("0: all 3 channels, 698 values each")
        assert 480 <= made.width <= 1400
        volume = nn.Sequential(nn.Conv3d(1, 3, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        x = torch.randn(1, 1, 22, 4, 5)
        made = feature_grid(tp.trace(volume, x, layer="0"))
        assert words[-2].startswith("0: all 3 channels, 22 x 4 x 5 values each; 8 of 22 slices, evenly spaced")
        assert same(made, feature_grid(volume[0](x), title="0"))

    def test_what_a_trace_may_not_hold(self) -> None:
        model = PooledNet().eval()
        x = torch.rand(2, 3, 16, 16)
        with pytest.raises(InputError, match=r"the trace holds 2 samples; allowed: one\. Next: .*x\[n:n \+ 1\]"):
            feature_grid(tp.trace(model, x, layer="act"))
        one = tp.trace(model, x[:1], layer="act", target=[[0, 1]])
        assert same(feature_grid(one), feature_grid(tp.trace(model, x, layer="act").first(1)))
        with pytest.raises(InputError, match=r"asks for 2 scores.*with_target"):
            feature_grid(one, sort="contribution")
        with pytest.raises(GradUnavailable):
            feature_grid(tp.trace(model, x[:1], layer="act", gradients=False), sort="contribution")
        with pytest.raises(OptionError, match="a trace has its own"):
            feature_grid(one, contributions=torch.rand(6))


class TestContributions:
    def test_against_autograd(self) -> None:
        """By a pass of the network's own parts, and loops."""
        model = PooledNet().double().eval()
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        trace = tp.trace(model, x, layer="features", target=[[0, 3], [1, 1]])
        activation = model.features(x).detach().requires_grad_()
        scores = model.head(model.act(activation).mean((2, 3)))
        expected = torch.zeros(2, 2, activation.shape[1], dtype=torch.float64)
        for n, classes in enumerate([[0, 3], [1, 1]]):
            for k, c in enumerate(classes):
                (gradient,) = torch.autograd.grad(scores[n, c], activation, retain_graph=True)
                for channel in range(activation.shape[1]):
                    for position in zip(gradient[n, channel].flatten(), activation[n, channel].flatten(), strict=True):
                        expected[n, k, channel] += position[0] * position[1].detach()
        torch.testing.assert_close(trace.contributions, expected)

    @pytest.mark.parametrize("grid", [(5,), (4, 6), (2, 3, 4)])
    def test_behind_a_linear_head_they_sum_to_the_logit_less_its_bias(self, grid: tuple[int, ...]) -> None:
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]

        class Pool(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(2).mean(2)

        model = nn.Sequential(convolution(2, 7, 1), nn.GELU(), Pool(), nn.Linear(7, 5)).double()
        trace = tp.trace(model, torch.randn(3, 2, *grid, dtype=torch.float64), layer="1", target=[[0, 4]] * 3)
        logits = trace.scores - model[3].bias[[0, 4]]
        torch.testing.assert_close(trace.contributions.sum(2), logits.detach())

    def test_of_tokens_those_of_the_grid_count(self) -> None:
        model = Patches().double().eval()
        trace = tp.trace(model, X, layer="norm", target=2)
        tokens = tp.activations(model, X, "norm")["norm"].requires_grad_()
        score = model.head(model.mix(tokens, tokens, tokens)[0][:, 0])[0, 2]
        (gradient,) = torch.autograd.grad(score, tokens)
        expected = (gradient * tokens).detach()[0, 1:].sum(0)
        torch.testing.assert_close(trace.contributions[0, 0], expected)

    def test_the_largest_comes_first(self, words: list[str]) -> None:
        maps = torch.rand(5, 3, 3) + 1
        given = torch.tensor([0.5, -2.0, 3.0, torch.nan, 0.125])
        made = feature_grid(maps, sort="contribution", contributions=given, most=3)
        assert words[:3] == ["2: +3", "0: +0.5", "4: +0.125"]
        assert words[3].startswith(
            "3 of 5 channels, largest contribution first, 3 x 3 values each; contributions as given"
        )
        drawn = feature_grid(maps, channels=[2, 0, 4], labels=words[:3])
        assert same(np.asarray(made)[-40:], np.asarray(drawn)[-40:])
        feature_grid(maps, sort="contribution", contributions=given, channels=[1, 4, 0])
        assert words[-5:-2] == ["0: +0.5", "4: +0.125", "1: -2"]
        before = len(words)
        feature_grid(maps, contributions=given, channels=[1, 4])  # known, and not sorted by
        assert words[before : before + 2] == ["1: -2", "4: +0.125"]

    def test_where_nothing_contributes_the_caption_says_so(self, words: list[str]) -> None:
        """The head is zero."""
        model = Patches().double().eval()
        nn.init.zeros_(model.head.weight)
        feature_grid(tp.trace(model, X, layer="norm", target=2), sort="contribution")
        assert words[-2].endswith("; each of them is 0, so their order says nothing")

    def test_the_caption_names_the_score(self, words: list[str]) -> None:
        model = PooledNet().double().eval()
        loaded = tp.LoadedModel(model, class_names=["ant", "bee", "cat", "dog", "elk"])
        x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
        trace = tp.trace(loaded, x, layer="act", target="cat")
        total, found = float(trace.contributions.sum()), trace.contributions[0, 0].sort(descending=True)
        feature_grid(trace, sort="contribution", most=2)
        assert words[:2] == [
            f"{c}: {v:+.3g}" for c, v in zip(found.indices[:2], found.values[:2].tolist(), strict=True)
        ]
        assert words[2] == (
            "act: 2 of 6 channels, largest contribution first, 16 x 16 values each; contribution to the logit of cat "
            f"({float(trace.scores):.3g}): gradient x activation, summed over the grid; those shown sum to "
            f"{float(found.values[:2].sum()):.3g} of {total:.3g}"
        )

    def test_refusals(self) -> None:
        maps = torch.rand(5, 3, 3)
        with pytest.raises(OptionError, match=r"needs the gradient of a score\. Next: give a trace"):
            feature_grid(maps, sort="contribution")
        with pytest.raises(InputError, match=r"contributions has shape \(4,\); allowed: \(5,\)"):
            feature_grid(maps, sort="contribution", contributions=torch.rand(4))
        with pytest.raises(OptionError, match="no sort 'norm'; allowed: 'index', 'contribution'"):
            feature_grid(maps, sort="norm")


class TestClip:
    def test_colours_against_percentiles(self, words: list[str]) -> None:
        """The percentiles by their definition: linear between the sorted values."""
        values = torch.rand(2, 10, 10, dtype=torch.float64) + 1
        values[0, 0, 0], values[1, 5, 5] = 100.0, -50.0

        def percentile(numbers: list[float], share: float) -> float:
            at = share / 100 * (len(numbers) - 1)
            low, high = sorted(numbers)[int(at)], sorted(numbers)[min(int(at) + 1, len(numbers) - 1)]
            return low + (high - low) * (at - int(at))

        for scale in ("each", "shared"):
            made = tiles_of(
                feature_grid(values, clip=(2, 95), scale=scale, columns=2, colormap="viridis"), 200, 200, 1, 2, 21
            )
            for k in range(2):
                of = (values if scale == "shared" else values[k]).flatten().tolist()
                low, high = percentile(of, 2), percentile(of, 95)
                unit = ((values[k].numpy() - low) / (high - low)).clip(0, 1)
                assert np.array_equal(squares(made[0, k], 20), VIRIDIS[np.rint(unit * 255).astype(int)])
        assert "scale: each tile between its own percentiles 2 and 95; the values are -50 to 100" in words
        low, high = (percentile(values.flatten().tolist(), share) for share in (2, 95))
        assert f"scale: shared, {low:.3g} to {high:.3g}; the values are -50 to 100" in words
        outside = int(((values < low) | (values > high)).sum()) / 2
        assert words[-1] == (
            f"clipped at the percentiles 2 and 95: {outside:.2g} % of the values are outside of the scale, in the "
            "colours of its ends"
        )

    def test_signed(self, words: list[str]) -> None:
        maps = torch.linspace(-1, 2, 301).reshape(1, 7, 43).double()
        maps[0, 0, 0] = -40.0
        made = np.asarray(feature_grid(maps, clip=(0, 100)))
        assert words[2] == "scale: each tile to the larger of its percentiles 0 and 100 in magnitude, 40 to 40; " + (
            "the values are -40 to 2"
        )
        assert (made == DIVERGING[0]).all(-1).any()
        feature_grid(maps, clip=(1, 99), scale="shared")
        largest = float(np.percentile(maps.numpy(), 99))
        assert words[-2] == f"scale: shared, {-largest:.3g} to {largest:.3g}; the values are -40 to 2"

    def test_maps_of_one_value_are_not_clipped_away(self, words: list[str]) -> None:
        maps = torch.zeros(2, 20, 20)
        maps[0, 3, 4] = 5.0
        made = np.asarray(feature_grid(maps, clip=(1, 99), columns=2, tile=20))
        assert (made == VIRIDIS[255]).all(-1).sum() == 1 + 10  # the value, and the scale
        assert words[-1] == "not clipped, as most of their values are the same: 1 of 2 tiles"

    def test_not_finite(self, words: list[str]) -> None:
        maps = torch.rand(1, 10, 10)
        maps[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        feature_grid(maps, clip=(5, 95))
        feature_grid(torch.full((1, 2, 2), torch.nan), clip=(5, 95))
        assert words.count("magenta: 1 NaN, 2 infinite") == 1

    @pytest.mark.parametrize("clip", [(99, 1), (5, 5), (-1, 99), (1, 101), 99, (1,), ("1", "99")])
    def test_refusals(self, clip: object) -> None:
        allowed = r"(two percentiles from 0 to 100|\(a finite number, a finite number\))"
        with pytest.raises(OptionError, match=f"clip is .*; allowed: {allowed}"):
            feature_grid(torch.rand(1, 2, 2), clip=clip)  # type: ignore[arg-type]


class TestColormapAndInput:
    def test_signed_maps_are_diverging_and_others_are_not(self) -> None:
        maps = torch.rand(3, 4, 4)
        assert same(feature_grid(maps), feature_grid(maps, colormap="viridis"))
        maps[1, 0, 0] = -0.1
        assert same(feature_grid(maps), feature_grid(maps, colormap="diverging"))
        assert same(feature_grid(maps, channels=[0, 2]), feature_grid(maps, channels=[0, 2], colormap="viridis"))

    def test_shapes_that_are_refused_say_what_to_give(self) -> None:
        with pytest.raises(InputError, match=r"shape \(7, 30\); .*for a signal \(C, w\) give activation\[:, None\]"):
            feature_grid(torch.rand(7, 30))
        feature_grid(torch.rand(7, 30)[:, None])
        with pytest.raises(InputError, match=r"for a volume \(C, d, h, w\) give activation\[None\]"):
            feature_grid(torch.rand(7, 3, 4, 4))
        feature_grid(torch.rand(7, 3, 4, 4)[None])
        layout = tp.Layout("tokens", (3, 4), prefix=1)
        for shape in [(1, 12, 8), (2, 13, 8), (13, 8), (8,)]:
            with pytest.raises(InputError, match=r"no output for one sample in the layout 'tokens 1\+3x4'\. Next"):
                feature_grid(torch.rand(shape), layout=layout)

    @pytest.mark.filterwarnings("ignore")
    def test_quantised_and_sparse_tensors_and_those_without_values(self) -> None:
        maps = torch.tensor([[[0.0, 0.5], [1.0, 2.0]]])
        expected = feature_grid(maps)
        assert same(feature_grid(torch.quantize_per_tensor(maps, 0.5, 0, torch.quint8)), expected)
        assert same(feature_grid(maps.to_sparse()), expected)
        assert same(kernel_grid(maps[None].to_sparse()), kernel_grid(maps[None]))
        for wrong in (torch.nested.nested_tensor([maps, maps]), maps.to("meta")):
            with pytest.raises(InputError, match=r"allowed: a (dense tensor|tensor with values)"):
                feature_grid(wrong)

    def test_in_the_users_blocks(self) -> None:
        model = PooledNet()
        x = torch.rand(1, 3, 16, 16)
        with torch.no_grad(), torch.inference_mode():
            made = feature_grid(tp.trace(model, x, layer="act"), sort="contribution", clip=(1, 99))
        assert model.training
        assert same(made, feature_grid(tp.trace(model, x, layer="act"), sort="contribution", clip=(1, 99)))


def test_real_weights(mobilenet, photograph) -> None:
    """Behind MobileNetV2's last convolution there are global average pooling and a linear layer."""
    trace = tp.trace(mobilenet, mobilenet.read(photograph), layer="features.18")
    label = int(trace.question.labels)
    without_bias = float(trace.scores) - float(mobilenet.module.classifier[1].bias.detach()[label])
    assert float(trace.contributions.sum()) == pytest.approx(without_bias, rel=1e-4)
    strongest = trace.contributions[0, 0].sort(descending=True).indices[:4].tolist()
    made = feature_grid(trace, sort="contribution", most=4, clip=(1, 99))
    given = trace.contributions[0, 0]
    drawn = feature_grid(trace.activations[0], channels=strongest, contributions=given, clip=(1, 99))
    assert same(np.asarray(made)[-300:, :500], np.asarray(drawn)[-300:, :500])
