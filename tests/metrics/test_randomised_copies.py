"""randomisation of models whose copies refer to the original: a right number, or a refusal, and the model as found."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import state_of
from torchpeek.errors import InputError, MetricNotApplicable, Notice

METRIC = {"randomisation": {"stages": 3}}
X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers with batch normalisation between them, a dropout, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.plain_norm = nn.BatchNorm2d(5, affine=False)
        self.second = nn.Conv2d(5, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def body(self, x: Tensor) -> Tensor:
        return F.softplus(self.second(self.plain_norm(self.norm(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x)).mean((2, 3)))


def network() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 9, 8).double() * 2 + 1)  # running statistics other than the first ones
    return net


def measured(model: nn.Module, x: Tensor = X) -> Tensor:
    heatmap = tp.explain(model, x, method="hirescam", layer="second", target=1)
    return tp.evaluate(model, x, heatmap, metrics=METRIC)["randomisation"].values


def by_hand() -> Tensor:
    """From a network whose parameters are written from the numbers of a fresh generator, module by module."""
    model, drawn = network().eval(), torch.Generator().manual_seed(0)
    first, totals = hirescam(model), np.zeros(2)
    for stage in ([model.head], [model.second, model.norm], [model.first]):  # four modules in three stages
        for module in stage:
            for parameter in (module.weight, module.bias):
                values = parameter.detach().numpy()
                normal = torch.randn(parameter.shape, generator=drawn, dtype=torch.float64).numpy()
                spread = values.std() if values.std() > 0 else 0.1 * (abs(values.mean()) or 1)
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(values.mean() + normal * spread))
        totals += [abs(spearman(a, b)) for a, b in zip(first, hirescam(model), strict=True)]
    return torch.from_numpy(totals / 3)[:, None]


def hirescam(model: Net) -> np.ndarray:
    a = model.body(X).detach()
    inner = torch.log(torch.expm1(a)).requires_grad_()  # what the layer returns, before softplus
    (g,) = torch.autograd.grad(model.head(F.softplus(inner).mean((2, 3)))[:, 1].sum(), inner)
    return (inner * g).sum(1).flatten(1).detach().numpy()


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return forward


class Timed:
    """A callable object in place of forward, as wrappers of other libraries have."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)


def patched(module: nn.Module, *args: Any) -> Any:
    return module._old_forward(*args)


def accelerated(module: nn.Module) -> None:
    module._old_forward = module.forward
    module.forward = functools.update_wrapper(functools.partial(patched, module), module._old_forward)


def set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward


class Adapter(nn.Module):
    """A layer beside frozen weights, as parameter-efficient fine-tuning has it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.list = [base]

    def forward(self, x: Tensor) -> Tensor:
        return self.list[0](x)


# What deepcopy copies rightly: the number is the one of the network without it.
COPIED: dict[str, Callable[[Net], object]] = {
    "nothing": lambda net: None,
    "bound method": lambda net: set_forward(net.second, MethodType(nn.Conv2d.forward, net.second)),
    "bound method of the whole": lambda net: set_forward(net, net.forward),
    "partial of a bound method": lambda net: set_forward(net.second, functools.partial(net.second.forward)),
    "partial of weights": lambda net: set_forward(
        net.second, functools.partial(F.conv2d, weight=net.second.weight, bias=net.second.bias)
    ),
    "accelerate": lambda net: accelerated(net.second),
    "callable object": lambda net: set_forward(net.second, Timed(net.second.forward)),
    "list of modules": lambda net: setattr(net, "all", [net.second, {"head": net.head}]),
    "adapter": lambda net: setattr(net, "first", Adapter(net.first)),
    "hook that logs": lambda net: net.second.register_forward_hook(lambda module, args, out: None),
    "hook of an object": lambda net: net.second.register_forward_hook(functools.partial(_doubled, net.head)),
}


def _doubled(head: nn.Module, module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + 0 * head.weight.sum()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("form", COPIED)
def test_copied_rightly(form: str, training: bool) -> None:
    model = network().train(training)
    COPIED[form](model)
    before = state_of(model)
    torch.testing.assert_close(measured(model), by_hand(), rtol=1e-6, atol=1e-8)
    assert state_of(model) == before


def _closing_over(name: str) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        module = net.get_submodule(name)
        own = module.forward
        module.forward = lambda *args: own(*args)

    return change


def _weak(net: Net) -> None:
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = weakref.ref(parent)

        def forward(self, x: Tensor) -> Tensor:
            return self.parent().other(x)

    net.other, net.second = net.second, Child(net)


class Uncopied(nn.Conv2d):
    """Copies of it are the module itself, as of a singleton."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        return self


