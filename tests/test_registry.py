"""The limits of option values, which every front door checks before any work starts."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
import torch

import torchpeek as tp
from networks import PooledNet
from torchpeek.argument_types import Number, PositiveInt, Share, Whole
from torchpeek.errors import OptionError
from torchpeek.metrics import MetricResult
from torchpeek.metrics.metric import Metric
from torchpeek.registry import Registered

ENTRIES: list[Registered] = [*tp.METHODS.values(), *tp.METRICS.values()]
COUNTS = [
    (entry, name)
    for entry in ENTRIES
    for name, value in entry.options.items()
    if isinstance(value, int) and name != "seed"
]


@pytest.mark.parametrize(("entry", "name"), COUNTS, ids=lambda each: getattr(each, "name", each))
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", math.nan, None])
def test_every_option_that_counts_something_is_limited(entry: Registered, name: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"option {name} is .*allowed: a whole number, [12] (or more|to \d+)"):
        entry.checked_options({name: value})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_defaults_are_allowed(entry: Registered) -> None:
    entry.checked_options(entry.options)


def made(compute: Any) -> Metric:
    return Metric("mine", "heatmap", True, "", compute)


def test_limits_are_read_from_the_annotations() -> None:
    def compute(
        case: Any, *, count: PositiveInt = 3, share: Share = 0.5, most: Annotated[int | None, Whole(5)] = None
    ) -> MetricResult:
        """A metric."""
        raise NotImplementedError

    metric = made(compute)
    metric.checked_options({"count": 1, "share": 1, "most": None})
    for wrong in ({"count": 0}, {"count": None}, {"share": 1.01}, {"share": math.nan}, {"most": 4}):
        with pytest.raises(OptionError, match=f"option {next(iter(wrong))} is"):
            metric.checked_options(wrong)
    with pytest.raises(OptionError, match=r"metric 'mine' has no option 'counts'; its options: count=3"):
        metric.checked_options({"counts": 1})


def test_an_annotation_that_cannot_be_evaluated_leaves_the_others() -> None:
    def compute(case: Unknown, *, share: Annotated[float, Number()] = 0.5) -> MetricResult:  # type: ignore[name-defined]  # noqa: F821
        """A metric."""
        raise NotImplementedError

    with pytest.raises(OptionError, match=r"option share is -1\.0; allowed: a number, 0 or more"):
        made(compute).checked_options({"share": -1.0})


def test_the_front_doors_refuse_before_the_model_runs() -> None:
    model, x = PooledNet(), torch.rand(1, 3, 16, 16)
    heatmap = tp.explain(model, x)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(OptionError, match="option steps is 0; allowed: a whole number, 1 to 1,000,000"):
        tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": 0}})
    with pytest.raises(OptionError, match="option samples is 0; allowed: a whole number, 1 to 1,000,000"):
        tp.explain(model, x, method="smoothgradcam++", samples=0)
    assert calls == []
