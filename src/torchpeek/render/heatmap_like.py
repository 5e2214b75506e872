"""HeatmapLike: what drawings read of a heatmap."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ProvenanceLike(Protocol):
    """What drawings read of a provenance."""

    @property
    def method(self) -> str:
        """Name of the method."""
        ...

    @property
    def layout(self) -> str:
        """How the layer's output was read."""
        ...

    @property
    def weights(self) -> str:
        """Name of the weights; "random" if they are not trained."""
        ...


class HeatmapLike(Protocol):
    """What drawings read of a heatmap."""

    @property
    def values(self) -> Tensor:
        """The maps, (N, K, *grid)."""
        ...

    @property
    def provenance(self) -> ProvenanceLike:
        """The choices that the values depend on."""
        ...

    def sign_remark(self, n: int = 0, k: int = 0) -> str:
        """Say whether positive values alone hide what a map says."""
        ...
