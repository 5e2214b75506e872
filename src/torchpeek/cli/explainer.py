"""How `cam` and `evaluate` explain a batch of pictures: all methods from one forward pass, where they can share it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek._version import __version__
from torchpeek.cam import METHODS
from torchpeek.cli.method_selection import method_options, selected_methods
from torchpeek.cli.options import MethodOptions, TargetOptions, layer_names
from torchpeek.cli.predictions import Labels, renamed
from torchpeek.cli.targets import box_ranks, distinct_texts, make_target
from torchpeek.engine import Target, Trace
from torchpeek.errors import LayerNotFound, TargetError
from torchpeek.explanation import How, compare, trace
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.models import LoadedModel

# What a score is of, where its own name does not say it.
_SCORE_OF = {"score of a detected box": "", "cosine similarity": " of picture and text"}


@dataclass(frozen=True, eq=False)
class Explainer:
    """A loaded model, and all that decides how its pictures are explained."""

    loaded: LoadedModel
    methods: Mapping[str, Mapping[str, Any]]  # name -> options
    layer: str | list[str] | None
    layout: str | None
    target: Target
    labels: Labels
    options: How

    def explain(self, tensor: Tensor) -> tuple[Trace, dict[str, Heatmap]]:
        """The trace of a batch, and the heatmap of each method."""
        methods = [METHODS[name] for name in self.methods]
        shared = trace(
            self.loaded,
            tensor,
            layer=self.layer,
            layout=self.layout,
            target=self.target,
            gradients=any(method.needs == "gradients" for method in methods),
            ablations=any(method.ablates for method in methods),
        )
        heatmaps = self._maps(shared, tensor)
        return shared, {name: self._relabelled(heatmaps[name]) for name in self.methods}

    def _maps(self, shared: Trace, tensor: Tensor) -> dict[str, Heatmap]:
        """Each method's heatmap: from the shared trace, or from passes of its own.

        Methods that read attention need their own passes. So do methods that combine layers, unless layers are named.
        """
        options: dict[str, Any] = {
            "fuse": self.options.fuse,
            "smooth": self.options.smooth,
            "seed": self.options.seed,
        }
        own = [name for name in self.methods if METHODS[name].needs == "attention"]
        if self.layer is None:
            own += [name for name in self.methods if METHODS[name].layers == "many" or self.options.fuse is not None]
        from_trace = {name: values for name, values in self.methods.items() if name not in own}
        from_model = {name: values for name, values in self.methods.items() if name in own}
        heatmaps: dict[str, Heatmap] = {}
        if from_trace:
            heatmaps |= compare(shared, methods=from_trace, **options)
        if from_model:
            heatmaps |= compare(self.loaded, tensor, methods=from_model, target=shared.bound(), **options)
        return heatmaps

    def _relabelled(self, heatmap: Heatmap) -> Heatmap:
        provenance = heatmap.provenance
        names = renamed(heatmap.question, provenance.class_names, self.labels)
        return replace(heatmap, provenance=replace(provenance, class_names=names))


def make_explainer(
    loaded: LoadedModel,
    pictures: Sequence[Path],
    target: TargetOptions,
    method: MethodOptions,
    options: How,
    *,
    top: int | None = None,
    contrast: int | None = None,
) -> Explainer:
    """The explainer that the options describe. With --method all, the first picture decides what the model allows."""
    bound_target = make_target(target, loaded, top, contrast)
    names = layer_names(method.layers)
    layer = names[0] if names and len(names) == 1 and options.fuse is None else names
    methods = selected_methods(method)
    if "all" in method.methods:
        methods = _applicable(methods, loaded, pictures, layer, method.layout, bound_target)
    return Explainer(
        loaded,
        method_options(methods, method.method_options or ()),
        layer,
        method.layout,
        bound_target,
        Labels(loaded.class_names, distinct_texts(target), box_ranks(target)),
        options,
    )


def _applicable(
    methods: list[str],
    loaded: LoadedModel,
    pictures: Sequence[Path],
    layer: str | list[str] | None,
    layout: str | None,
    target: Target,
) -> list[str]:
    """The methods that the model's head allows, tried on the first picture that can be read and explained."""
    for path in pictures:
        try:
            first = trace(loaded, path, layer=layer, layout=layout, target=target, gradients=False)
            headless = any(first.only(name).head is None for name in first.at)
        except (LayerNotFound, TargetError):
            raise
        except Exception:  # an error of this picture; it is reported when its batch is read
            continue
        return [name for name in methods if METHODS[name].needs != "head" or not headless]
    return methods


def report_facts(provenance: Provenance, **more: str) -> dict[str, str]:
    """What holds for every picture of a run. `more` comes before how it was computed."""
    score, *source = re.split("(?=, from )", provenance.score, maxsplit=1)
    return {
        "model": provenance.model,
        "weights": provenance.weights or "the model's own",
        "layer": layer_description(provenance),
        "preprocessing": provenance.preprocess,
        "score": f"{score}{_SCORE_OF.get(score, ' of the class')}{''.join(source)}",
        **more,
        "computed": f"in {provenance.dtype} on {provenance.device}, torch {provenance.torch}, torchpeek {__version__}",
    }


def layer_description(provenance: Provenance) -> str:
    """The layer, the reason for it, and its layout where that is not the one of a convolution."""
    as_convolution = provenance.layout.startswith("channels-first") and "," not in provenance.layout
    layout = "" if as_convolution or not provenance.layout else f", read as {provenance.layout}"
    return f"{provenance.layer} ({provenance.layer_reason}{layout})"
