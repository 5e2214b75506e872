"""Models with several inputs: the layer that is suggested, or named, depends on the input that is explained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, NotConnected


def encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
    )


class TwoEncoders(nn.Module):
    """The classes of a picture and a depth map, each in an encoder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = encoder(3), encoder(1)
        self.head = nn.Linear(16, 5)

    def forward(self, picture: Tensor, depth: Tensor) -> Tensor:
        return self.head(torch.cat([self.rgb(picture).mean((2, 3)), self.depth(depth).mean((2, 3))], 1))


class Pathways(nn.Module):
    """A list of two pictures, as of a slow and a fast pathway."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = encoder(3), encoder(3)
        self.head = nn.Linear(16, 5)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        slow, fast = self.slow(pathways[0]), self.fast(pathways[1])
        return self.head(torch.cat([slow.mean((2, 3)), fast.mean((2, 3))], 1))


class LearnedPrior(nn.Module):
    """A learned grid that no input reaches weighs the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(3)
        self.prior = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.of_prior = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, picture: Tensor) -> Tensor:
        features = self.encoder(picture).mean((2, 3))
        return self.head(features * self.of_prior(self.prior.expand(len(picture), -1, -1, -1)).mean((2, 3)))


class ClassesOfTwoBranches(nn.Module):
    """Classes 0 to 2 depend on one branch, classes 3 to 5 on another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = encoder(3), encoder(3)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, picture: Tensor) -> Tensor:
        pooled = self.first(picture).mean((2, 3)), self.second(picture).mean((2, 3))
        return torch.cat([head(each) for head, each in zip(self.heads, pooled, strict=True)], 1)


def float64(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights that follow from the seed, and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator).double())
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator).double() + 0.5)
    return model


def rand(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_gradcam(layer: nn.Module, call: Callable[[], Tensor], label: int) -> Tensor:
    """(N, h, w): Grad-CAM of the one call of a layer, by plain autograd."""
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    logits = call()
    handle.remove()
    [activation] = outputs
    (gradient,) = torch.autograd.grad(logits[:, label].sum(), activation)
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).detach()


@pytest.mark.parametrize(("picture", "branch"), [("0", "rgb"), ("1", "depth")])
@pytest.mark.parametrize("count", [1, 3])
def test_each_input_has_the_map_of_its_branch(picture: str, branch: str, count: int) -> None:
    model = float64(TwoEncoders())
    inputs = rand(count, 3, 32, 32), rand(count, 1, 32, 32, seed=2)
    heatmap = tp.explain(model, tp.Arguments(inputs, picture=picture), target=2)
    expected = plain_gradcam(getattr(model, branch), lambda: model(*inputs), 2)
    assert heatmap.provenance.layer.startswith(branch)
    torch.testing.assert_close(heatmap.values[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_the_other_input_of_one_model_asked_in_turn() -> None:
    model = float64(TwoEncoders())
    inputs = rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)
    layers = [tp.explain(model, tp.Arguments(inputs, picture=each)).provenance.layer for each in "0101"]
    assert [layer.partition(".")[0] for layer in layers] == ["rgb", "depth", "rgb", "depth"]


@pytest.mark.parametrize(("picture", "branch"), [("0.0", "slow"), ("0.1", "fast")])
def test_pathways_in_a_list(picture: str, branch: str) -> None:
    model = float64(Pathways())
    pathways = [rand(1, 3, 16, 16), rand(1, 3, 32, 32, seed=2)]
    heatmap = tp.explain(model, tp.Arguments((pathways,), picture=picture), target=1)
    expected = plain_gradcam(getattr(model, branch), lambda: model(pathways), 1)
    torch.testing.assert_close(heatmap.values[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_no_learned_grid_is_suggested() -> None:
    model, picture = float64(LearnedPrior()), rand(2, 3, 32, 32)
    heatmap = tp.explain(model, picture, target=4)
    expected = plain_gradcam(model.encoder, lambda: model(picture), 4)
    torch.testing.assert_close(heatmap.values[:, 0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*maps are exactly zero:torchpeek.errors.Notice")
@pytest.mark.parametrize("method", ["polycam", "refinecam"])
@pytest.mark.parametrize(("picture", "branch"), [("0", "rgb"), ("1", "depth")])
def test_several_layers_are_those_of_the_branch(method: str, picture: str, branch: str) -> None:
    model = float64(TwoEncoders())
    inputs = rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)
    heatmap = tp.explain(model, tp.Arguments(inputs, picture=picture), method=method)
    layers = heatmap.provenance.layer.split(", ")
    assert len(layers) > 1
    assert all(layer.startswith(branch) for layer in layers)


@pytest.mark.filterwarnings("ignore:fullgrad:torchpeek.errors.Notice")  # the pooling is no module
def test_fullgrad_is_of_the_branch_alone() -> None:
    """What the other branch adds to the score changes nothing, be it an input or a constant."""

    class OneInput(nn.Module):
        """The same network, with a constant in the place of what the other branch returns."""

        def __init__(self, model: TwoEncoders, depth: Tensor) -> None:
            super().__init__()
            self.rgb, self.head = model.rgb, model.head
            self.features = model.depth(depth).mean((2, 3)).detach()

        def forward(self, picture: Tensor) -> Tensor:
            return self.head(torch.cat([self.rgb(picture).mean((2, 3)), self.features], 1))

    model = float64(TwoEncoders())
    picture, depth = rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)
    heatmap = tp.explain(model, tp.Arguments((picture, depth), picture="0"), method="fullgrad", target=3)
    alone = tp.explain(OneInput(model, depth), picture, method="fullgrad", target=3)
    torch.testing.assert_close(heatmap.values, alone.values, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("error")  # a notice would say that a part of the score is missing
def test_fullgrad_counts_what_the_other_input_adds() -> None:
    class Modules(TwoEncoders):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.ModuleList([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1)])

        def forward(self, picture: Tensor, depth: Tensor) -> Tensor:
            features = self.pool[0](self.rgb(picture)), self.pool[1](self.depth(depth))
            return self.head(torch.cat(features, 1).flatten(1))

    inputs = rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)
    tp.explain(float64(Modules()), tp.Arguments(inputs, picture="1"), method="fullgrad")


class TestNamedLayers:
    @pytest.mark.parametrize("method", ["gradcam", "eigencam", "scorecam", "ablationcam"])
    def test_a_layer_of_the_other_branch_is_refused(self, method: str) -> None:
        model = float64(TwoEncoders())
        inputs = tp.Arguments((rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)), picture="0")
        for _ in range(2):
            with pytest.raises(
                NotConnected, match=r"layer 'depth' .* does not depend on the picture.*argument '0'.*'1'"
            ):
                tp.explain(model, inputs, layer="depth", method=method)
        assert tp.explain(model, inputs, layer="rgb", method=method).provenance.layer == "rgb"

    def test_one_of_several_is_refused(self) -> None:
        inputs = tp.Arguments((rand(1, 3, 32, 32), rand(1, 1, 32, 32, seed=2)), picture="0")
        with pytest.raises(NotConnected, match="layer 'depth'"):
            tp.trace(float64(TwoEncoders()), inputs, layer=["rgb", "depth"])

    def test_a_learned_grid_is_refused(self) -> None:
        with pytest.raises(NotConnected, match=r"layer 'of_prior'.*leave layer= out"):
            tp.explain(float64(LearnedPrior()), rand(2, 3, 32, 32), layer="of_prior")

    def test_connected_but_zero_is_a_notice(self) -> None:
        """A ReLU that is never positive returns the same for all pictures, and is connected to them."""
        model = float64(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        model[0].bias.data.fill_(-100)
        with pytest.warns(tp.errors.Notice, match="exactly zero everywhere"):
            heatmap = tp.explain(model, rand(1, 3, 8, 8), layer="1", target=0)
        assert not heatmap.values.any()

    def test_one_more_pass_the_first_time_only(self) -> None:
        model, picture, count = float64(LearnedPrior()), rand(2, 3, 32, 32), []
        model.register_forward_hook(lambda *_: count.append(1))
        passes = []
        for _ in range(3):
            count.clear()
            tp.explain(model, picture, layer="encoder")
            passes.append(len(count))
        assert passes == [2, 1, 1]


class TestNothingIsRemembered:
    """What was asked before does not change what is suggested."""

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
    def test_for_another_size(self, name: str) -> None:
        torchvision = pytest.importorskip("torchvision")
        sizes = [4, 224, 32, 224, 64, 32, 4]
        asked_in_turn = torchvision.models.get_model(name, weights=None).eval()
        for size in sizes:
            picture = torch.rand(1, 3, size, size)
            fresh = torchvision.models.get_model(name, weights=None).eval()
            layers = [tp.explain(each, picture).provenance.layer for each in (asked_in_turn, fresh)]
            assert layers[0] == layers[1], size

    @pytest.mark.filterwarnings("ignore:.*maps are exactly zero:torchpeek.errors.Notice")
    @pytest.mark.parametrize("method", ["gradcam", "eigencam"])
    @pytest.mark.parametrize("turn", [(0, 5, 0), (5, 0, 5), (0, [[1, 4]], 4)])
    def test_for_another_class(self, method: str, turn: tuple[object, ...]) -> None:
        asked_in_turn, picture = float64(ClassesOfTwoBranches()), rand(1, 3, 32, 32)
        for target in turn:
            fresh = float64(ClassesOfTwoBranches())
            layers = [
                tp.explain(each, picture, target=target, method=method).provenance.layer
                for each in (asked_in_turn, fresh)
            ]
            assert layers[0] == layers[1], target
            if isinstance(target, int):
                assert layers[0].startswith("first" if target < 3 else "second")

    def test_for_another_value_of_an_argument(self) -> None:
        class Stages(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.head = encoder(3), encoder(8), nn.Linear(8, 5)

            def forward(self, picture: Tensor, stages: int = 2) -> Tensor:
                features = self.first(picture)
                return self.head((self.second(features) if stages == 2 else features).mean((2, 3)))

        model = float64(Stages())
        layers = [
            tp.explain(model, tp.Arguments((rand(1, 3, 32, 32),), {"stages": stages})).provenance.layer
            for stages in (2, 1, 2)
        ]
        assert [layer.partition(".")[0] for layer in layers] == ["second", "first", "second"]


def test_a_layer_of_the_other_branch_is_refused_in_a_training_loss() -> None:
    model = float64(TwoEncoders()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = tp.Arguments((rand(2, 3, 32, 32), rand(2, 1, 32, 32, seed=2)), picture="0")
    with pytest.raises(NotConnected, match="layer 'depth'"):
        tp.trace(model, inputs, layer="depth", create_graph=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tp.trace(model, inputs, layer="rgb", create_graph=True).layer == "rgb"


class Optional(nn.Module):
    """The second input is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, rgb: Tensor, depth: Tensor | None = None) -> Tensor:
        features = self.first(rgb)
        return self.head((features if depth is None else features * self.second(depth)).mean((2, 3)))


