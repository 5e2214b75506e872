"""One neuron as the target: the network up to there, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import SplitNet
from networks.outputs import X
from torchpeek.errors import AmbiguousCall, LayerNotFound, NotConnected, NotFired, TargetError

Neuron = tp.targets.Neuron


class UpTo(nn.Module):
    """What a SplitNet says at one of its layers, and nothing after it."""

    def __init__(self, net: SplitNet, layer: str) -> None:
        super().__init__()
        self.net, self.layer = net, layer

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.net.mix(self.net.prefix(x))
        return mixed if self.layer == "mix" else self.net.head(torch.tanh(mixed).flatten(1))


class Reads(nn.Module):
    """Tokens (N, 1 + 12, 4), of which the score reads the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(13, 13), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = torch.tanh(self.conv(x)).flatten(2).mT
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
        return self.head(tokens + self.mixed(tokens))[:, 0]

    def mixed(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.mix(tokens.mT).mT)


class TestNeuron:
    """Against the same network cut off at the neuron's layer, of whose output the score is any function."""

    CASES = (
        (Neuron("mix", 2), lambda out: out[:, 2].mean((1, 2))),
        (Neuron("mix", [2, 0]), lambda out: out[:, [2, 0]].mean((2, 3))),
        (Neuron("mix", 5, position=(2, 1)), lambda out: out[:, 5, 2, 1]),
        (Neuron("mix", [1, 4], position=[0, 0]), lambda out: out[:, [1, 4], 0, 0]),
        (Neuron("head", torch.tensor([3, 1])), lambda out: out[:, [3, 1]]),  # type: ignore[arg-type]
    )

    @pytest.mark.parametrize(("target", "score"), CASES, ids=[str(number) for number in range(len(CASES))])
    @pytest.mark.parametrize(
        "method", ["gradcam", "layercam", "scorecam", "ablationcam", "recipro-cam", "integrated-gradcam", "shapleycam"]
    )
    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_is_the_network_up_to_there(self, net: SplitNet, method: str, target: Any, score: Any) -> None:
        expected = tp.explain(
            UpTo(net, target.layer).eval(),
            X,
            method=method,
            layer="net.prefix",
            target=tp.targets.Computed(lambda output, rows: score(output)),
        )
        got = tp.explain(net, X, method=method, layer="prefix", target=target)
        torch.testing.assert_close(got.values, expected.values)
        torch.testing.assert_close(got.scores, expected.scores)
        assert got.provenance.score.startswith(f"channel of {target.layer!r}, ")

    def test_of_the_layer_itself(self, net: SplitNet) -> None:
        """The gradient of a mean over the grid is 1 / 12 everywhere: the map is the channel's own, a twelfth of it."""
        activation = net.prefix(X)
        got = tp.explain(net, X, layer="prefix", target=Neuron("prefix", [1, 3]))
        torch.testing.assert_close(got.values, activation[:, [1, 3]] / 12)
        # Without another channel it says what it did; without itself nothing.
        ablated = tp.explain(net, X, method="ablationcam", layer="prefix", target=Neuron("prefix", 1))
        torch.testing.assert_close(ablated.values, activation[:, [1]])

    def test_tokens(self) -> None:
        model = Reads().double().eval()
        x = X[:, :, :, :6]
        tokens = torch.tanh(model.conv(x)).flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        mixed = model.mix(tokens.mT)  # (N, 4, 13), which is no grid
        assert tp.trace(model, x, layer="conv", target=Neuron("conv", 2, (3, 1))).scores.flatten().tolist() == (
            model.conv(x)[:, 2, 3, 1].tolist()
        )
        said = model.head(tokens + torch.tanh(mixed).mT)  # (N, 13, 3): a class token, and a grid of 4 x 3
        trace = tp.trace(model, x, layer="conv", target=Neuron("head", [0, 2], (1, 2)))
        torch.testing.assert_close(trace.scores, said[:, 1 + 1 * 3 + 2, [0, 2]])
        means = tp.trace(model, x, layer="conv", target=Neuron("head", 1)).scores
        torch.testing.assert_close(means[:, 0], said[:, 1:, 1].mean(1))  # of the grid alone

    def test_names_are_channels(self, net: SplitNet, tmp_path: Any) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=Neuron("mix", [2, 0], (1, 1)))
        assert heatmap.provenance.score == "channel of 'mix', at 1, 1"
        assert heatmap.provenance.class_name(2) == "channel 2"
        tp.save(heatmap, tmp_path / "map.safetensors")
        assert tp.load(tmp_path / "map.safetensors").provenance == heatmap.provenance

    def test_a_trace_is_asked_again(self, net: SplitNet) -> None:
        trace = tp.trace(net, X, layer="prefix", target=Neuron("mix", 1))
        for method in ("gradcam", "ablationcam", "scorecam"):
            for target in (Neuron("mix", [0, 2], (1, 0)), 3, [[0, 1], [2, 3]]):
                got = tp.explain(trace, method=method, target=target)
                expected = tp.explain(net, X, method=method, layer="prefix", target=target)
                torch.testing.assert_close(got.values, expected.values)

    def test_which_layers_a_trace_kept(self, net: SplitNet) -> None:
        for target in (None, Neuron("head", 0)):
            trace = tp.trace(net, X, layer="prefix", target=target)
            with pytest.raises(TargetError, match=r"Neuron\('mix'\) reads a layer that this pass did not record"):
                tp.explain(trace, target=Neuron("mix", 0))

    @pytest.mark.parametrize("method", ["gradcam", "groupcam", "scorecam", "ablationcam", "recipro-cam", "eigencam"])
    @pytest.mark.parametrize(("layer", "neuron"), [("prefix", "prefix.0"), ("mix", "prefix"), ("mix", "prefix.0")])
    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_not_after_the_layer_that_is_looked_at(self, net: SplitNet, method: str, layer: str, neuron: str) -> None:
        """Inside of it, or before it: whether or not the method needs gradients."""
        with pytest.raises(NotConnected, match=f"the score does not depend on '{layer}'"):
            tp.explain(net, X, method=method, layer=layer, target=Neuron(neuron, 1))

    def test_the_suggested_layer_is_not_after_it(self, net: SplitNet) -> None:
        """Whatever was suggested for another one before."""
        for layer, suggested in [("head", "mix"), ("mix", "mix"), ("prefix.0", "prefix.0"), ("head", "mix")]:
            assert tp.explain(net, X, target=Neuron(layer, 1)).provenance.layer == suggested

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            (Neuron("mixed"), LayerNotFound, "no layer 'mixed' in SplitNet; closest: 'mix'"),
            (
                Neuron("prefix*"),
                AmbiguousCall,
                r"'prefix\*', which selects 3 layers \('prefix', 'prefix.0', 'prefix.1'\)",
            ),
            (Neuron("mix", 6), TargetError, "no channel 6: layer 'mix' has 6, counted from 0"),
            (Neuron("mix", -1), TargetError, "no channel -1"),
            (Neuron("mix", []), TargetError, "give the index of a channel, or a list of these"),
            (Neuron("mix", True), TargetError, "give the index of a channel"),
            (Neuron("mix", "a"), TargetError, "give the index of a channel"),  # type: ignore[arg-type]
            (Neuron("mix", 0, (3, 0)), TargetError, r"position \(3, 0\): layer 'mix' has a grid of 3 x 2"),
            (Neuron("mix", 0, (-1, 0)), TargetError, "has a grid of 3 x 2, counted from 0"),
            (Neuron("mix", 0, 1), TargetError, "position 1: layer 'mix' has a grid of 3 x 2"),
            (Neuron("mix", 0, ("a", 1)), TargetError, "has a grid of 3 x 2"),  # type: ignore[arg-type]
            (Neuron("head", 0, (0,)), TargetError, "layer 'head' has no grid; leave it out"),
            (tp.targets.Contrast(Neuron("mix")), TargetError, "Contrast takes a target that names classes"),
            (tp.targets.ClassProbability(Neuron("mix")), TargetError, "ClassProbability takes a target that names"),
            (tp.targets.ClassLogOdds(Neuron("mix")), TargetError, "ClassLogOdds takes a target that names"),
        ],
    )
    def test_bad_requests(self, net: SplitNet, target: Any, error: type[Exception], message: str) -> None:
        for method in ("gradcam", "ablationcam"):
            with pytest.raises(error, match=message):
                tp.explain(net, X, method=method, layer="prefix", target=target)

    def test_a_position_of_one_axis_may_be_a_number(self) -> None:
        class Signal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.next = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.next(torch.tanh(self.conv(x))).mean(2)

        model, x = Signal().double().eval(), torch.randn(2, 2, 9, dtype=torch.float64)
        maps = [tp.explain(model, x, method="hirescam", layer="conv", target=Neuron("next", 3, at)) for at in (7, (7,))]
        assert torch.equal(maps[0].values, maps[1].values)
        assert not maps[0].values[..., :6].any()  # what a kernel of 3 does not reach
        assert maps[0].values[..., 6:].all()

    def test_a_layer_that_is_not_called(self, net: SplitNet) -> None:
        net.unused = nn.Conv2d(5, 6, 2).double()
        with pytest.raises(NotFired, match="layer 'unused', which the target reads, was not called"):
            tp.explain(net, X, layer="prefix", target=Neuron("unused"))
