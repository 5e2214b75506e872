"""Hostile values for every argument of the public functions: an error of torchpeek, or the value is used.

The right calls are those of the examples in the docstrings, so a new public name is covered without a new test.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import nn

import torchpeek as tp
from contract.calls import example_call
from contract.hostile_values import HOSTILE
from test_docstrings import DOCUMENTED, IN_PROTOCOLS, is_error, is_property
from torchpeek.errors import OptionError, TargetError, TorchpeekError

SECONDS = 5  # for one call; a value that takes longer is one that must be refused

# What the engine calls on every pass, with tensors of its own: its arguments are not checked one by one.
_OF_THE_ENGINE = ("Layout.", "Trace", "metrics", "errors")
_QUESTIONS = ("Scores", "Entries", "Answered")
# What a model returned, which a target reads by its own rules.
_OUTPUTS = ("output",)
# Each right value of `run` computes a whole run; tests/runs and tests/cli/test_run.py check what it refuses.
_RUNS = ("run", "Run", "RunSpec", "open_run")
# Functions of the user that are called with a value: what they raise goes through.
_CALLED = {("gradient_flow", "loss")}


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def is_covered(name: str) -> bool:
    value = DOCUMENTED[name]
    owner = name.rpartition(".")[0] or name
    return not (
        is_property(value)
        or is_error(value)
        or name in IN_PROTOCOLS
        or name.startswith(_OF_THE_ENGINE)
        or owner.endswith(_QUESTIONS)
        or name.endswith(_QUESTIONS)
        or (isinstance(value, type) and name == "keep.Captured")
        or name.split(".")[0] in _RUNS
        or name.split(".")[0] not in tp.__all__
    )


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        pytest.fail(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if is_covered(name)])
def test_a_hostile_value_is_an_error_of_torchpeek(name: str, in_folder: Path) -> None:
    call = example_call(name, DOCUMENTED[name], in_folder)
    if call is None:
        pytest.skip("the example does not call it")
    wrong = []
    for parameter, about in inspect.signature(call.function).parameters.items():
        checked = parameter not in ("self", "cls", *_OUTPUTS) and (name, parameter) not in _CALLED
        if not checked or about.kind in (about.VAR_KEYWORD, about.VAR_POSITIONAL):
            continue
        for words, make in HOSTILE.items():
            try:
                with at_most(SECONDS), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    call(**{parameter: make()})
            except TorchpeekError as error:
                if type(error) is OptionError and parameter not in str(error):
                    wrong.append(f"{parameter} = {words}: the message does not name it: {str(error)[:100]}")
                wrong += [f"{parameter} = {words}: a message of {len(str(error))} letters"] * (len(str(error)) > 5000)
            except Exception as error:
                wrong.append(f"{parameter} = {words}: {type(error).__name__}: {str(error)[:100]}")
    assert not wrong, "\n".join(wrong)


MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
X = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize("entry", [*tp.METHODS.values(), *tp.METRICS.values()], ids=lambda entry: entry.name)
def test_hostile_options_are_refused_or_taken_before_any_pass(entry: Any) -> None:
    for option in entry.options:
        for make in HOSTILE.values():
            with contextlib.suppress(OptionError):
                entry.checked_options({option: make()})
        with pytest.raises(OptionError, match=f"option {option}"):
            entry.checked_options({option: object()})


NUMBERS = [
    (entry, name)
    for entry in (*tp.METHODS.values(), *tp.METRICS.values())
    for name, value in entry.options.items()
    if type(value) in (int, float) and name != "seed"
]


@pytest.mark.parametrize(("entry", "option"), NUMBERS, ids=lambda each: getattr(each, "name", each))
def test_a_huge_number_as_an_option_is_refused_or_computed(entry: Any, option: str) -> None:
    heatmap = tp.explain(MODEL, X, layer="0")
    for value in (10**9, 2**70):
        with contextlib.suppress(TorchpeekError), warnings.catch_warnings(), at_most(SECONDS):
            warnings.simplefilter("ignore")
            if entry.name in tp.METHODS:
                tp.explain(MODEL, X, layer="0", method=entry.name, **{option: value})
            else:
                boxes = [(0, 0, 4, 4)] if entry.needs == "region" else None
                tp.evaluate(MODEL, X, heatmap, metrics={entry.name: {option: value}}, boxes=boxes)


def test_the_masks_of_rise_are_bounded_in_memory() -> None:
    with pytest.raises(OptionError, match="options samples and cells are 4000 and 10000"):
        tp.explain(MODEL, X, layer="0", method="rise", cells=10_000)


@pytest.mark.parametrize("seed", [1.5, None, "a", 2**70, -1, True, torch.tensor([1, 2]), np.array("a")])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(OptionError, match=r"seed is .*; allowed: a whole number, 0 to 2\*\*63 - 1"):
        tp.explain(MODEL, X, seed=seed)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), torch.tensor(7), 7])
def test_whole_numbers_of_other_libraries_are_whole_numbers(seed: Any) -> None:
    expected = tp.explain(MODEL, X, layer="0", method="random", seed=7)
    found = tp.explain(MODEL, X, layer="0", method="random", seed=seed)
    assert torch.equal(found.values, expected.values)
    assert type(found.provenance.options.get("seed", 7)) is int


@pytest.mark.parametrize(("value", "taken"), [(np.bool_(True), True), (1, True), (torch.tensor(True), True)])
def test_truth_values_of_other_libraries(value: Any, taken: bool) -> None:
    with tp.record(MODEL, "0", inputs=value) as tape:
        MODEL(X)
    assert (tape["0"].input is not None) is taken


def test_the_cases_that_were_raw_errors() -> None:
    heatmap = tp.explain(MODEL, X, layer="0")
    for make, message in (
        (lambda: tp.record(MODEL, "0", max_bytes="1G"), "max_bytes is '1G'; allowed: a number, 0 or more, or None"),
        (lambda: tp.compare(MODEL, X, methods={"gradcam": None}), "options of method 'gradcam' are None"),
        (lambda: tp.evaluate(MODEL, X, heatmap, metrics={"deletion": {"steps": 10**9}}), "option steps is 1000000000"),
        (lambda: tp.explain(MODEL.state_dict(), X), "model is an OrderedDict of weights"),
        (lambda: tp.load_model("..:x"), r"no model '\.\.:x'"),
        (lambda: tp.LoadedModel(MODEL, class_names=["a\ud800"]), "lone surrogate"),
        (
            lambda: tp.render.overlay(X[0], heatmap, limit=float("nan")),
            "limit is nan; allowed: 0 or more, the value of the last colour",
        ),
    ):
        with pytest.raises(TorchpeekError, match=message):
            make()


def test_complex_scores_are_refused_with_what_to_write_instead() -> None:
    class Complex(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.complex(super().forward(x), super().forward(x))

    model = Complex(*MODEL)
    with pytest.raises(TargetError, match=r"complex numbers.*output\.abs\(\)"):
        tp.explain(model, X, layer="0")
    with pytest.raises(TargetError, match=r"complex numbers.*scores\.abs\(\)"):
        tp.explain(model, X, layer="0", target=tp.targets.Computed(lambda output, rows: output))
    with pytest.raises(tp.errors.InputError, match="the loss is a complex number"):
        tp.gradient_flow(MODEL, X, loss=lambda output: torch.complex(output, output).sum())


def test_boxes_outside_the_picture() -> None:
    heatmap = tp.explain(MODEL, X, layer="0")
    evaluate = lambda boxes: tp.evaluate(MODEL, X, heatmap, metrics=["pointing-game"], boxes=boxes)  # noqa: E731
    with pytest.raises(tp.errors.InputError, match="lies outside the picture of 8 x 8"):
        evaluate([(8, 0, 12, 4)])
    with pytest.warns(tp.Notice, match="reaches beyond the picture of 8 x 8; only the part inside counts"):
        clipped = evaluate([(4, -3, 12, 4)])
    assert torch.equal(clipped["pointing-game"].values, evaluate([(4, 0, 8, 4)])["pointing-game"].values)


@pytest.mark.parametrize(
    "boxes",
    [torch.zeros(1, 4).to_sparse(), np.ones((1, 9, 9)), [(0, 0, np.nan, 4)], [(4, 4, 0, 0)], [(0, 0, 4)], [None]],
)
def test_what_are_no_boxes(boxes: Any) -> None:
    heatmap = tp.explain(MODEL, X, layer="0")
    with pytest.raises(tp.errors.InputError, match="boxes of sample 0"):
        tp.evaluate(MODEL, X, heatmap, metrics=["pointing-game"], boxes=boxes)


_IMAGE = Image.new("RGB", (8, 8))
_WHOLE = tp.Geometry.whole((8, 8))
_T = tp.targets


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tp.keep.Stored(device="nonsense"), "device is 'nonsense'; allowed: a torch.device or its name"),
        (lambda: tp.keep.Stored(dtype=torch.int64), "dtype is torch.int64; allowed: a floating-point torch.dtype"),
        (lambda: tp.Layout("tokens", (2, 2), prefix=-1), "prefix is -1; allowed: a whole number, 0 or more"),
        (lambda: tp.Layout("channels-first", (2, 2), views=0), "views is 0; allowed: a whole number, 1 or more"),
        (lambda: tp.Picture(3, X, _WHOLE), "Picture: image is 3; allowed: a PIL image"),  # type: ignore[arg-type]
        (lambda: tp.Picture(_IMAGE, X, _WHOLE).reduced(0), "max_size is 0; allowed: a number of pixels, 1 or more"),
        (lambda: _T.SigmoidProbability(1, absent="no"), "absent is 'no'; allowed: True or False"),  # type: ignore[arg-type]
        (lambda: _T.Similarity(X, pairs="no"), r"pairs='no'\): allowed: True, False"),  # type: ignore[arg-type]
        (
            lambda: tp.edit(MODEL, outputs={"0": 3}),
            "outputs is .*; allowed: a dict from a layer selection to a function",
        ),
        (lambda: tp.save({"a": 1}, "a"), r"heatmap is {'a': 1}; allowed: a Heatmap\. Next: tp\.TensorStream"),
        (lambda: tp.render.kernel_grid(X, scale=3), "scale is 3; allowed: 'shared', 'each'"),  # type: ignore[arg-type]
    ],
)
def test_the_words_of_what_is_allowed(make: Any, message: str) -> None:
    with pytest.raises((OptionError, TargetError), match=message):
        make()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (_T.Predicted(part=X), "part is a Tensor .*; allowed: the name or the number of a part"),  # type: ignore[arg-type]
        (_T.Pixels(torch.zeros(2, 2)), "a class is a Tensor .*; allowed: an index or a name"),  # type: ignore[arg-type]
        (_T.Pixels(0, class_axis="no"), "class_axis='no'"),  # type: ignore[arg-type]
        (torch.nn.ReLU(), "target is a ReLU; allowed: None"),
    ],
)
def test_what_is_no_target(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tp.explain(MODEL[:1] if isinstance(target, _T.Pixels) else MODEL, X, layer="0", target=target)
