"""Cases: the heatmaps of an evaluation with their baselines, and the function that explains other inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.cam import find_method, fusion_in
from torchpeek.draws import Fingerprints
from torchpeek.engine import ModelCall, Question, Trace, bound_to
from torchpeek.errors import InputError, type_shown
from torchpeek.explanation import HeatmapOptions, LayerChoice
from torchpeek.explanation.heatmaps import compute_heatmaps
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import attached, takes_hooks
from torchpeek.metrics import Case, CleanPass, Explainer, centre, constant_explainer, random_explainer
from torchpeek.provenance import Provenance

Explain: TypeAlias = Callable[[nn.Module, Tensor, Question], Tensor | Heatmap]


RANDOM = 10  # number of random heatmaps; their mean is the baseline


def by_grid(heatmaps: Mapping[str, Heatmap]) -> list[list[str]]:
    """Group the heatmaps by grid, because the random baseline is on the same grid."""
    groups: dict[torch.Size, list[str]] = {}
    for name, each in heatmaps.items():
        groups.setdefault(each.values.shape[2:], []).append(name)
    return list(groups.values())


def case_of(clean: CleanPass, heatmaps: list[Heatmap], explainers: list[Explainer], regions: Tensor | None) -> Case:
    """Make a case of the heatmaps, then the random ones, then the centred one."""
    first = heatmaps[0].values
    scores, grid = first.shape[1], first.shape[2:]
    rows = torch.arange(len(first))
    shape, remembered = (scores, *grid), Fingerprints()
    of_random = [random_explainer(shape, clean.seed, number, first, remembered) for number in range(RANDOM)]
    of_centre = constant_explainer(centre(grid, first).expand(scores, *grid))
    baselines = [each(clean.trace.inputs, rows) for each in (*of_random, of_centre)]
    values = torch.cat([*(each.values for each in heatmaps), *baselines], dim=1)
    return Case(clean, values, regions, [*explainers, *of_random, of_centre])


def explainer_of(trace: Trace, heatmap: Heatmap, explain: Explain | None) -> Explainer:
    """Return the function that explains changed inputs: by `explain`, or as the heatmap's provenance says."""
    network, shape = trace.forward_pass.model, heatmap.values.shape[1:]

    def again(
        inputs: Tensor,
        rows: Tensor,
        *,
        model: nn.Module | None = None,
        labels: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        called = network if model is None else model
        question: Any = heatmap.question.select(rows, slice(None))
        if labels is not None:
            question = replace(question, labels=labels[rows])  # only metrics on classes pass labels
        with trace.forward_pass.autocast_context():
            if explain is not None:
                with _calls_checked(network, called), torch.enable_grad():  # it may need gradients
                    heatmaps: Any = explain(called, inputs.clone(), question)
            else:
                call = trace.forward_pass.call.select(rows, inputs)
                heatmaps = _explained_again(called, call, question, heatmap.provenance)
        values = heatmaps.values if isinstance(heatmaps, Heatmap) else heatmaps
        if not isinstance(values, Tensor) or values.shape != (len(rows), *shape):
            got = tuple(values.shape) if isinstance(values, Tensor) else type_shown(values)
            raise InputError(f"explain returned {got}; allowed: a tensor {(len(rows), *shape)}, like the heatmap")
        return values.detach().to(heatmap.values)

    return again


@contextmanager
def _calls_checked(network: nn.Module, called: nn.Module) -> Iterator[None]:
    """Raise InputError where the block runs the evaluated network alone, and not the module that `explain` takes."""
    if called is network:
        yield
        return
    run: set[nn.Module] = set()
    own = [each for each in called.modules() if takes_hooks(each)]
    originals = [each for each in network.modules() if takes_hooks(each)]
    with attached(called=[(each, lambda module, *inputs: run.add(module)) for each in (*own, *originals)]):
        yield
    if not run.isdisjoint(originals) and run.isdisjoint(own):
        raise InputError(
            "explain ran the model that is evaluated, and not the module that it was called with, which has other "
            "parameters. Next: let explain use its first argument"
        )


def _explained_again(model: nn.Module, call: ModelCall, question: Question, provenance: Provenance) -> Tensor:
    """Explain other inputs with the method, layer and options of the provenance, (n, K, *grid)."""
    method, fusion = find_method(provenance.method), fusion_in(provenance.steps)
    layer: Any = provenance.layer.split(", ")
    if method.layers in ("all", "none"):
        layer = None
    elif method.layers == "one" and fusion is None:
        layer = provenance.layer
    layout = provenance.layout if layer is not None and provenance.layout and "," not in provenance.layout else None
    choice, options = LayerChoice(layer, layout), HeatmapOptions(fuse=fusion)
    call_as_input: Any = call  # a ModelCall, which the public types of inputs do not include
    heatmaps = compute_heatmaps(
        model, call_as_input, {provenance.method: provenance.options}, choice, bound_to(question), options
    )
    heatmap: Heatmap = heatmaps[provenance.method]
    return heatmap.values
