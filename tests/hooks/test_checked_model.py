"""What is given in place of a model: each error says what it is, and what to give."""

from __future__ import annotations

import functools
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.errors import InputError, NoSpatialLayer, OptionError

X = torch.rand(1, 3, 8, 8)


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Wrapper:
    """Has a network, and is none."""

    def __init__(self) -> None:
        self.names = {0: "cat"}
        self.model = build()

    def predict(self, x: torch.Tensor) -> Any:
        return self.model(x)


class Pipeline:
    """Has its network in a list of another object."""

    def __init__(self) -> None:
        self.stage = type("Stage", (), {})()
        self.stage.nets = build()


class Slotted:
    __slots__ = ("net",)

    def __init__(self) -> None:
        self.net = build()


class Lazy:
    @property
    def model(self) -> nn.Module:
        return build()


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(build())


def exported() -> Any:
    return torch.export.export(build(), (X,))


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "a spec": (lambda: "torchvision:resnet18", r"Next: load it: tp.load_model\('torchvision:resnet18'\)"),
    "a callable's spec": (lambda: "my.nets:make", r"Next: load it: tp.load_model\('my.nets:make'\)"),
    "a name": (lambda: "resnet18", r"tp.load_model\('torchvision:resnet18'\)"),
    "a checkpoint": (lambda: pathlib.Path("runs/best.pth"), r"weights='runs/best.pth'\), where the callable builds"),
    "a folder": (lambda: pathlib.Path("runs/best"), r"tp.load_model\('hf:runs/best'\)"),
    "a builder": (lambda: build, r"model is a function, build;.*call it: model = build\(...\)"),
    "a partial": (lambda: functools.partial(build), r"call it: model = builder\(...\)"),
    "a class": (lambda: nn.Linear, r"the class Linear itself;.*model = Linear\(...\)"),
    "a method": (lambda: build().forward, r"the method forward of a Sequential;.*give that module itself"),
    "a wrapper": (Wrapper, r"model is a Wrapper, which is no module;.*give its .model, a Sequential"),
    "a wrapper of a wrapper": (Pipeline, r"a Pipeline, which is no module;.*give its .stage.nets, a Sequential"),
    "a wrapper with slots": (Slotted, r"give its .net, a Sequential"),
    "a wrapper with a property": (Lazy, r"give its .model, a Sequential"),
    "what load_state_dict returns": (lambda: build().load_state_dict(build().state_dict()), "give the network itself"),
    "an exported file": (lambda: "net.pt2", r"torch.export.unflatten\(torch.export.load\('net.pt2'\)\)"),
    "its method": (lambda: Wrapper().predict, r"the method predict of a Wrapper;.*give its .model, a Sequential"),
    "an exported program": (exported, r"an ExportedProgram;.*give torch.export.unflatten\(program\)"),
    "a scripted model": (scripted, "a scripted or traced model takes no hooks; give the nn.Module"),
    "weights": (lambda: build().state_dict(), r"an OrderedDict of weights.*load_state_dict\(weights\)"),
    "a file's contents": (
        lambda: {"epoch": 3, "state_dict": build().state_dict()},
        r"network.load_state_dict\(checkpoint\['state_dict'\]\)",
    ),
    "a dict with it": (lambda: {"model": build()}, "give its entry 'model', a Sequential"),
    "two models": (lambda: [build(), build()], "a list of 2;.*give one model at a time"),
    "the inputs": (lambda: X, "a Tensor;.*give the model first, then the inputs"),
    "nothing": (lambda: None, "model is None; allowed: an nn.Module"),
}

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "explain": lambda model: tp.explain(model, X),
    "explain a list": lambda model: tp.explain(model, [X, X]),
    "compare": lambda model: tp.compare(model, X, methods=["gradcam"]),
    "trace": lambda model: tp.trace(model, X),
    "evaluate": lambda model: tp.evaluate(model, X, tp.explain(build(), X, layer="0"), metrics=["deletion"]),
    "record": lambda model: tp.record(model, "0"),
    "edit": lambda model: tp.edit(model, outputs={"0": tp.edits.zero}).__enter__(),
    "layers": tp.layers,
    "kernels": tp.kernels,
    "activations": lambda model: tp.activations(model, X, "0"),
    "statistics": lambda model: tp.statistics(model, [X]),
    "plan": lambda model: tp.plan(model, X),
    "gradient_flow": lambda model: tp.gradient_flow(model, X),
    "check_finite": lambda model: tp.check_finite(model).__enter__(),
    "watch": lambda model: tp.watch(model).__enter__(),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(("make", "message"), CASES.values(), ids=CASES)
