"""Explainer: explains other inputs in the same way as the heatmaps that are scored."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Explainer(Protocol):
    """Explains other inputs in the same way as the heatmaps that are scored.

    Example:
        >>> explain: tp.metrics.Explainer = tp.metrics.constant_explainer(torch.zeros(1, 4, 4))
        >>> explain(torch.rand(2, 3, 8, 8), rows=torch.tensor([0, 2])).shape
        torch.Size([2, 1, 4, 4])
    """

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        model: nn.Module | None = None,
        labels: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        """Return the heatmaps of changed samples.

        Args:
            inputs: (n, C, *size), changed versions of the samples `rows`.
            rows: (n,), which sample each input is a version of.
            model: Another model to explain. None is the model of the clean pass.
            labels: (N, K), other class indices to explain. None is the question of the heatmaps.
            draw: Number of the call. A random baseline gives other numbers for another one.

        Returns:
            (n, K, *grid).
        """
        ...
