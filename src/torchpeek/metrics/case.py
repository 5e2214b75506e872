"""What metrics are given: heatmaps that are scored together, and the clean pass that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from torchpeek.engine import Trace
from torchpeek.engine.targets import ClassScores, ComputedScores, class_logits
from torchpeek.engine.trace import Bound, Change
from torchpeek.errors import MetricNotApplicable
from torchpeek.heatmap import unit_range, upsample
from torchpeek.metrics.draws import fingerprint, generator

Made = TypeVar("Made")

# What interpolating equal values tells apart is no difference: of the largest value, so small a part.
_SAME = 2.0**-20
ONE_LOGIT = (
    "the model has one logit, whose softmax is 1 whatever it shows. Next: a target that says what the probability is, "
    "such as tp.targets.Computed, or a metric that reads none (torchpeek metrics)"
)


class Explainer(Protocol):
    """Makes heatmaps of other inputs, in the way in which those that are scored were made."""

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        model: nn.Module | None = None,
        labels: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        """(n, ...), versions of the samples `rows` -> (n, K, *grid); of another model, or for other classes (n, K).

        `draw` tells the times apart that the same is asked of a baseline that is drawn at random.
        """
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class _Memo:
    values_by_key: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` returns, made the first time."""
        if key not in self.values_by_key:
            self.values_by_key[key] = make()
        value: Made = self.values_by_key[key]
        return value


@dataclass(frozen=True, eq=False)
class CleanPass(_Memo):
    """The clean pass, and what is known of it: shared by all metrics, and by heatmaps on whatever grid."""

    trace: Trace  # at no layer; its scores (N, K) are what the heatmaps explain
    seed: int = 0
    batch: int | None = None  # passes at once; None for as many as fit

    @cached_property
    def probable(self) -> Trace:
        """The same pass, asked for probabilities where what is asked is scores of classes."""
        question = self.trace.question
        if isinstance(question, ClassScores):
            if class_logits(self.trace.output).shape[1] < 2:
                raise MetricNotApplicable(ONE_LOGIT)
            question = replace(question, kind="probability")
        return self.trace.asked(Bound(question, tuple(self.trace.given.observed)))

    @cached_property
    def fingerprints(self) -> list[bytes]:
        """Of each sample."""
        return [fingerprint(sample) for sample in self.trace.inputs]

    def generators(self, salt: int = 0) -> list[torch.Generator]:
        """For each sample its own random numbers: from the seed and the sample, whatever else is in the batch."""
        return [generator(each, self.seed, salt) for each in self.fingerprints]


