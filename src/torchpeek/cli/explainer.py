"""How `cam` and `evaluate` explain a batch of pictures: all methods from one forward pass, where they can share it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek._version import __version__
from torchpeek.cam import METHODS
from torchpeek.cli.method_selection import method_names, method_options
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import MethodOptions, TargetOptions
from torchpeek.cli.pictures import PictureFiles
from torchpeek.cli.targets import box_ranks, distinct_texts, make_target
from torchpeek.engine import Target, Trace
from torchpeek.errors import LayerNotFound, TargetError
from torchpeek.explanation import HeatmapOptions, LayerChoice, explain_methods, trace
from torchpeek.explanation.predictions import Labels, renamed
from torchpeek.heatmap import Heatmap
from torchpeek.models import LoadedModel
from torchpeek.picture import Picture
from torchpeek.provenance import Provenance

# What a score is of, where its own name does not say it.
_SCORE_OF = {
    "score of a detected box": "",
    "mean logit of the foreground": "",
    "mean value of the foreground": "",
    "cosine similarity": " of picture and text",
}


@dataclass(frozen=True, eq=False)
class Explainer:
    """A loaded model, and all that decides how its pictures are explained."""

    loaded: LoadedModel
    methods: Mapping[str, Mapping[str, Any]]  # name -> options
    choice: LayerChoice
    target: Target
    labels: Labels
    options: HeatmapOptions
    files: PictureFiles

    @property
    def max_size(self) -> int | None:
        """The value of --max-size."""
        return self.files.max_size

    def read(self, file: Path) -> Picture:
        """The picture, reduced to --max-size."""
        return self.files.read(self.loaded, file)

    def explain(self, tensor: Tensor) -> tuple[Trace, dict[str, Heatmap]]:
        """A trace of a batch (N, C, H, W), for the predictions, and the heatmap of each method."""
        trace, heatmaps = explain_methods(self.loaded, tensor, self.methods, self.choice, self.target, self.options)
        return trace, {name: self._relabelled(heatmap) for name, heatmap in heatmaps.items()}

    def _relabelled(self, heatmap: Heatmap) -> Heatmap:
        provenance = heatmap.provenance
        names = renamed(heatmap.question, provenance.class_names, self.labels)
        return replace(heatmap, provenance=replace(provenance, class_names=names))


def make_explainer(
    loaded: LoadedModel,
    files: PictureFiles,
    target: TargetOptions,
    method: MethodOptions,
    options: HeatmapOptions,
    *,
    top: int | None = None,
    contrast: int | None = None,
) -> Explainer:
    """The explainer that the options describe. With --method all, the first picture decides what the model allows."""
    bound_target = make_target(target, loaded, top, contrast)
    names = layer_names(method.layers)
    choice = LayerChoice(names[0] if names and len(names) == 1 and options.fuse is None else names, method.layout)
    methods = method_names(method)
    if "all" in method.methods:
        methods = _applicable(methods, loaded, files, choice, bound_target)
    return Explainer(
        loaded,
        method_options(methods, method.method_options or ()),
        choice,
        bound_target,
        Labels(loaded.class_names, distinct_texts(target), box_ranks(target)),
        options,
        files,
    )


def _applicable(
    methods: list[str],
    loaded: LoadedModel,
    files: PictureFiles,
    choice: LayerChoice,
    target: Target,
) -> list[str]:
    """The methods that the model's head allows, tried on the first picture that can be read and explained."""
    for path in files:
        try:
            picture = files.read(loaded, path)
            first = trace(loaded, picture, layer=choice.layer, layout=choice.layout, target=target, gradients=False)
            headless = any(first.only(name).head is None for name in first.at)
        except (LayerNotFound, TargetError):
            raise
        except Exception:  # an error of this picture; it is reported when its batch is read
            continue
        return [name for name in methods if METHODS[name].needs != "head" or not headless]
    return methods


def report_facts(provenance: Provenance, max_size: int | None, **more: str) -> dict[str, str]:
    """What holds for every picture of a run. `more` comes before how it was computed."""
    score, *source = re.split("(?=, from )", provenance.score, maxsplit=1)
    return {
        "model": provenance.model,
        "weights": provenance.weights or "the model's own",
        "layer": layer_description(provenance),
        "preprocessing": reduction_words(max_size) + provenance.preprocess,
        "score": f"{score}{_what_of(score)}{''.join(source)}",
        **more,
        "computed": f"in {provenance.dtype} on {provenance.device}, torch {provenance.torch}, torchpeek {__version__}",
    }


def reduction_words(max_size: int | None) -> str:
    """What --max-size does, to stand before the preprocessing; empty without it."""
    return "" if max_size is None else f"reduced to at most {max_size} x {max_size}; "


def _what_of(score: str) -> str:
    return next((words for start, words in _SCORE_OF.items() if score.startswith(start)), " of the class")


def layer_description(provenance: Provenance) -> str:
    """The layer, the reason for it, and its layout where that is not the one of a convolution."""
    as_convolution = provenance.layout.startswith("channels-first") and "," not in provenance.layout
    layout = "" if as_convolution or not provenance.layout else f", read as {provenance.layout}"
    return f"{provenance.layer} ({provenance.layer_reason}{layout})"
