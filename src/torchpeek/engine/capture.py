"""What one layer returned in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from torchpeek.engine.layouts import Layout


@dataclass(frozen=True, eq=False)
class Capture:
    """What one layer returned in one pass.

    `returned` (N, ...), samples first, is a copy of the tensor in it, taken before anything could write into that, and
    `layout` says how it is to be read. `handle` is where the gradient of the tensor is asked for, as the layer returned
    it: the leaf that the graph starts at, or the edge of a graph that began earlier; None where the pass kept no graph.
    """

    layer: str
    returned: Tensor
    handle: Tensor | GradientEdge | None
    layout: Layout

    @property
    def activation(self) -> Tensor:
        """(N, C, *grid), a view."""
        return self.layout.to_grid(self.returned)

    def as_returned(self, values: Tensor) -> Tensor:
        """(N, C, *grid) -> as the layer returned its tensor, zero at the tokens that are not of the grid."""
        others = torch.zeros_like(self.returned)
        return self.layout.from_grid(values, others).movedim(0, self.layout.batch_axis)

    def to_grid(self, gradient: Tensor) -> Tensor:
        """(K, ...) with respect to what the layer returned -> (N, K, C, *grid)."""
        return self.layout.to_grid(gradient.movedim(1 + self.layout.batch_axis, 0), lead=2)
