"""Case: the argument of every metric, heatmaps that are scored together with the clean pass that they explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchpeek.cached import cached_property
from torchpeek.engine import Change, Trace
from torchpeek.engine.targets import ComputedScores
from torchpeek.errors import MetricNotApplicable
from torchpeek.heatmap import unit_range, upsample
from torchpeek.keywords import checked_class
from torchpeek.metrics.clean_pass import CleanPass, Memo
from torchpeek.metrics.explainer import Explainer

# Values that differ by less than this share of the largest are equal: interpolation differs in the last digits.
_SAME = 2.0**-20


@checked_class
@dataclass(frozen=True, eq=False)
class Case(Memo):
    """J = M * K heatmaps of each of N samples, on one grid: M methods with K scores each.

    Args:
        clean: The clean pass.
        values: (N, J, *grid), signed and raw. Heatmap j explains score j % K.
        regions: (N, 1 or K, *size), bool: where the object is. None if that is not known.
        explainers: M functions that explain other inputs, one for each method.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
        >>> tp.metrics.Case(clean, torch.rand(1, 1, 6, 6)).mask.shape
        torch.Size([1, 1, 8, 8])
    """

    clean: CleanPass
    values: Tensor
    regions: Tensor | None = None
    explainers: Sequence[Explainer] = ()

    @property
    def inputs(self) -> Tensor:
        """The inputs of the clean pass, (N, C, *size)."""
        return self.clean.trace.inputs

    @property
    def size(self) -> torch.Size:
        """The size of the input's grid, without samples and channels."""
        return self.inputs.shape[2:]

    @property
    def classes(self) -> int:
        """The number of scores, K."""
        return self.clean.trace.scores.shape[1]

    @cached_property
    def columns(self) -> Tensor:
        """(J,): which score each heatmap is of."""
        return torch.arange(self.values.shape[1], device=self.values.device) % self.classes

    @cached_property
    def scores(self) -> Tensor:
        """(N, J): the probability of each heatmap's score in the clean pass."""
        return self.clean.probable.scores[:, self.columns]

    @cached_property
    def mask(self) -> Tensor:
        """(N, J, *size): the heatmaps as masking metrics read them: positive, scaled to [0, 1], then resized."""
        return upsample(unit_range(self.values.clamp(min=0)), self.size)

    @cached_property
    def signed(self) -> Tensor:
        """(N, J, *size): the heatmaps as ranking metrics read them: signed, resized."""
        return upsample(self.values, self.size)

    @cached_property
    def levels(self) -> Tensor:
        """(N, J, P), whole numbers: `signed` for comparisons. Values that differ by rounding alone are equal."""
        return round_to_levels(self.signed.flatten(2))

    @cached_property
    def ranks(self) -> Tensor:
        """(N, J, *size), int32: the rank of each position, 0 for the highest value, equal values in random order."""
        return self.ranked(self.signed.flatten(2)).view_as(self.signed)

    def ranked(self, values: Tensor) -> Tensor:
        """Return the rank of each value: 0 for the highest. Equal values are ranked in random order.

        Args:
            values: (N, J, P).

        Returns:
            (N, J, P), int32.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> tp.metrics.Case(clean, torch.rand(1, 1, 6, 6)).ranked(torch.tensor([[[0.1, 0.9, 0.5]]])).tolist()
            [[[2, 0, 1]]]
        """
        values = round_to_levels(values)
        places = torch.arange(values.shape[2], dtype=torch.int32, device=values.device).expand_as(values[0])
        ranks = torch.empty_like(values, dtype=torch.int32)
        for sample, drawn in enumerate(self.clean.generators()):  # one by one, because sorting takes much memory
            shuffled = torch.randperm(values.shape[2], generator=drawn).to(values.device).expand_as(values[0])
            by_value = values[sample].gather(1, shuffled).sort(dim=1, descending=True, stable=True).indices
            ranks[sample].scatter_(1, shuffled.gather(1, by_value), places)
        return ranks

    def region(self, widened: Callable[[Tensor], Tensor] = lambda regions: regions) -> Tensor:
        """Return the region of the object for each heatmap.

        Args:
            widened: Applied to the regions (N, 1 or K, *size), once for each of them.

        Returns:
            (N, J, *size), bool.

        Raises:
            MetricNotApplicable: When the case has no regions.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> regions = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            >>> tp.metrics.Case(clean, torch.rand(1, 3, 6, 6), regions).region().shape
            torch.Size([1, 3, 8, 8])
        """
        if self.regions is None:
            raise MetricNotApplicable("this metric needs masks= or boxes=, which say where the object is")
        regions = widened(self.regions.to(self.values.device))
        return (
            regions[:, self.columns] if regions.shape[1] > 1 else regions.expand(-1, self.values.shape[1], *self.size)
        )

    def explained(self, inputs: Tensor, **changes: Any) -> Tensor:
        """Explain changed versions of the samples by every method.

        Args:
            inputs: (N, C, *size).
            **changes: What else changes: further arguments of an Explainer.

        Returns:
            (N, J, *grid).

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> explainer = tp.metrics.constant_explainer(torch.ones(1, 6, 6))
            >>> case = tp.metrics.Case(clean, torch.ones(1, 1, 6, 6), explainers=[explainer])
            >>> case.explained(torch.rand(1, 3, 8, 8)).shape
            torch.Size([1, 1, 6, 6])
        """
        rows = torch.arange(len(inputs))
        return torch.cat([explain(inputs, rows, **changes) for explain in self.explainers], dim=1)

    @cached_property
    def masked_scores(self) -> Tensor:
        """(N, J): the probability for the input times each heatmap's mask."""

        def masked(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
            return inputs * self.mask[rows, maps].unsqueeze(1).to(inputs)

        return self.rescored(masked, 1).squeeze(2)

    def rescored(self, change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], trials: int) -> Tensor:
        """Return the probability for inputs that are changed for each heatmap on its own.

        Args:
            change: Called as `change(inputs (b, C, *size), rows (b,), maps (b,), trials (b,))`. Entry i is sample
                rows[i], to be changed for heatmap maps[i] in trial trials[i]. Returns the changed inputs.
            trials: Number of changes for each heatmap.

        Returns:
            (N, J, trials).

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> case = tp.metrics.Case(clean, torch.rand(1, 1, 6, 6))
            >>> case.rescored(lambda inputs, rows, maps, trials: inputs * 0, 2).shape
            torch.Size([1, 1, 2])
        """
        scores = self._rescored(self.clean.probable, change, trials)  # (N, J, trials, K)
        columns = self.columns.to(scores.device).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return scores.gather(3, columns).squeeze(3)

    def rescored_logits(self, change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], trials: int) -> Tensor:
        """Return the logits of all classes for inputs that are changed for each heatmap on its own.

        Args:
            change: As for `rescored`.
            trials: Number of changes for each heatmap.

        Returns:
            (N, J, trials, classes).

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> case = tp.metrics.Case(clean, torch.rand(1, 1, 6, 6))
            >>> case.rescored_logits(lambda inputs, rows, maps, trials: inputs * 0, 2).shape
            torch.Size([1, 1, 2, 4])
        """
        return self._rescored(self.clean.logits, change, trials)

    def _rescored(
        self, trace: Trace, change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], trials: int
    ) -> Tensor:
        """Return the trace's scores of the changed inputs, (N, J, trials, K)."""
        maps = self.values.shape[1]

        def perturb(inputs: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
            return change(inputs, rows, numbers // trials, numbers % trials)

        scores = trace.rescore(perturb, maps * trials, batch=self.clean.batch)  # (N, J * trials, K)
        return scores.reshape(len(scores), maps, trials, -1)

    def rescored_alike(self, key: object, perturb: Change, trials: int, *, raw_score: bool = False) -> Tensor:
        """Return the probability, or the score, for inputs that are changed in the same way for every heatmap.

        The passes run once, however many heatmaps and metrics read them.

        Args:
            key: Names the change, so that the result is remembered.
            perturb: Called as `perturb(inputs (b, C, *size), rows (b,), trials (b,))`. Returns the changed inputs.
            trials: Number of changes.
            raw_score: Whether to return the score itself in place of the probability.

        Returns:
            (N, J, trials).

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
            >>> case = tp.metrics.Case(clean, torch.rand(1, 1, 6, 6))
            >>> case.rescored_alike("zero", lambda inputs, rows, trials: inputs * 0, 1).shape
            torch.Size([1, 1, 1])
        """
        trace = self.clean.trace if raw_score else self.clean.probable
        scores = self.clean.once(
            (key, raw_score, trials), lambda: trace.rescore(perturb, trials, batch=self.clean.batch)
        )  # (N, trials, K)
        return scores.mT[:, self.columns]


def round_to_levels(values: Tensor) -> Tensor:
    """Return whole numbers in the order of the values, (N, J, P). Values that differ by rounding alone are equal."""
    largest = values.abs().amax(2, keepdim=True)
    return (values / torch.where(largest > 0, largest, 1) / _SAME).round()


def rounding_of(inputs: Tensor) -> float:
    """Return the share of a score by which passes in chunks of another size may differ."""
    return max(1e-5, 8 * torch.finfo(inputs.dtype).eps)


def check_computed(case: Case, name: str) -> None:
    """Raise MetricNotApplicable if a `Computed` target returns numbers that cannot be probabilities."""
    if not isinstance(case.clean.trace.question, ComputedScores):
        return
    numbers = torch.cat([case.scores, case.masked_scores])
    if not bool(((numbers >= 0) & (numbers <= 1)).all()):
        raise MetricNotApplicable(
            f"{name} needs probabilities, but the computed numbers are {float(numbers.min()):.4g} to "
            f"{float(numbers.max()):.4g}. Next: compute numbers in [0, 1], or choose another metric (torchpeek metrics)"
        )
