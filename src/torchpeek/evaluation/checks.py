"""What evaluate() refuses, before anything is run or as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.cam import METHODS
from torchpeek.engine.numerics import close
from torchpeek.errors import InputError, MetricNotApplicable, NotFinite
from torchpeek.heatmap import Heatmap
from torchpeek.metrics import find_metric

Metrics: TypeAlias = Iterable[str] | Mapping[str, Mapping[str, Any]]


def chosen_metrics(metrics: Metrics) -> dict[str, Mapping[str, Any]]:
    """Name -> options. Raises InputError, MetricNotFound and OptionError."""
    if isinstance(metrics, str):
        metrics = [metrics]
    if not isinstance(metrics, Iterable):
        raise InputError(f"metrics is {metrics!r}; give names, or a dict from a name to that metric's options")
    chosen = dict(metrics) if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    if not chosen:
        raise InputError("metrics is empty; name at least one (torchpeek metrics lists them)")
    for name, options in chosen.items():
        if not isinstance(options, Mapping):
            raise InputError(f"the options of metric {name!r} are {options!r}; give a dict, such as {{}}")
        find_metric(name).check_options(options)
    return chosen


def check_heatmaps(heatmaps: object) -> None:
    """Raise InputError unless they are heatmaps as explain() returns them, NotFinite where one is not finite."""
    if not isinstance(heatmaps, Mapping) or not all(isinstance(each, Heatmap) for each in heatmaps.values()):
        raise InputError(
            f"heatmap is a {type(heatmaps).__name__}; allowed: a Heatmap, as explain() returns it, a dict of them, as "
            "compare() does, or, for a list of inputs, a list of them"
        )
    if not heatmaps:
        raise InputError("heatmap is an empty dict; give at least one")
    for name, each in heatmaps.items():
        steps = [step for step in each.provenance.steps if step.split()[0] in ("positive", "unit", "resized")]
        if not bool(each.values.isfinite().all()):
            raise NotFinite(f"the heatmap {name!r} has NaN or infinity, of which no metric can be made")
        if steps:
            raise InputError(
                f"the heatmap {name!r} was changed already ({', '.join(steps)}); metrics read it as explain() returned "
                "it, and make of it what each of them needs"
            )


def check_needs(
    chosen: Mapping[str, object], heatmaps: Mapping[str, Heatmap], *, regions: bool, explained: bool
) -> None:
    """Raise MetricNotApplicable for what is missing, before anything is run."""
    needs = {name: find_metric(name).needs for name in chosen}
    if not regions and (metrics := [name for name, need in needs.items() if need == "region"]):
        raise MetricNotApplicable(f"{', '.join(metrics)}: masks= or boxes= is missing, which says where the object is")
    metrics = [name for name, need in needs.items() if need == "explanations"]
    for name, each in heatmaps.items() if metrics and not explained else ():
        provenance = each.provenance
        if provenance.steps or provenance.method not in METHODS:
            reason = "; ".join(provenance.steps) or f"made by {provenance.method!r}, which is no method here"
            raise MetricNotApplicable(
                f"{', '.join(metrics)} would have to make the heatmap {name!r} anew, and cannot: {reason}. Next: give "
                "explain=, a function (module, inputs, question) -> (n, K, *grid), or choose other metrics"
            )


def check_same(heatmaps: Mapping[str, Heatmap], scores: Tensor) -> None:
    """Raise InputError unless all are of the same scores, and these those of the clean pass."""
    first = next(iter(heatmaps.values()))
    for name, each in heatmaps.items():
        labels, theirs = each.question.labels.cpu(), first.question.labels.cpu()
        if type(each.question) is not type(first.question) or not torch.equal(labels, theirs):
            raise InputError(f"the heatmap {name!r} is of another question than the first; those together are of one")
        if each.scores.shape != scores.shape or not close(scores, each.scores.to(scores), torch.float16):
            raise InputError(
                f"the heatmap {name!r} is of scores {_few(each.scores)}, and this model gives {_few(scores)} for these "
                "inputs. Next: give the model and the inputs that it was made with"
            )


def _few(scores: Tensor) -> str:
    listed = ", ".join(f"{each:.4g}" for each in scores.flatten()[:3].tolist())
    return f"{tuple(scores.shape)} ({listed}{', ...' if scores.numel() > 3 else ''})"