def test_says_what_to_give(make: Callable[[], Any], message: str, function: Callable[[Any], Any]) -> None:
    model = make()
    with pytest.raises(InputError, match=message):
        function(model)


@pytest.mark.parametrize("function", ["record", "edit"])
def test_a_loaded_model_where_a_module_is_needed(function: str) -> None:
    with pytest.raises(InputError, match=r"a LoadedModel, which is no module.*give its .module, a Sequential"):
        FUNCTIONS[function](tp.LoadedModel(build()))


def test_a_loaded_model_of_no_module() -> None:
    with pytest.raises(InputError, match=r"tp.load_model\('torchvision:resnet18'\)"):
        tp.LoadedModel("resnet18")  # type: ignore[arg-type]


def test_a_trace_where_the_model_is_needed() -> None:
    with pytest.raises(InputError, match="a Trace, which explain and compare take"):
        tp.layers(tp.trace(build(), X))  # type: ignore[arg-type]


def test_what_is_advised_for_an_exported_program() -> None:
    """It gives the same numbers as the network that was exported; what the other way gives has no layers to hook."""
    torch.manual_seed(0)
    network = build()
    program = torch.export.export(network, (X,))
    values = tp.explain(torch.export.unflatten(program), X, layer="1", target=2).values
    torch.testing.assert_close(values, tp.explain(network, X, layer="1", target=2).values)
    with pytest.raises(tp.errors.NotFired, match=r"torch.export.unflatten\(program\)"):
        tp.explain(program.module(), X, layer="0", target=2)


class TestKeywords:
    @pytest.mark.parametrize(
        ("name", "keyword"),
        [
            ("targets", "target"),
            ("class_idx", "target"),
            ("target_layers", "layer"),
            ("layers", "layer"),
            ("methods", "method"),
            ("smoth", "smooth"),
            ("seeds", "seed"),
        ],
    )
    def test_one_that_is_misspelt(self, name: str, keyword: str) -> None:
        with pytest.raises(OptionError, match=rf"no keyword '{name}'; did you mean {keyword}=\?"):
            tp.explain(build(), X, **{name: 1})

    def test_one_that_is_like_none(self) -> None:
        with pytest.raises(OptionError, match="method 'gradcam' has no option 'foo'; its options: none"):
            tp.explain(build(), X, foo=1)

    def test_the_labels_of_a_batch(self) -> None:
        with pytest.raises(InputError, match="give the pictures alone, and target=labels"):
            tp.explain(build(), [X, torch.tensor([1])])


def test_a_module_without_forward() -> None:
    with pytest.raises(
        InputError, match=r"ModuleList, which has no forward;.*give one of its members \('0'\), or a module"
    ):
        tp.explain(nn.ModuleList([build()]), X)
    assert tp.layers(nn.ModuleList([build()]))  # without inputs, nothing is called


def test_a_network_whose_layers_are_all_scripted() -> None:
    class Outer(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: torch.Tensor) -> Any:
            return self.part(x)

    with pytest.raises(NoSpatialLayer, match=r"'part' is scripted or traced.* such as saliency or rise"):
        tp.explain(Outer(scripted()), X)
    assert tp.explain(Outer(scripted()), X, method="saliency").values.shape == (1, 1, 8, 8)
    with pytest.raises(NoSpatialLayer, match=r"'part' is a graph whose operations are functions"):
        tp.explain(Outer(exported().module()), X)
