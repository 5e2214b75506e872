"""HeatmapLike: what drawings read of a heatmap."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from torchpeek.provenance import Provenance


class HeatmapLike(Protocol):
    """What drawings read of a heatmap."""

    @property
    def values(self) -> Tensor:
        """The maps, (N, K, *grid)."""
        ...

    @property
    def provenance(self) -> Provenance:
        """The choices that the values depend on."""
        ...

    def sign_remark(self, n: int = 0, k: int = 0) -> str:
        """Say whether positive values alone hide what a map says."""
        ...
