"""An exception of the user's code in any pass goes through as it is, in every method, metric and further function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, NotConnected

pytestmark = pytest.mark.filterwarnings("ignore::torchpeek.Notice")
X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
FEW: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 2},
    "integrated-gradients": {"steps": 2},
    "occlusion": {"window": 6, "stride": 6},
    "rise": {"samples": 4},
    "sscam": {"samples": 2},
    "iscam": {"steps": 2},
    "opticam": {"steps": 2},
    "groupcam": {"groups": 2},
    "smoothgradcam++": {"samples": 2},
    "integrated-gradcam": {"steps": 2},
}


class MyError(Exception):
    pass


class MyRuntimeError(RuntimeError):
    pass


class MyInputError(InputError):
    pass


class MyNotConnected(NotConnected):
    pass


CLASSES = [
    MyError,
    MyRuntimeError,
    RuntimeError,
    ValueError,
    MyInputError,
    MyNotConnected,
    TimeoutError,
    MemoryError,
    torch.OutOfMemoryError,
    RecursionError,
    AssertionError,
    NotImplementedError,
    StopIteration,
    asyncio.CancelledError,
    KeyboardInterrupt,
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x).tanh()


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


def network(*, transformer: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if transformer:
        return Transformer().eval()
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 4)).eval()


class Raising:
    """Raises in its call number `call`, from 1; and in all later ones where it goes `on`."""

    def __init__(self, kind: type[BaseException], call: int, *, on: bool) -> None:
        self.kind, self.call, self.on, self.calls = kind, call, on, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.call or (self.on and self.calls > self.call):
            raise self.kind("the user's own")


def add(raising: Raising, model: nn.Module, where: str) -> tp.Target | int:
    """Let a part of the model call it, or the target that is returned."""
    layer: nn.Module = model[2] if isinstance(model, nn.Sequential) else model.blocks[1].mlp
    if where == "a hook":
        layer.register_forward_hook(lambda module, args, output: raising())
    elif where == "forward":

        class Own(type(layer)):
            def forward(self, x: Tensor) -> Tensor:
                raising()
                return super().forward(x)

        layer.__class__ = Own
    elif where == "a gradient":
        layer.register_full_backward_hook(lambda module, inputs, outputs: raising())
    else:

        def scores(output: Tensor, rows: Tensor) -> Tensor:
            raising()
            return output[:, 1]

        return tp.targets.Computed(scores)
    return 1


def state(model: nn.Module) -> list[object]:
    modules = [(name, each.training, *map(len, (each._forward_hooks, each._forward_pre_hooks)), set(each.__dict__))
               for name, each in model.named_modules()]  # fmt: skip
    return [*modules, *((name, each.requires_grad, each.sum().item()) for name, each in model.named_parameters())]


def raised_by(call: Callable[[nn.Module, Any], object], model: nn.Module, target: Any) -> BaseException | None:
    try:
        call(model, target)
    except BaseException as error:
        return error
    return None


def check(
    where: str, call: Callable[[nn.Module, Any], object], *, transformer: bool = False, calls: range | None = None
) -> None:
    """Every exception, in the k-th call of the user's code, goes through, and the model is as found; for every k."""
    kinds = cycle(CLASSES)
    for number in calls or range(1, 200):
        for on in (False, True):
            model, raising = network(transformer=transformer), Raising(next(kinds), number, on=on)
            target = add(raising, model, where)
            before = state(model)
            error = raised_by(call, model, target)
            if error is None:
                assert raising.calls < number, f"{raising.kind.__name__} in call {number} was swallowed"
            else:
                assert type(error) is raising.kind, f"call {number}: {error!r}"
                assert str(error) == "the user's own"
            assert state(model) == before
        if raising.calls < number:
            return
    assert calls, "more calls than expected"


SOME = ["gradcam", "ablationcam", "legrad", "smoothgrad", "opticam", "scorecam"]  # each kind of pass


@pytest.mark.parametrize(
    ("method", "where"),
    [(method, "a hook") for method in tp.METHODS]
    + [(method, where) for method in SOME for where in ("forward", "a gradient", "a target")],
)
def test_methods(method: str, where: str) -> None:
    check(
        where,
        lambda model, target: tp.explain(model, X, method=method, target=target, **FEW.get(method, {})),
        transformer=tp.METHODS[method].needs == "attention",
    )


@pytest.mark.parametrize("metric", tp.METRICS)
def test_metrics(metric: str) -> None:
    boxes = torch.tensor([[1.0, 1, 8, 8], [2, 2, 9, 9]])

    def evaluated(model: nn.Module, target: Any) -> object:
        heatmap = tp.explain(model, X, layer="2", target=target)
        return tp.evaluate(model, X, heatmap, metrics=[metric], boxes=boxes)

    for calls in (range(1, 5), range(8, 9), range(14, 15)):
        check("a hook", evaluated, calls=calls)


OTHERS: dict[str, Callable[[nn.Module, Any], object]] = {
    "rescore": lambda model, target: tp.trace(model, X, target=target).rescore(lambda x, rows, trials: x / 2, 3),
    "ablate": lambda model, target: tp.trace(model, X, layer="0", target=target).ablate(lambda x, *_: x / 2, 3),
    "compare": lambda model, target: tp.compare(model, X, target=target, methods=["gradcam", "ablationcam"]),
    "smoothing": lambda model, target: tp.explain(model, X, target=target, smooth=tp.Smoothing()),
    "a call from the end": lambda model, target: tp.explain(model, X, layer="2[-1]", target=target),
    "arguments": lambda model, target: tp.explain(model, {"input": X}, target=target),
    "activations": lambda model, target: tp.activations(model, X, ["2", "1[-1]"]),
    "layers": lambda model, target: tp.layers(model, X),
    "plan": lambda model, target: tp.plan(model, X),
    "statistics": lambda model, target: tp.statistics(model, [X, X]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("where", ["a hook", "forward"])
def test_other_functions(name: str, where: str) -> None:
    check(where, OTHERS[name])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("function", ["rescore", "ablate"])
def test_the_function_that_changes_the_inputs_or_the_layer(function: str, kind: type[BaseException]) -> None:
    for number in (1, 2):
        raising = Raising(kind, number, on=False)

        def change(values: Tensor, rows: Tensor, trials: Tensor, raising: Raising = raising) -> Tensor:
            raising()
            return values / 2

        trace = tp.trace(network(), X, layer="0", target=1)
        with pytest.raises(kind, match="the user's own"):
            getattr(trace, function)(change, 6, batch=2)
