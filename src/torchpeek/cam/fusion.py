"""Fusion: one map from the maps of several layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from torchpeek.argument_types import Allowed, Seed
from torchpeek.cam.method import cam_method, find_method
from torchpeek.engine import Trace
from torchpeek.errors import OptionError
from torchpeek.heatmap import unit_range, upsample

FUSIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"max": lambda maps: maps.amax(0), "mean": lambda maps: maps.mean(0), "product": lambda maps: maps.prod(0)}
)
"""Name -> function of the layers' maps (L, N, K, *grid), each scaled to [0, 1]."""

Fusion: TypeAlias = Annotated[str, Allowed(", ".join(map(repr, FUSIONS)))]
"""The name of a fusion."""


def fused(maps: Sequence[Tensor], fusion: str) -> Tensor:
    """Fuse the maps of several layers (N, K, *grid) into one, on the largest grid.

    Each map is cut off below zero, scaled to [0, 1] and interpolated first. `fusion` is "max", "mean" or "product";
    another one raises OptionError.
    """
    if fusion not in FUSIONS:
        raise OptionError(f"fuse is {fusion!r}; allowed: {', '.join(map(repr, FUSIONS))}")
    size = max((each.shape[2:] for each in maps), key=lambda grid: grid.numel())
    return FUSIONS[fusion](torch.stack([upsample(unit_range(each.clamp(min=0)), size) for each in maps]))


def fusion_step(fusion: str) -> str:
    """What `fused` does, for the steps of a heatmap's provenance."""
    return f"each layer's map positive, unit, on the same grid, and their {fusion}"


def fusion_in(steps: Iterable[str]) -> str | None:
    """The fusion that is among the steps of a heatmap's provenance; None where its map is of one layer."""
    return next((fusion for fusion in FUSIONS if fusion_step(fusion) in steps), None)


@cam_method("refinecam", needs="gradients", layers="many", differentiable=True, paper="arXiv:2605.14641")
def refinecam(trace: Trace, *, base: str = "gradcam++", seed: Seed = 0) -> Tensor:
    """The product of several layers' maps: what all of them agree on, as fine as the finest.

    Each layer's map is cut off below zero, divided by its maximum and resized to the largest grid.

    Args:
        base: The method that makes each layer's map: one of a single layer.
        seed: Seed of that method, if it draws random numbers.
    """
    method = find_method(base)
    if method.layers != "one" or method.needs == "head":
        raise OptionError(f"option base is {base!r}; allowed: a method of one layer, such as 'gradcam++' or 'layercam'")
    if trace.create_graph and not method.differentiable:
        raise OptionError(f"option base is {base!r}; allowed with create_graph=True: one such as 'gradcam++'")
    options = {"seed": seed} if "seed" in method.options else {}
    return fused([method.compute(trace.only(name), **options) for name in trace.at], "product")
