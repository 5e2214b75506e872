"""A scripted or traced part inside an eager model: every other layer works, and the model is left as found."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, Notice

X = torch.rand(2, 3, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Counting(nn.Module):
    """Counts its calls in a buffer that it writes into, and in one that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.written.add_(1)
        self.replaced = self.replaced + 1
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.middle = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Counting()
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.fixture
def eager() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def compiled(eager: Net, how: str) -> Net:
    model = copy.deepcopy(eager)
    part: Any = model.middle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "traced":
            part = torch.jit.trace(part, torch.rand(2, 8, 12, 12, dtype=torch.float64), check_trace=False)
        elif how == "frozen":  # keeps no modes and no buffers
            part = torch.jit.freeze(torch.jit.script(nn.Sequential(part.conv, part.norm, nn.ReLU()).eval()))
        else:
            part = torch.jit.script(part)
    model.middle = part
    return model


@pytest.fixture(params=["scripted", "traced", "frozen"])
def model(request: pytest.FixtureRequest, eager: Net) -> Net:
    return compiled(eager, request.param)


@pytest.mark.parametrize("layer", ["stem", "norm", "last"])
@pytest.mark.parametrize(
    "method", ["gradcam", "layercam", "eigencam", "scorecam", "ablationcam", "smoothgradcam++", "opticam"]
)
@pytest.mark.filterwarnings("ignore:eigencam at")
def test_other_layers_give_the_maps_of_the_eager_model(eager: Net, model: Net, layer: str, method: str) -> None:
    got = tp.explain(model, X, layer=layer, method=method, target=1)
    expected = tp.explain(eager, X, layer=layer, method=method, target=1)
    torch.testing.assert_close(got.values, expected.values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.scores, expected.scores)


def test_the_suggested_layer_is_one_that_takes_hooks(eager: Net, model: Net) -> None:
    assert tp.explain(model, X).provenance.layer == "last"
    torch.testing.assert_close(tp.explain(model, X, target=1).values, tp.explain(eager, X, target=1).values)


@pytest.mark.parametrize("layer", ["middle", "middle.conv", ["last", "middle"]])
def test_a_layer_inside_is_refused(eager: Net, layer: Any) -> None:
    model = compiled(eager, "scripted")
    for function in (
        lambda: tp.explain(model, X, layer=layer),
        lambda: tp.record(model, layer),
        lambda: tp.activations(model, X, layer),
        lambda: tp.edit(model, outputs={layer if isinstance(layer, str) else tuple(layer): tp.edits.zero}).__enter__(),
    ):
        with pytest.raises(InputError, match=r"layer 'middle\S*' is scripted or traced, so it takes no hooks"):
            function()


FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "layers": lambda model: tp.layers(model, X).suggested,
    "kernels": lambda model: tp.kernels(model),
    "activations": lambda model: tp.activations(model, X, ["stem", "last"]),
    "evaluate": lambda model: (
        tp.evaluate(model, X, tp.explain(model, X, layer="last", target=1), metrics={"deletion": {"steps": 3}})[
            "deletion"
        ].values
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_other_functions(eager: Net, function: Callable[[nn.Module], Any]) -> None:
    got, expected = function(compiled(eager, "scripted")), function(eager)
    if isinstance(expected, dict):
        expected = {name: each for name, each in expected.items() if not name.startswith("middle")}
    torch.testing.assert_close(got, expected) if isinstance(expected, Tensor) else None
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_what_goes_over_all_layers_says_which_it_leaves_out(eager: Net) -> None:
    model = compiled(eager, "scripted")
    left_out = "take no hooks and are left out: 'middle', 'middle.conv', 'middle.norm'"
    with pytest.warns(Notice, match=left_out), tp.record(model, "*") as tape:
        model(X)
    assert list(tape) == ["stem", "norm", "last", "head"]
    with pytest.warns(Notice, match="are left out"):
        rows = [row.layer for row in tp.plan(model, X)]
    assert rows == ["stem", "norm", "last", "head"]
    with pytest.warns(Notice, match="are left out"):
        assert [row.name for row in tp.statistics(model, [X])] == ["stem", "norm", "last", "head"]
    with pytest.warns(Notice, match="their parameters are left out"):
        flow = tp.gradient_flow(model, X, 1)
    assert {row.layer for row in flow} == {"stem", "norm", "last", "head"}


def test_fullgrad_says_that_a_part_is_missing(eager: Net) -> None:
    with pytest.warns(Notice, match="scripted"):
        tp.explain(compiled(eager, "scripted"), X, method="fullgrad", target=1)


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_the_model_is_left_as_found(eager: Net, how: str) -> None:
    """Also in train mode, and where the part replaces its buffers; and after an exception."""
    model = compiled(eager, how).train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    tp.explain(model, X, layer="last")
    with pytest.raises(InputError):
        tp.explain(model, X[:, :1], layer="last")
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert {name: torch.equal(each, after[name]) for name, each in before.items()} == dict.fromkeys(before, True)


def test_a_model_that_is_scripted_as_a_whole(eager: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = torch.jit.trace(eager, X)
    with pytest.raises(InputError, match=r"a scripted or traced model takes no hooks; give the nn.Module"):
        tp.explain(whole, X)