class TestListsAndArguments:
    RGB, DEPTH = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)

    def test_a_tuple_where_forward_takes_so_many(self) -> None:
        for pair in ((self.RGB, self.DEPTH), (self.RGB, self.RGB)):
            with pytest.raises(InputError, match=r"a tuple of 2 tensors.* tp.Arguments\(\(rgb, depth\)\) for one call"):
                tp.explain(Optional().eval(), pair)
        assert len(tp.explain(Optional().eval(), [self.RGB, self.RGB])) == 2
        assert tp.explain(Optional().eval(), tp.Arguments((self.RGB, self.DEPTH))).values.shape == (2, 1, 6, 6)

    def test_a_list_that_does_not_fit(self) -> None:
        with pytest.raises(
            InputError, match=r"it has 1 channel.* for one call with these arguments: tp.Arguments\(\(rgb"
        ):
            tp.explain(Optional().eval(), [self.RGB, self.DEPTH])

    def test_a_tuple_for_one_argument_is_a_list(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        assert len(tp.explain(model, (self.RGB, self.RGB))) == 2

    def test_a_keyword_that_forward_takes_by_name_only(self) -> None:
        class Named(Optional):
            def forward(self, rgb: Tensor, *, depth: Tensor) -> Tensor:
                return super().forward(rgb, depth)

        with pytest.raises(InputError, match=r"Next: tp.Arguments\(\(rgb,\), \{'depth': depth\}\)"):
            tp.explain(Named().eval(), tp.Arguments((self.RGB, self.DEPTH)))
        assert tp.explain(Named().eval(), tp.Arguments((self.RGB,), {"depth": self.DEPTH})).values.shape == (2, 1, 6, 6)
        with pytest.raises(InputError, match="it has no argument 'dept'; closest: 'depth'"):
            tp.explain(Named().eval(), {"rgb": self.RGB, "dept": self.DEPTH})

    def test_a_dict_for_a_forward_that_takes_one(self) -> None:
        class OfDict(Optional):
            def forward(self, batch: dict[str, Tensor]) -> Tensor:
                return super().forward(batch["rgb"])

        with pytest.raises(InputError, match=r"if 'batch' is itself a dict, tp.Arguments\(\(inputs,\)\)"):
            tp.explain(OfDict().eval(), {"rgb": self.RGB})
        assert tp.explain(OfDict().eval(), tp.Arguments(({"rgb": self.RGB},))).values.shape == (2, 1, 6, 6)
