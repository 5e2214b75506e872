"""activations: what layers return, from a forward pass that stops after the last of them."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import InPlaceNet, PooledNet, Shared
from networks.several_calls import SharedAct
from torchpeek.errors import AmbiguousCall, LayerNotFound, NotFired


class TestActivations:
    def test_are_what_the_layers_return(self) -> None:
        model, x = InPlaceNet().eval(), torch.randn(2, 3, 8, 8)
        found = tp.activations(model, x, nn.Conv2d)
        for name, activation in found.items():
            kept: list[Tensor] = []
            handle = model.get_submodule(name).register_forward_hook(lambda m, a, out, k=kept: k.append(out.clone()))
            with torch.no_grad():
                model(x)
            handle.remove()
            assert torch.equal(activation, kept[0]), name

    def test_nothing_runs_after_the_last_layer_asked_for(self) -> None:
        model, ran = PooledNet().eval(), []
        model.head.register_forward_hook(lambda *given: ran.append("head"))
        model.act.register_forward_hook(lambda *given: ran.append("act"))
        tp.activations(model, torch.randn(1, 3, 4, 4), ["features.2", "features.0"])
        assert ran == []

    def test_a_tail_that_cannot_run_does_not_matter(self) -> None:
        """A head that is made for another size, say."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
        assert tp.activations(model, torch.randn(1, 3, 9, 9), "0")["0"].shape == (1, 4, 7, 7)

    def test_of_alexnet(self) -> None:
        from torchvision.models import alexnet

        found = tp.activations(alexnet(), torch.randn(1, 3, 224, 224), nn.Conv2d)
        assert [tuple(each.shape[1:]) for each in found.values()] == [
            (64, 55, 55),
            (192, 27, 27),
            (384, 13, 13),
            (256, 13, 13),
            (256, 13, 13),
        ]

    def test_refusals(self) -> None:
        x = torch.randn(1, 3, 12, 12)
        with pytest.raises(NotFired, match="'unused'"):
            tp.activations(Shared(), x, ["one", "unused"])
        with pytest.raises(AmbiguousCall, match="2 times"):
            tp.activations(Shared(), x, ["act", "two", "unused"])
        with pytest.raises(LayerNotFound, match="closest: 'one'"):
            tp.activations(Shared(), x, "ones")


class Reused(nn.Module):
    """A layer with weights that is called twice, and a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x)
        return self.head(self.stem(x))


def _apply(model: nn.Module, x: Tensor) -> Tensor:
    return model.act(x)


def _twice(function, x: Tensor) -> Tensor:
    return function(function(x))


def _recursively(model: nn.Module, x: Tensor, depth: int = 2) -> Tensor:
    return model.act(x) if depth == 0 else _recursively(model, model.act(x), depth - 1)


SPELLINGS = {
    "local name": lambda model, x: [act := model.act, act(act(x))][1],
    "helper function": lambda model, x: _apply(model, model.act(x)),
    "function of a layer": lambda model, x: _twice(model.act, x),
    "partial": lambda model, x: _twice(functools.partial(model.act), x),
    "map": lambda model, x: sum(map(model.act, [x, x + 1])),
    "comprehension": lambda model, x: sum([model.act(x) for _ in range(3)]),
    "attrgetter": lambda model, x: operator.attrgetter("act")(model)(model.act(x)),
    "recursion": _recursively,
    "list that is no child": lambda model, x: model.act(model.others[0](x)),
    "children": lambda model, x: next(layer(layer(x)) for layer in model.children()),
    "the model itself": lambda model, x: model(model.act(x)[None]) if x.ndim < 4 else model.act(x),
    "checkpoint": lambda model, x: model.act(checkpoint(model.act, x, use_reentrant=False)),
}


class Spelled(nn.Module):
    """Calls its one layer several times, in one of many ways."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.act, self.spelling = nn.Tanh(), spelling
        self.others = (self.act,)

    def forward(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.spelling](self, x)


