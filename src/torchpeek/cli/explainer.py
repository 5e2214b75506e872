"""Pictures explained, as `cam` and `evaluate` do it: all methods from one pass, where they can."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from torchpeek._version import __version__
from torchpeek.cam import METHODS
from torchpeek.cli.predictions import Names, renamed
from torchpeek.engine import Target, Trace
from torchpeek.explanation import How, compare, trace
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.models import LoadedModel

# What a score is of, where its own name does not say it.
_OF = {"score of a detected box": "", "cosine similarity": " of picture and text"}


@dataclass(frozen=True, eq=False)
class Explaining:
    """A model, and how its pictures are explained."""

    loaded: LoadedModel
    methods: Mapping[str, Mapping[str, Any]]  # name -> options
    layer: str | list[str] | None
    layout: str | None
    target: Target
    names: Names
    how: How

    def of(self, tensor: Tensor) -> tuple[Trace, dict[str, Heatmap]]:
        """The pass over a batch, and each method's heatmaps."""
        used = [METHODS[name] for name in self.methods]
        kept = trace(
            self.loaded,
            tensor,
            layer=self.layer,
            layout=self.layout,
            target=self.target,
            gradients=any(method.needs == "gradients" for method in used),
            ablations=any(method.ablates for method in used),
        )
        return kept, self._maps(kept, tensor)

    def _maps(self, kept: Trace, tensor: Tensor) -> dict[str, Heatmap]:
        """From the trace, but for the methods that look at attention, or combine layers where none are named."""
        how: dict[str, Any] = {"fuse": self.how.fuse, "smooth": self.how.smooth, "seed": self.how.seed}
        many = [name for name in self.methods if METHODS[name].layers == "many" or self.how.fuse is not None]
        own = many if self.layer is None else []
        own += [name for name in self.methods if METHODS[name].needs == "attention"]
        shared = {name: options for name, options in self.methods.items() if name not in own}
        found: dict[str, Heatmap] = {}
        if shared:
            found |= compare(kept, methods=shared, **how)
        if own:
            theirs = {name: self.methods[name] for name in own}
            found |= compare(self.loaded, tensor, methods=theirs, target=kept.bound(), **how)
        return {name: self._named(found[name]) for name in self.methods}

    def _named(self, heatmap: Heatmap) -> Heatmap:
        made = heatmap.provenance
        names = renamed(heatmap.question, made.class_names, self.names)
        return replace(heatmap, provenance=replace(made, class_names=names))


def facts_of(made: Provenance, **more: str) -> dict[str, str]:
    """What holds for every picture; `more` before how it was computed."""
    kind, *part = re.split("(?=, from )", made.score, maxsplit=1)
    return {
        "model": made.model,
        "weights": made.weights or "the model's own",
        "layer": looked_at(made),
        "preprocessing": made.preprocess,
        "score": f"{kind}{_OF.get(kind, ' of the class')}{''.join(part)}",
        **more,
        "computed": f"in {made.dtype} on {made.device}, torch {made.torch}, torchpeek {__version__}",
    }


def looked_at(made: Provenance) -> str:
    """The layer, why that one, and how it was read where that is not as a convolution's output is."""
    first = made.layout.startswith("channels-first") and "," not in made.layout
    read = "" if first or not made.layout else f", read as {made.layout}"
    return f"{made.layer} ({made.layer_reason}{read})"
