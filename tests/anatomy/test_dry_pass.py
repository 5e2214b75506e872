"""The dry pass of statistics: what it shows, and whose hooks it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks.several_calls import SharedAct
from torchpeek.anatomy.dry_pass import dry_pass
from torchpeek.engine import as_model_call

PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """The sum of a module and a rectified layer, and a module that returns what the layer inside it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.inner = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + F.relu(self.one(x))


class Scaled(nn.Module):
    """Needs the hook that sets its scale; it returns a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_forward_pre_hook(lambda module, args: setattr(module, "scale", 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.scale * self.two(x)


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda layer, hook: layer.register_forward_hook(hook),
    "forward, always called": lambda layer, hook: layer.register_forward_hook(hook, always_call=True),
    "forward, with keyword arguments": lambda layer, hook: layer.register_forward_hook(hook, with_kwargs=True),
    "before forward": lambda layer, hook: layer.register_forward_pre_hook(hook),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "one layer": {"layers": "act"},
    "a call counted from the end": {"layers": "act[-1]"},
    "an axis": {"layers": "act", "channel_axis": 1},
    "a loss": {"loss": lambda output: output.square().mean()},
}


class TestTheUsersHooks:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
    def test_run_once_for_each_batch(self, register: Callable[..., Any], options: dict[str, Any]) -> None:
        model, sizes = SharedAct(), []
        for layer in (model, model.one):
            register(layer, lambda module, args, *rest: sizes.append(len(args[0])))
        tp.statistics(model, [PICTURES, PICTURES[:3]], **options)
        assert sorted(sizes) == [3, 3, 4, 4]

    def test_run_once_in_a_plan(self) -> None:
        model, sizes = SharedAct(), []
        model.one.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
        tp.plan(model, PICTURES, ["act[-1]"])
        assert sizes == [4]

    def test_a_recording_around_it_has_the_batches_alone(self) -> None:
        model = SharedAct().eval()
        with tp.record(model, "one") as tape:
            tp.statistics(model, [PICTURES, PICTURES])
        assert len(tape["one"]) == 1  # of the latest pass
        assert len(tape["one"].output) == len(PICTURES)

    def test_change_what_is_counted(self) -> None:
        model = SharedAct().eval()
        model.one.register_forward_hook(lambda module, args, output: F.relu(output) + 1)
        found = tp.statistics(model, [PICTURES])
        with torch.no_grad():
            expected = F.relu(F.conv2d(PICTURES, model.one.weight, model.one.bias, padding=1)) + 1
        assert found["one"].output.summary().mean == pytest.approx(float(expected.double().mean()))
        assert not [row.name for row in found if row.name.startswith("one.")]

    def test_of_a_model_that_needs_them(self) -> None:
        found = tp.statistics(Scaled(), [torch.randn(4, 3)])
        assert [row.name for row in found] == ["one", "two"]
        inside = nn.Sequential(Scaled(), nn.Tanh())
        assert [row.name for row in tp.statistics(inside, [torch.randn(4, 3)])] == ["0.one", "0.two", "0", "1"]

    def test_are_left_on_the_model(self) -> None:
        model = SharedAct().train()
        handle = model.one.register_forward_hook(lambda *hook_arguments: None)
        before = {name: dict(module.__dict__) for name, module in model.named_modules()}
        hooks = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
        tp.statistics(model, [PICTURES])
        assert all(module.__dict__ == before[name] for name, module in model.named_modules())
        assert all(dict(module._forward_hooks) == hooks[name] for name, module in model.named_modules())
        handle.remove()


class Passes(nn.Module):
    """Counts its own passes, by the number of samples."""

    sizes: ClassVar[Counter[int]] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        Passes.sizes[len(x)] += 1
        return x


@pytest.mark.parametrize(
    ("options", "extra"),
    [({}, 1), ({"layers": "0"}, 1), ({"channel_axis": 1}, 1), ({"layers": "0", "channel_axis": 1}, 0)],
)
def test_it_is_left_out_where_it_has_nothing_to_decide(options: dict[str, Any], extra: int) -> None:
    Passes.sizes.clear()
    tp.statistics(nn.Sequential(Passes(), nn.Tanh()), [torch.ones(5, 3, 4, 4)], **options)
    assert Passes.sizes == ({5: 1, 2: 1} if extra else {5: 1})


class TestWhatItShows:
    def test_of_sums_and_of_containers(self) -> None:
        model = nn.Sequential(Residual()).eval()
        shown = dry_pass(model, as_model_call(model, PICTURES))
        assert shown is not None
        assert "0" in shown.own_output
        assert "0.inner" in shown.pass_through
        assert shown.functions == {("0", "relu", 0)}
        assert not shown.covered
        assert shown.shapes["0.one", 0, ""] == (2, 3, 8, 8)
        assert shown.shapes["0", 0, "relu()"] == (2, 3, 8, 8)

    def test_an_axis_of_the_batch(self) -> None:
        model = nn.Sequential(nn.Flatten(0, 1)).eval()
        shown = dry_pass(model, as_model_call(model, torch.randn(5, 3, 4), any_tensor=True))
        assert shown is not None
        assert shown.batch_axes(("0", 0, ""), (15, 4)) == {0}
        assert shown.batch_axes(("0", 0, ""), (15, 4, 1)) == set()

    def test_a_model_of_one_batch_size(self) -> None:
        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.view(4, 3, 64).sum(-1)

        model, ran = Fixed(), []
        model.register_forward_hook(lambda module, args, output: ran.append(len(output)))
        assert dry_pass(model, as_model_call(model, PICTURES)) is None
        assert ran == []