@dataclass(frozen=True, eq=False)
class Case(_Memo):
    """J = M * K heatmaps of each of N samples, on one grid: of M methods, each of K scores."""

    clean: CleanPass
    values: Tensor  # (N, J, *grid), signed and raw; heatmap j is of score j % K
    regions: Tensor | None = None  # (N, 1 or K, *size), bool
    explainers: Sequence[Explainer] = ()  # of the M methods

    @property
    def inputs(self) -> Tensor:
        """(N, C, *size)"""
        return self.clean.trace.inputs

    @property
    def size(self) -> torch.Size:
        """Of the input's own axes."""
        return self.inputs.shape[2:]

    @property
    def classes(self) -> int:
        """K"""
        return self.clean.trace.scores.shape[1]

    @cached_property
    def columns(self) -> Tensor:
        """(J,): which score each heatmap is of."""
        return torch.arange(self.values.shape[1], device=self.values.device) % self.classes

    @cached_property
    def scores(self) -> Tensor:
        """(N, J): the clean p of each heatmap."""
        return self.clean.probable.scores[:, self.columns]

    @cached_property
    def mask(self) -> Tensor:
        """(N, J, *size): positive, scaled to [0, 1], then resized, as masking metrics read it."""
        return upsample(unit_range(self.values.clamp(min=0)), self.size)

    @cached_property
    def signed(self) -> Tensor:
        """(N, J, *size): resized, as ranking metrics read it."""
        return upsample(self.values, self.size)

    @cached_property
    def levels(self) -> Tensor:
        """(N, J, P), whole numbers: the same, for comparisons; what differs by rounding alone is equal."""
        return round_to_levels(self.signed.flatten(2))

    @cached_property
    def ranks(self) -> Tensor:
        """(N, J, *size), int32: the place of each position, the highest value first, equal ones in random order."""
        return self.ranked(self.signed.flatten(2)).view_as(self.signed)

    def ranked(self, values: Tensor) -> Tensor:
        """(N, J, P) -> (N, J, P), int32: the same of any values."""
        values = round_to_levels(values)
        places = torch.arange(values.shape[2], dtype=torch.int32, device=values.device).expand_as(values[0])
        ranks = torch.empty_like(values, dtype=torch.int32)
        for sample, drawn in enumerate(self.clean.generators()):  # one by one, as sorting takes much memory
            shuffled = torch.randperm(values.shape[2], generator=drawn).to(values.device).expand_as(values[0])
            by_value = values[sample].gather(1, shuffled).sort(dim=1, descending=True, stable=True).indices
            ranks[sample].scatter_(1, shuffled.gather(1, by_value), places)
        return ranks

    def region(self, widened: Callable[[Tensor], Tensor] = lambda regions: regions) -> Tensor:
        """(N, J, *size), bool; `widened` is applied once to each region. Raises MetricNotApplicable where none is."""
        if self.regions is None:
            raise MetricNotApplicable("metrics of where need masks= or boxes=, which say where the object is")
        regions = widened(self.regions.to(self.values.device))
        return (
            regions[:, self.columns] if regions.shape[1] > 1 else regions.expand(-1, self.values.shape[1], *self.size)
        )

    @cached_property
    def masked_scores(self) -> Tensor:
        """(N, J): p of the input times each heatmap's mask."""

        def masked(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
            return inputs * self.mask[rows, maps].unsqueeze(1).to(inputs)

        return self.rescored(masked, 1).squeeze(2)

    def rescored(self, change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], trials: int) -> Tensor:
        """(N, J, trials): p of inputs that are changed for each heatmap.

        Called as `change(inputs (b, C, *size), rows (b,), maps (b,), trials (b,))`; entry i is sample rows[i], for its
        heatmap maps[i], in its trial trials[i].
        """
        maps = self.values.shape[1]

        def perturb(inputs: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
            return change(inputs, rows, numbers // trials, numbers % trials)

        scores = self.clean.probable.rescore(perturb, maps * trials, batch=self.clean.batch)  # (N, J * trials, K)
        columns = self.columns.to(scores.device).repeat_interleave(trials).view(1, -1, 1).expand(len(scores), -1, 1)
        return scores.gather(2, columns).view(len(scores), maps, trials)

    def rescored_alike(self, key: object, perturb: Change, trials: int, *, raw_score: bool = False) -> Tensor:
        """(N, J, trials): p, or what is asked, of inputs that are changed alike for every heatmap; run once."""
        trace = self.clean.trace if raw_score else self.clean.probable
        scores = self.clean.once(
            (key, raw_score, trials), lambda: trace.rescore(perturb, trials, batch=self.clean.batch)
        )  # (N, trials, K)
        return scores.mT[:, self.columns]


def round_to_levels(values: Tensor) -> Tensor:
    """(N, J, P) -> (N, J, P): whole numbers in the same order, equal where rounding alone tells two apart."""
    largest = values.abs().amax(2, keepdim=True)
    return (values / torch.where(largest > 0, largest, 1) / _SAME).round()


def check_computed(case: Case, name: str) -> None:
    """Raise MetricNotApplicable unless what a function of the caller's computes can be a probability."""
    if not isinstance(case.clean.trace.question, ComputedScores):
        return
    numbers = torch.cat([case.scores, case.masked_scores])
    if not bool(((numbers >= 0) & (numbers <= 1)).all()):
        raise MetricNotApplicable(
            f"{name} is of probabilities, and what is computed here is {float(numbers.min()):.4g} to "
            f"{float(numbers.max()):.4g}. Next: compute numbers in [0, 1], or choose another metric (torchpeek metrics)"
        )
