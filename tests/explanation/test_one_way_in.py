"""One explain() does each thing once: it copies, selects, binds and scores once, and runs only the passes it needs."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.errors import InputError
from torchpeek.explanation import HeatmapOptions, LayerChoice, explain_methods, heatmaps, plan

SOURCE = str(Path(tp.__file__).parent)
ONCE = [
    "explanation_request",
    "inspectable_module",
    "model_call_for",
    "as_model_call",
    "ModelCall.copied",
    "with_observed_layers",
    "as_target",
    "plan_passes",
]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls of torchpeek's functions, by qualified name."""
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


X = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("explain", "scorings"),
    [
        (lambda model: tp.explain(model, X, layer="3"), 1),
        (lambda model: tp.explain(model, X, layer="3", method="layercam", target=2), 1),
        (lambda model: tp.explain(model, {"input": X}, layer="3", method="hirescam"), 1),
        (lambda model: tp.compare(model, X, layer="3", methods=["gradcam", "layercam", "eigencam"]), 1),
        (lambda model: tp.compare(model, X, layer="3", methods=["gradcam", "fullgrad"]), 2),  # of a pass of its own
    ],
    ids=["explain", "a class", "keyword arguments", "compare", "with a further pass"],
)
def test_each_step_happens_once(model: nn.Module, explain: Callable[[nn.Module], Any], scorings: int) -> None:
    explain(model)
    with counted() as calls:
        explain(model)
    assert {name: calls[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert calls["select"] == 1
    assert calls["ClassScores.__call__"] == scorings
    assert calls["Predicted.bind"] + calls["Classes.bind"] == 1
    assert calls["run"] == scorings


def test_a_selection_is_made_once_for_all_passes(model: nn.Module) -> None:
    with counted() as calls:
        tp.compare(model, X, layer=["1", "3"], methods=["gradcam", "polycam"])
    assert calls["select"] == 1
    assert calls["explanation_request"] == calls["ModelCall.copied"] == 1


def test_how_many_forward_passes(model: nn.Module) -> None:
    """Three where no layer is named and the model and the shape are new; then one."""
    passes: list[torch.Size] = []
    model.register_forward_hook(lambda module, args, output: passes.append(args[0].shape))
    for expected in (3, 1, 1):
        passes.clear()
        tp.explain(model, X)
        assert len(passes) == expected
    passes.clear()
    tp.explain(model, X, layer="1")
    assert len(passes) == 1


def test_a_list_is_taken_in_once(model: nn.Module) -> None:
    pictures = [X, X, X[..., :12]]
    tp.explain(model, pictures, layer="3")
    with counted() as calls:
        heatmaps = tp.explain(model, pictures, layer="3")
    assert len(heatmaps) == 3
    assert calls["as_model_call"] == calls["ModelCall.copied"] == 3
    assert calls["select"] == calls["as_target"] == calls["explanation_request"] == 1
    assert calls["run"] == 2  # one for each size


def test_another_kind_of_target_is_checked_once(model: nn.Module) -> None:
    passes: list[int] = []
    model.register_forward_hook(lambda module, args, output: passes.append(1))
    for target, expected in ((None, 3), (None, 1), (2, 2), (3, 1)):
        passes.clear()
        tp.explain(model, X, target=target)
        assert len(passes) == expected, target


def test_only_one_pass_is_alive_at_a_time(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = []

    def watched(request: Any, requirements: Any) -> Any:
        trace = plan.run_pass(request, requirements)
        alive.add(trace)
        most.append(len(alive))
        return trace

    monkeypatch.setattr(heatmaps, "run_pass", watched)
    tp.compare(model, X, methods=["gradcam", "polycam", "refinecam"])
    assert len(most) == 3
    assert max(most) <= 2  # the one before goes when the next is there


def test_the_commands_score_one_question_in_all_passes(model: nn.Module) -> None:
    methods: dict[str, dict[str, Any]] = {"polycam": {}, "gradcam": {}}
    with counted() as calls:
        trace, found = explain_methods(model, X, methods, LayerChoice(), None, HeatmapOptions())
    assert list(found) == ["polycam", "gradcam"]
    assert found["polycam"].question is trace.question
    assert found["gradcam"].question is trace.question
    assert trace.layer == found["gradcam"].provenance.layer
    assert calls["explanation_request"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "3", "fuse": "max"}, "makes one map of several layers; got one, '3'"),
        ({"layer": ["1", "3"], "fuse": "max", "method": "polycam"}, "polycam combines layers by itself"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_any_pass(
    model: nn.Module, options: dict[str, Any], message: str
) -> None:
    passes: list[int] = []
    model.register_forward_hook(lambda module, args, output: passes.append(1))
    with pytest.raises(InputError, match=message):
        tp.explain(model, X, **options)
    assert passes == []