class TestSeveralCalls:
    @pytest.mark.parametrize(("layer", "calls"), [("stem", 2), ("again", 3)])
    def test_a_layer_that_is_called_again_has_no_one_output(self, layer: str, calls: int) -> None:
        model, x = Reused(), torch.randn(4, 3)
        for selection in (layer, [layer, "head"], nn.Linear, "*"):
            with pytest.raises(AmbiguousCall, match=r"times in one pass.*Next: choose a call"):
                tp.activations(model, x, selection)
        with pytest.raises(AmbiguousCall, match=rf"called {calls} times.*'{layer}\[0\]'"):
            tp.activations(model, x, layer)
        with tp.record(model.eval(), layer) as tape, torch.no_grad():
            model(x)
        for call in (0, calls - 1, -1):
            name = f"{layer}[{call}]"
            assert torch.equal(tp.activations(model, x, name)[name], tape[layer][call].output)
        assert list(tp.activations(model, x, "head")) == ["head"]

    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_however_the_calls_are_spelled(self, spelling: str) -> None:
        model, x = Spelled(spelling), torch.randn(4, 3)
        with tp.record(model, "act") as tape, torch.no_grad():
            model(x)
        assert len(tape["act"]) > 1
        with pytest.raises(AmbiguousCall, match=f"called {len(tape['act'])} times"):
            tp.activations(model, x, "act")

    def test_looking_for_later_calls_leaves_everything_as_it_was(self) -> None:
        model, ran = Reused().train(), []
        model.head.register_forward_hook(lambda *hook_arguments: ran.append("head"))
        before = {name: dict(module.__dict__) for name, module in model.named_modules()}
        with pytest.raises(AmbiguousCall):
            tp.activations(model, torch.randn(4, 3), "stem")
        assert ran == []
        assert all(module.__dict__ == before[name] for name, module in model.named_modules())
        assert model.training

    def test_the_second_time_nothing_more_runs(self) -> None:
        class Counts(nn.Linear):
            ran = 0

            def forward(self, x: Tensor) -> Tensor:
                Counts.ran += 1
                return super().forward(x)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(3, 3), Counts(3, 3)])

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x = layer(x)
                return x

        model = Net()
        for _ in range(3):
            tp.activations(model, torch.randn(4, 3), "layers.0")
        assert Counts.ran == 1

    def test_a_tail_that_cannot_run_after_a_second_call(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act, self.tail = nn.ReLU(), nn.Linear(7, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.tail(self.act(self.act(x) - 1))

        with pytest.raises(AmbiguousCall, match="2 times"):
            tp.activations(Net(), torch.randn(1, 3), "act")


class TestOneCall:
    def test_each_call(self) -> None:
        model, x = SharedAct().eval(), torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            first = model.act(model.one(x))
            second = model.act(model.two(first))
            third = model.act(second + model.three(second))
        names = ["act[0]", "act[1]", "act[2]", "act[-1]", "act[-3]"]
        found = tp.activations(model, x, names)
        assert list(found) == names
        for name, expected in zip(names, (first, second, third, third, first), strict=True):
            torch.testing.assert_close(found[name], expected)

    def test_nothing_runs_after_the_call(self) -> None:
        model, ran = SharedAct().eval(), []
        model.three.register_forward_hook(lambda *hook_arguments: ran.append("three"))
        assert tp.activations(model, torch.randn(1, 3, 8, 8), "act[1]")["act[1]"].shape == (1, 6, 4, 4)
        assert ran == []

    def test_a_call_that_does_not_exist(self) -> None:
        for call in (3, -4):
            with pytest.raises(NotFired, match=r"called 3 times.*'act\[0\]' to 'act\[2\]'"):
                tp.activations(SharedAct(), torch.randn(1, 3, 8, 8), f"act[{call}]")


def test_a_model_that_needs_its_hooks() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = nn.Tanh(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.once(x * self.scale))
            return self.twice(x - 1)

    model = Hooked()
    model.register_forward_pre_hook(lambda module, args: setattr(module, "scale", 2))
    x = torch.rand(2, 3)
    assert torch.equal(tp.activations(model, x, "once")["once"], torch.tanh(2 * x))
    assert torch.equal(tp.activations(model, x, "twice[1]")["twice[1]"], torch.relu(torch.tanh(2 * x) - 1))
    with pytest.raises(AmbiguousCall, match="twice"):
        tp.activations(model, x, "twice")