class Sharing(nn.Conv2d):
    """Copies of it are modules of their own, with the same parameters."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharing:
        copied = self.__new__(type(self))
        copied.__dict__ = {**self.__dict__, "_parameters": dict(self._parameters)}
        return copied


class Viewing(nn.Conv2d):
    """Copies of it have parameters of their own in the memory of the original's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Conv2d:
        copied = nn.utils.skip_init(nn.Conv2d, 5, 4, 3, dtype=torch.float64)
        copied.weight.data, copied.bias.data = self.weight.data, self.bias.data
        return copied


def _of_class(kind: type[nn.Module]) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.second.__class__ = kind

    return change


def _unregistered(net: Net) -> None:
    norm = nn.BatchNorm2d(5).double()
    net.holder = [norm]
    net.norm.register_forward_hook(lambda module, args, out: norm(out))


REFUSED: dict[str, tuple[Callable[[Net], object], str]] = {
    "closure over the layer": (_closing_over("second"), "reads the model's own 'second.weight'"),
    "closure over batch normalisation": (_closing_over("norm"), "reads the model's own 'norm.weight'"),
    "closure over normalisation without weights": (_closing_over("plain_norm"), "training mode"),
    "closure over dropout": (_closing_over("drop"), "training mode"),
    "closure over the whole": (
        lambda net: set_forward(net, wrapped(net.forward)),
        "reads the model's own 'first.weight'",
    ),
    "decorated": (lambda net: set_forward(net.second, wrapped(net.second.forward)), "'second.weight'"),
    "no_grad": (lambda net: set_forward(net.second, torch.no_grad()(net.second.forward)), "'second.weight'"),
    "lambda over the weight": (
        lambda net: set_forward(net.second, lambda x, w=net.second.weight: F.conv2d(x, w)),
        "'second.weight'",
    ),
    "numbers of the weight": (
        lambda net: set_forward(net.second, lambda x: F.conv2d(x, net.second.weight.data.clone())),
        "'second.weight'",
    ),
    "hook": (
        lambda net: net.second.register_forward_hook(lambda module, args, out: out * net.head.weight.mean()),
        "'head.weight'",
    ),
    "pre-hook that runs a layer": (
        lambda net: net.second.register_forward_pre_hook(lambda module, args: (net.norm(args[0]),)),
        "'norm.weight'",
    ),
    "other module of the original": (
        lambda net: set_forward(net.drop, lambda pooled, norm=net.norm: norm(F.pad(pooled, (0, 0, 0, 0, 0, 1)))[:, :4]),
        "'norm.weight'",
    ),
    "hook that needs all samples": (
        lambda net: net.register_forward_hook(
            lambda module, args, out: out * net.head.weight.mean() if float(args[0].sum()) == float(X.sum()) else out
        ),
        "'head.weight'",
    ),
    "weak reference": (_weak, "'other.weight'"),
    "unregistered layer that counts": (_unregistered, "writes into the model's own 'BatchNorm2d."),
    "a copy that is the module itself": (_of_class(Uncopied), "has the very parameters of the model: 'second.weight'"),
    "a copy with the parameters": (_of_class(Sharing), "has the very parameters of the model: 'second.weight'"),
    "a copy in the same memory": (_of_class(Viewing), "has the very parameters of the model: 'second.weight'"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused_by_name(form: str) -> None:
    model = network()
    change, text = REFUSED[form]
    change(model)
    heatmap = tp.explain(model, X, method="hirescam", layer="second", target=1)
    before = state_of(model)
    with pytest.raises(MetricNotApplicable, match="randomisation changes a copy") as caught:
        tp.evaluate(model, X, heatmap, metrics=METRIC)
    assert text in str(caught.value)
    assert "Next: " in str(caught.value)
    assert state_of(model) == before


def test_a_scripted_traced_or_compiled_part_is_copied() -> None:
    for change in (torch.jit.script, lambda head: torch.jit.trace(head, torch.rand(1, 4).double())):
        model = network().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates scripting
            model.head = change(model.head)
        torch.testing.assert_close(measured(model), by_hand(), rtol=1e-6, atol=1e-8)
    for compiled in ("model", "module", "part"):
        model: Any = network()
        if compiled == "model":
            model = torch.compile(model, backend="eager")
        elif compiled == "module":
            model.second.compile(backend="eager")
        else:
            model.head = torch.compile(model.head, backend="eager")
        torch.testing.assert_close(measured(model), by_hand(), rtol=1e-6, atol=1e-8)


def test_the_modes_of_the_caller() -> None:
    model, expected = network(), by_hand()
    with torch.inference_mode():
        torch.testing.assert_close(measured(model), expected, rtol=1e-6, atol=1e-8)
    model.requires_grad_(False)
    torch.testing.assert_close(measured(model), expected, rtol=1e-6, atol=1e-8)
    _closing_over("second")(model)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(MetricNotApplicable, match=r"second\.weight"):
        measured(model.float(), X.float())


def test_a_model_that_cannot_be_copied() -> None:
    class Locked(Net):
        def __init__(self, error: type[Exception]) -> None:
            super().__init__()
            self.error = error

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise self.error("held")

    with pytest.raises(MetricNotApplicable, match="randomisation changes a copy of the model, but Locked cannot be"):
        measured(Locked(TypeError).double())
    for error in (TimeoutError, MemoryError):
        with pytest.raises(error, match="held"):
            measured(Locked(error).double())


def test_layers_that_no_change_reaches_are_named() -> None:
    class Cached(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "cache"):
                self.cache = self.weight.detach().clone()
            return F.conv2d(x, self.cache, self.bias)

    model = network()
    model.second.__class__ = Cached
    model(X)  # the user's own pass stores it; that of a pass of torchpeek is taken back
    with pytest.warns(Notice, match="without reading its parameters 'second.weight'"):
        measured(model)

    class Aliased(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.alias, self.bias)

    model = network()
    model.second.__class__ = Aliased
    model.second.alias = model.second.weight.data  # a copy of the model has two tensors in place of one
    with pytest.warns(Notice, match="without reading its parameters 'second.weight'"):
        measured(model)
    model = network()
    head = [model.head]
    del model.head
    object.__setattr__(model, "head", head[0])
    with pytest.warns(Notice, match=r"parameters of the shapes \(3, 4\), \(3,\) that are not among its parameters"):
        measured(model)


def test_explain_that_ignores_its_module() -> None:
    model = network()
    heatmap = tp.explain(model, X, method="hirescam", layer="second", target=1)

    def found(explain: Callable[..., Any]) -> Tensor:
        return tp.evaluate(model, X, heatmap, metrics=METRIC, explain=explain)["randomisation"].values

    def again(module: nn.Module, inputs: Tensor) -> tp.Heatmap:
        return tp.explain(module, inputs, method="hirescam", layer="second", target=1)

    torch.testing.assert_close(found(lambda module, inputs, question: again(module, inputs)), by_hand())
    with pytest.raises(InputError, match="explain ran the model that is evaluated, and not the module"):
        found(lambda module, inputs, question: again(model, inputs))
    # It may compare the two.
    torch.testing.assert_close(found(lambda m, x, q: (again(model, x), again(m, x))[1]), by_hand())
    assert bool((found(lambda m, x, q: heatmap.values) > 0.999).all())


def test_buffers_that_a_closure_writes() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

    torch.manual_seed(0)
    model = Counting().double()
    model.register_forward_pre_hook(lambda module, args: model.calls.add_(1) and None)
    before = state_of(model)
    with pytest.raises(MetricNotApplicable, match="writes into the model's own 'calls'"):
        measured(model)
    assert state_of(model) == before
