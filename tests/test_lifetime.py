"""A model dies with its last reference, also where Python never collects cycles."""

from __future__ import annotations

import ast
import gc
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import PooledNet
from paths import ROOT
from run_data import write_pictures

Use = Callable[[nn.Module, Tensor], object]
X = torch.rand(2, 3, 8, 8)


def record(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "*", inputs=True, gradients=True, parameters=True) as tape:
        model(x).sum().backward()
    repr(tape)


def record_and_ask_for_gradients(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "act", gradients=True) as tape:
        score = model(x).sum()
    tape.grad(score)


def record_and_stop(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "features.0", stop=True) as tape:
        model(x)
    _ = tape["features.0"].output


def record_until_an_exception(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "*", gradients=True, inputs=True):
        model(x[:, :2])


def record_without_a_call(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "*") as tape:
        pass
    _ = tape["act"].output


def record_a_part(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "*") as tape:
        model.features[:2](x)
        tape.new_pass()
        model.features(x)
    _ = tape["features.0"].output


def record_with(keep: object) -> Use:
    def use(model: nn.Module, x: Tensor) -> None:
        with tp.record(model, "*", keep=keep, passes="all", max_bytes=100) as tape:
            model(x)
        repr(tape)

    return use


def record_checkpointed(model: nn.Module, x: Tensor) -> None:
    with tp.record(model, "act", gradients=True):
        model.head(checkpoint(model.act, model.features(x), use_reentrant=False).mean((2, 3))).sum().backward()


def record_compiled(model: nn.Module, x: Tensor) -> None:
    compiled = torch.compile(model, backend="eager")
    with tp.record(compiled, "*act", gradients=True):
        compiled(x).sum().backward()


def edit(model: nn.Module, x: Tensor) -> None:
    double = {"act": lambda value: value * 2}
    with tp.edit(model, outputs=double, gradients=double, inputs={"act[0]": lambda value: value}):
        model(x).sum().backward()


def edit_with_nothing(model: nn.Module, x: Tensor) -> None:
    with tp.edit(model, outputs={"act": lambda value: None}):
        model(x)


def edit_a_part(model: nn.Module, x: Tensor) -> None:
    with tp.edit(model, outputs={"features.0": lambda value: value * 2}):
        model.features(x)


def record_gradients(model: nn.Module, x: Tensor) -> None:
    with tp.record_gradients(weight=model.head.weight):
        model(x).sum().backward()


def edit_gradient(model: nn.Module, x: Tensor) -> None:
    with tp.edit_gradient(model.head.weight, lambda gradient: gradient * 2):
        model(x).sum().backward()


def fails(*arguments: object) -> object:
    raise ZeroDivisionError


def loaded(model: nn.Module) -> tp.LoadedModel:
    return tp.LoadedModel(model, tp.Preprocess(resize=8, crop=(8, 8)), ("a", "b", "c", "d", "e"))


def check_finite(model: nn.Module, x: Tensor) -> None:
    with tp.check_finite(model):
        model(x).sum().backward()


def check_finite_fails(model: nn.Module, x: Tensor) -> None:
    with tp.check_finite(model), tp.edit(model, outputs={"act": lambda output: output / 0}):
        model(x)


