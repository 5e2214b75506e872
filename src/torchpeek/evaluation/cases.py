"""Heatmaps beside their baselines, and how each of them is made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.cam import find_method
from torchpeek.engine import ModelCall, Question, Trace
from torchpeek.engine.targets import Bound
from torchpeek.errors import InputError
from torchpeek.explanation import HeatmapOptions, LayerChoice
from torchpeek.explanation.heatmaps import compute_heatmaps
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.metrics import Case, Clean, Explainer, always, at_random, centre

Explain: TypeAlias = Callable[[nn.Module, Tensor, Question], Tensor | Heatmap]


RANDOM = 10  # random heatmaps, whose mean is the baseline


def by_grid(heatmaps: Mapping[str, Heatmap]) -> list[list[str]]:
    """Those on one grid together, as the random baseline is on it, too."""
    groups: dict[torch.Size, list[str]] = {}
    for name, each in heatmaps.items():
        groups.setdefault(each.values.shape[2:], []).append(name)
    return list(groups.values())


def case_of(clean: Clean, heatmaps: list[Heatmap], explainers: list[Explainer], regions: Tensor | None) -> Case:
    """The heatmaps, then as many random ones as make the baseline, then the centred one."""
    first = heatmaps[0].values
    scores, grid = first.shape[1], first.shape[2:]
    rows = torch.arange(len(first))
    of_random = [at_random((scores, *grid), clean.seed, number, first) for number in range(RANDOM)]
    of_centre = always(centre(grid, first).expand(scores, *grid))
    baselines = [each(clean.trace.inputs, rows) for each in (*of_random, of_centre)]
    values = torch.cat([*(each.values for each in heatmaps), *baselines], dim=1)
    return Case(clean, values, regions, [*explainers, *of_random, of_centre])


def explainer_of(trace: Trace, heatmap: Heatmap, explain: Explain | None) -> Explainer:
    """The heatmap of changed inputs, by `explain`, or else as its provenance says."""
    network, shape = trace.forward_pass.model, heatmap.values.shape[1:]

    def again(
        inputs: Tensor,
        rows: Tensor,
        *,
        model: nn.Module | None = None,
        labels: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        asked = network if model is None else model
        question: Any = heatmap.question.select(rows, slice(None))
        if labels is not None:
            question = replace(question, labels=labels[rows])  # asked of classes only
        with trace.forward_pass.autocast_context():
            if explain is not None:
                with torch.enable_grad():  # it may follow gradients on its own
                    found: Any = explain(asked, inputs.clone(), question)
            else:
                found = _asked_again(asked, trace.forward_pass.call.select(rows, inputs), question, heatmap.provenance)
        values = found.values if isinstance(found, Heatmap) else found
        if not isinstance(values, Tensor) or values.shape != (len(rows), *shape):
            got = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise InputError(f"explain returned {got}; allowed: a tensor {(len(rows), *shape)}, as the heatmap is")
        return values.detach().to(heatmap.values)

    return again


def _asked_again(model: nn.Module, call: ModelCall, question: Question, made: Provenance) -> Tensor:
    """(n, K, *grid): the heatmap of other inputs, by the method, layer and options that its provenance names."""
    method = find_method(made.method)
    layer = None if method.layers == "all" else made.layer if method.layers == "one" else made.layer.split(", ")
    layout = made.layout if layer is not None and made.layout and "," not in made.layout else None
    choice = LayerChoice(layer, layout)
    asked: Any = call  # a ModelCall, which is no type that users give
    heatmaps = compute_heatmaps(model, asked, {made.method: made.options}, choice, Bound(question), HeatmapOptions())
    heatmap: Heatmap = heatmaps[made.method]
    return heatmap.values
