"""Checks of the arguments of evaluate(), each as early as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.cam import METHODS, fusion_in, fusion_step
from torchpeek.engine import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.errors import InputError, MetricNotApplicable, NotFinite, type_shown
from torchpeek.heatmap import Heatmap
from torchpeek.metrics import find_metric
from torchpeek.registry import NamesOrOptions, options_by_name


def selected_metrics(metrics: NamesOrOptions) -> dict[str, Mapping[str, Any]]:
    """Return metric name -> options. Raises InputError, MetricNotFound and OptionError."""
    selected = options_by_name("metrics", "metric", metrics)
    if not selected:
        raise InputError("metrics is empty; give at least one name (torchpeek metrics lists them)")
    return {name: find_metric(name).checked_options(options) for name, options in selected.items()}


def check_heatmaps(heatmaps: object) -> None:
    """Raise InputError unless these are heatmaps as explain() returns them, NotFinite if one has NaN or infinity."""
    if not isinstance(heatmaps, Mapping) or not all(isinstance(each, Heatmap) for each in heatmaps.values()):
        raise InputError(
            f"heatmap is {type_shown(heatmaps)}; allowed: a Heatmap from explain(), a dict of them from "
            "compare(), or a list of them for a list of inputs"
        )
    if not heatmaps:
        raise InputError("heatmap is an empty dict; give at least one")
    for name, each in heatmaps.items():
        steps = [step for step in each.provenance.steps if step.split()[0] in ("positive", "unit", "resized")]
        if not bool(each.values.isfinite().all()):
            raise NotFinite(f"the heatmap {name!r} has NaN or infinity; metrics need finite values")
        if steps:
            raise InputError(
                f"the heatmap {name!r} was changed already ({', '.join(steps)}). Next: give it as explain() returned "
                "it; each metric applies the steps that it needs"
            )


def check_needs(
    selected: Mapping[str, object], heatmaps: Mapping[str, Heatmap], *, regions: bool, explained: bool
) -> None:
    """Raise MetricNotApplicable if a metric needs an argument that is missing, before any pass runs."""
    needs = {name: find_metric(name).needs for name in selected}
    if not regions and (metrics := [name for name, need in needs.items() if need == "region"]):
        raise MetricNotApplicable(
            f"{', '.join(metrics)}: masks= or boxes= is missing; give one of them, which says where the object is"
        )
    metrics = [name for name, need in needs.items() if need == "explanations"]
    for name, each in heatmaps.items() if metrics and not explained else ():
        provenance, fusion = each.provenance, fusion_in(each.provenance.steps)
        steps = [step for step in provenance.steps if fusion is None or step != fusion_step(fusion)]
        if steps or provenance.method not in METHODS:
            reason = "; ".join(steps) or f"made by {provenance.method!r}, which is not in METHODS"
            raise MetricNotApplicable(
                f"{', '.join(metrics)} cannot make the heatmap {name!r} again: {reason}. Next: give "
                "explain=, a function (module, inputs, question) -> (n, K, *grid), or choose other metrics"
            )


def check_inputs(heatmaps: Mapping[str, Heatmap], call: ModelCall) -> None:
    """Raise InputError where a heatmap was made from other inputs. One without digests of its inputs is not checked."""
    checked: dict[Sequence[str], Mapping[int, int | None]] = {}  # the heatmaps of a trace have the same digests
    for name, each in heatmaps.items():
        digests = tuple(each.provenance.inputs)
        if digests not in checked:
            checked[digests] = call.changed_samples(digests)
        changed = checked[digests]
        if not changed:
            continue
        samples = ", ".join(map(str, list(changed)[:8])) + (", ..." if len(changed) > 8 else "")
        moved = next(((n, place) for n, place in changed.items() if place is not None), None)
        where = f"; sample {moved[0]} is sample {moved[1]} of the heatmap" if moved else ""
        raise InputError(
            f"the heatmap {name!r} was made with other inputs: sample {samples} of {len(call)} differs{where}. Next: "
            "give the inputs that it was made with, in the same sequence and preprocessed in the same way, or explain "
            "these inputs anew"
        )


def check_same(heatmaps: Mapping[str, Heatmap], scores: Tensor) -> None:
    """Raise InputError unless all heatmaps explain the same scores, and these are the scores of the clean pass."""
    first = next(iter(heatmaps.values()))
    for name, each in heatmaps.items():
        labels, theirs = each.question.labels.cpu(), first.question.labels.cpu()
        if type(each.question) is not type(first.question) or not torch.equal(labels, theirs):
            raise InputError(f"the heatmap {name!r} has another target than the first one; evaluate them separately")
        if each.scores.shape != scores.shape or not close(scores, each.scores.to(scores), torch.float16):
            raise InputError(
                f"the heatmap {name!r} explains scores {_few(each.scores)}, but this model gives {_few(scores)} for "
                "these inputs. Next: give the model and the inputs that it was made with"
            )


def check_grids(heatmaps: Mapping[str, Heatmap], shape: Sequence[int]) -> None:
    """Raise MetricNotApplicable for maps of views, unless the views are the first axis of the grid of the inputs.

    Args:
        heatmaps: The heatmaps.
        shape: The shape of the inputs, (N, C, *grid).
    """
    for name, each in heatmaps.items():
        of_views = each.provenance.layout.partition(",")[0].startswith("(") or " (" in each.provenance.layout
        maps = tuple(each.values.shape[2:])
        if of_views and (len(maps) != len(shape) - 2 or maps[0] != shape[2]):
            raise MetricNotApplicable(
                f"the heatmap {name!r} has a map of each view, {each.provenance.layout}, but the axes of the inputs "
                f"{tuple(shape)} are not (N, C, views, *grid). Next: wrap the model so that it takes such inputs"
            )


def _few(scores: Tensor) -> str:
    listed = ", ".join(f"{each:.4g}" for each in scores.flatten()[:3].tolist())
    return f"{tuple(scores.shape)} ({listed}{', ...' if scores.numel() > 3 else ''})"