def watch(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tp.watch(model, every=1) as table:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    repr(table)


def run_over_pictures(model: nn.Module, x: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "data", 3)
        tp.run(loaded(model), Path(folder) / "data", Path(folder) / "out", methods=["gradcam"], batch=2, workers=0)


USES: dict[str, Use] = {
    "check_finite": check_finite,
    "check_finite, error": check_finite_fails,
    "watch": watch,
    "record": record,
    "record, grad": record_and_ask_for_gradients,
    "record, stop": record_and_stop,
    "record, exception": record_until_an_exception,
    "record, no call": record_without_a_call,
    "record, part": record_a_part,
    "record, no layer": lambda model, x: tp.record(model, "nope"),
    "record, running": record_with(tp.keep.Running()),
    "record, callback": record_with(tp.keep.Callback(lambda captured: captured.tensor.sum())),
    "record, failing callback": record_with(tp.keep.Callback(fails)),
    "record, checkpointed": record_checkpointed,
    "record, compiled": record_compiled,
    "edit": edit,
    "edit, error": edit_with_nothing,
    "edit, part": edit_a_part,
    "record_gradients": record_gradients,
    "edit_gradient": edit_gradient,
    "layers": lambda model, x: repr(tp.layers(model)),
    "layers with inputs": lambda model, x: repr(tp.layers(model, x)),
    "kernels": lambda model, x: repr(tp.kernels(model)),
    "activations": lambda model, x: tp.activations(model, x, ["act", "features"]),
    "activations, misfit": lambda model, x: tp.activations(model, x[:, :1], "act"),
    "activations, no layer": lambda model, x: tp.activations(model, x, "nope"),
    "plan": lambda model, x: repr(tp.plan(model, x)),
    "statistics": lambda model, x: repr(tp.statistics(model, [x, x])),
    "statistics with loss": lambda model, x: tp.statistics(model, [x], loss=lambda output: output.sum()),
    "statistics, failing loss": lambda model, x: tp.statistics(model, [x], loss=fails),
    "statistics, misfit": lambda model, x: tp.statistics(model, [x[:, :1]]),
    "gradient_flow": lambda model, x: repr(tp.gradient_flow(model, x)),
    "gradient_flow, failing loss": lambda model, x: tp.gradient_flow(model, x, loss=fails),
    "trace": lambda model, x: tp.trace(model, x),
    "trace of a layer": lambda model, x: repr(tp.trace(model, x, layer="features.0")),
    "trace, misfit": lambda model, x: tp.trace(model, x[:, :1]),
    "trace with a graph": lambda model, x: (
        tp.explain(tp.trace(model, x, layer="act", create_graph=True, target=[0, 1])).values.sum().backward()
    ),
    "compare": lambda model, x: tp.compare(model, x, methods=["gradcam", "scorecam"]),
    "explain, several layers": lambda model, x: tp.explain(model, x, layer=["features.0", "act"], fuse="mean"),
    "explain, no class": lambda model, x: tp.explain(model, x, target=99),
    "explain, no method": lambda model, x: tp.explain(model, x, method="nope"),
    "explain, LoadedModel": lambda model, x: tp.explain(loaded(model), x, target="c"),
    "evaluate": lambda model, x: repr(
        tp.evaluate(model, x, tp.explain(model, x), metrics=["deletion", "insertion", "max-sensitivity"])
    ),
    "evaluate, no metric": lambda model, x: tp.evaluate(model, x, tp.explain(model, x), metrics=["nope"]),
    "run": run_over_pictures,
    "activations, LoadedModel": lambda model, x: tp.activations(loaded(model), x, "act"),
}


def is_alive_after(use: Use, *, raises: bool = False, attention: bool = False) -> bool:
    gc.collect()
    gc.disable()
    try:
        model = PooledNet(attention=attention).eval()
        references = [weakref.ref(model), weakref.ref(model.features[0]), weakref.ref(model.head.weight)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                use(model, X)
                assert not raises
            except (tp.TorchpeekError, RuntimeError, ZeroDivisionError):
                assert raises
        del model
        return any(reference() is not None for reference in references)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", USES)
def test_after_every_function(name: str) -> None:
    raises = any(word in name for word in (" no ", "failing", "misfit", "exception", "error"))
    assert not is_alive_after(USES[name], raises=raises)
    torch.compiler.reset()


@pytest.mark.parametrize("method", sorted(tp.METHODS))
def test_after_every_method(method: str) -> None:
    attention = method in ("rollout", "legrad", "transformer-attribution")
    assert not is_alive_after(lambda model, x: tp.explain(model, x, method=method, target=1), attention=attention)


def test_the_uses_are_of_every_function_that_takes_a_model() -> None:
    functions = [name for name in tp.__all__ if callable(getattr(tp, name)) and not isinstance(getattr(tp, name), type)]
    without_model = {"load", "save", "load_model", "open_run"}
    assert {name for name in functions if not any(use.startswith(name) for use in USES)} <= without_model


@pytest.mark.parametrize("gradients", [False, True])
def test_a_recording_holds_no_activations_but_its_own(gradients: bool) -> None:
    model = PooledNet()
    alive: list[weakref.ref[Tensor]] = []
    others = [model.features[0], model.features[1], model.act]
    handles = [
        each.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output))) for each in others
    ]
    gc.disable()
    try:
        with tp.record(model, "features.2", gradients=gradients, keep=tp.keep.gap) as tape:
            model(X).sum().backward()
        assert len(alive) == 3
        assert [reference() for reference in alive] == [None] * 3
        assert tape.nbytes == (2 if gradients else 1) * 2 * 6 * 4 + (2 * 4 * 4 if gradients else 0)
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()


def test_no_nested_function_refers_to_itself() -> None:
    """Its cell refers to it, and it to the cell: such a cycle keeps everything alive that the function refers to."""
    found = []
    for file in sorted((ROOT / "src" / "torchpeek").rglob("*.py")):
        for outer in ast.walk(ast.parse(file.read_text())):
            if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
                nested = (each for each in ast.walk(outer) if isinstance(each, ast.FunctionDef) and each is not outer)
                found += [
                    f"{file}:{each.lineno}"
                    for each in nested
                    if any(isinstance(name, ast.Name) and name.id == each.name for name in ast.walk(each))
                ]
    assert found == []
