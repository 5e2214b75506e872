"""A contract: every public function handles every format of tensor, or refuses it by name, never with torch's error."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from tensor_formats import FORMATS, FormatNet, same

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(prototype|beta state|deprecated|quantize_per|TypedStorage|non-leaf|data_ptr|not writable|ComplexHalf)"
)
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


def network(name: str) -> FormatNet:
    return FormatNet(FORMATS[name]).eval()


def recorded(model: nn.Module, **options: Any) -> tp.hooks.Recording:  # type: ignore[name-defined]
    with tp.record(model, ["layer", "next"], inputs=True, **options) as tape:
        model(X)
    return tape


def _read(model: nn.Module, **options: Any) -> None:
    tape = recorded(model, **options)
    for shown in (tape, tape["layer"], tape["layer"][0]):
        assert repr(shown)
        assert shown._repr_html_()
    assert tape.nbytes >= 0
    assert tape["layer"].output is not None
    assert tape["next"].input is not None


def _gradients(model: nn.Module) -> None:
    with tp.record(model, ["layer", "next"], inputs=True, gradients=True) as tape:
        model(X).sum().backward()
    assert tape["next"].grad_output is None
    assert repr(tape)


def _edited(change: Callable[[Tensor], Tensor], part: str = "outputs") -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        with tp.edit(model, **{part: {"layer" if part == "outputs" else "next": change}}):
            model(X)

    return run


def _patched(model: nn.Module) -> None:
    _edited(tp.edits.patch(recorded(model)["layer"]))(model)


def _checked(model: nn.Module) -> None:
    with tp.check_finite(model):
        model(X).sum().backward()


def _statistics(model: nn.Module) -> None:
    found = tp.statistics(model, [X, X])
    assert {"conv", "head"} <= {row.name for row in found if row.output is not None}  # the others cost nothing
    assert str(found)


def _statistics_with_gradients(model: nn.Module) -> None:
    tp.statistics(model, [(X, torch.tensor([0, 1]))], loss=nn.functional.cross_entropy)


def _streamed(model: nn.Module) -> None:
    stream = tp.TensorStream(Path(tempfile.mkdtemp()) / "stream")
    with tp.record(model, "layer", keep=tp.keep.Callback(stream)):
        model(X)
    assert len(list(stream.read("layer"))) == 1


def _output(model: Any) -> Tensor:
    returned: Tensor = model.layer(model.conv(X))
    return returned


def _recorded_gradient(model: nn.Module) -> None:
    with tp.record_gradients(tensor=_output(model)) as gradients:
        pass
    assert gradients["tensor"] is None


FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "record": _read,
    "record, clone": lambda model: _read(model, snapshot="clone"),
    "record, alias": lambda model: _read(model, snapshot="alias"),
    "record, max_bytes": lambda model: _read(model, max_bytes=0),
    "record, gradients": _gradients,
    "keep.gap": lambda model: _read(model, keep=tp.keep.gap),
    "keep.Running": lambda model: _read(model, keep=tp.keep.Running()),
    "keep.Stored dtype": lambda model: _read(model, keep=tp.keep.Stored(dtype=torch.float16)),
    "keep.Stored device": lambda model: _read(model, keep=tp.keep.Stored(device="cpu", clone=True)),
    "keep.Callback": _streamed,
    "edits.zero": _edited(tp.edits.zero()),
    "edits.zero channels": _edited(tp.edits.zero(channels=[0], axis=-1)),
    "edits.scale": _edited(tp.edits.scale(2.0)),
    "edits.scale channels": _edited(tp.edits.scale(2.0, channels=[0])),
    "edits.scale of an input": _edited(tp.edits.scale(2.0), "inputs"),
    "edits.patch": _patched,
    "record_gradients": _recorded_gradient,
    "edit_gradient": lambda model: tp.edit_gradient(_output(model), lambda gradient: gradient).remove(),
    "check_finite": _checked,
    "statistics": _statistics,
    "statistics, loss": _statistics_with_gradients,
    "activations": lambda model: str(tp.activations(model, X, ["layer", "next"])),
    "layers": lambda model: str(tp.layers(model, X)),
    "plan": lambda model: str(tp.plan(model, X)),
    "gradient_flow": lambda model: tp.gradient_flow(model, X, torch.tensor([0, 1])),
    "feature_grid": lambda model: tp.render.feature_grid(tp.activations(model, X[:1], "layer")["layer"]),
    "kernel_grid": lambda model: tp.render.kernel_grid(tp.activations(model, X, "layer")["layer"]),
    "trace there": lambda model: tp.trace(model, X, layer="layer", gradients=False),
    "explain": lambda model: tp.explain(model, X),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::torchpeek.errors.Notice")
def test_handled_or_refused_by_name(name: str, function: str) -> None:
    model = network(name)
    if name in REFUSED.get(function, ()):
        with pytest.raises(tp.TorchpeekError, match=r".{40}"):
            FUNCTIONS[function](model)
    else:
        FUNCTIONS[function](model)
    assert not model.layer._forward_hooks


# Function -> the formats that it refuses; it handles every other one. A change of this table is a decision.
_NESTED = {"nested strided", "nested jagged"}
_COMPRESSED = {"sparse CSR", "sparse CSC", "sparse BSR", "sparse BSC"}
_SPARSE = {"sparse COO", "sparse hybrid", *_COMPRESSED}
_QUANTISED = {"quint8", "qint8", "qint32", "qint8 per channel"}
_COMPLEX = {"complex64", "complex128", "complex32", "conjugate"}
_INTEGER = {"bool", "int8", "int64", "uint8", "uint16", "uint32", "uint64"}
_WITHOUT_VALUES = {"fake", "meta"}
_WITHOUT_GRADIENT = {*_QUANTISED, *_INTEGER, *_WITHOUT_VALUES, "inference", "oneDNN"}
_NO_PICTURE = {*_NESTED, *_COMPLEX, *_WITHOUT_VALUES, "no elements", "no samples", "a number"}
REFUSED: dict[str, set[str]] = {
    "keep.gap": _NESTED,  # of tokens, whose number varies
    "keep.Running": {*_COMPLEX, *_WITHOUT_VALUES},
    "keep.Stored device": {"meta"},
    "keep.Callback": {  # what safetensors cannot hold
        *_NESTED,
        *_SPARSE,
        *_QUANTISED,
        *_WITHOUT_VALUES,
        "complex128",
        "complex32",
        "oneDNN",
    },
    "edits.zero channels": {"a number"},
    "edits.scale channels": {*_NESTED, "a number"},  # they have no such axis, or not of one length
    "record_gradients": _WITHOUT_GRADIENT,
    "edit_gradient": _WITHOUT_GRADIENT,
    "feature_grid": {*_NO_PICTURE, *_COMPRESSED},  # matrices
    "kernel_grid": _NO_PICTURE,
    "trace there": {*_NO_PICTURE, *_SPARSE, *_QUANTISED, *_INTEGER, "oneDNN"},
}


@pytest.mark.parametrize("way", ["read", "pickle", "deepcopy", "file"])
@pytest.mark.filterwarnings("ignore::torchpeek.errors.Notice")
def test_a_recorded_tensor_is_that_of_the_layer(name: str, way: str) -> None:
    model = network(name)
    tape = recorded(model, max_bytes=0 if way == "file" else None)
    read: Any = {"pickle": lambda: pickle.loads(pickle.dumps(tape)), "deepcopy": lambda: copy.deepcopy(tape)}.get(
        way, lambda: tape
    )()
    expected = _output(model)
    if name == "fake" and way in ("pickle", "deepcopy"):  # a copy has the shape and the dtype
        assert read["layer"].output.is_meta
    for got in (read["layer"].output, read["next"].input):
        if name == "fake":
            assert got.shape == expected.shape
        else:
            assert same(got, expected)
            assert name != "subclass" or type(got) is type(expected)
    if way == "file" and name != "oneDNN":
        assert tape.nbytes == 0


@pytest.mark.parametrize("edit", ["scale", "patch"])
def test_edits_that_change_nothing(name: str, edit: str) -> None:
    if name in _WITHOUT_VALUES or (edit == "scale" and name in _INTEGER):
        pytest.skip("integers become floating-point numbers, and what has no values cannot be compared")
    model = network(name)
    expected = _output(model)
    change = tp.edits.scale(1.0) if edit == "scale" else tp.edits.patch(recorded(model)["layer"])
    with tp.edit(model, outputs={"layer": change}), tp.record(model, "next", inputs=True) as tape:
        model(X)
    assert same(tape["next"].input, expected)
