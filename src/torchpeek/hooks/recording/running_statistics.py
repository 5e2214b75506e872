"""Running statistics of what flows through a layer, for each channel, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks.recording.storage import Leaf

SAMPLED = 65_536
"""At most so many values of a layer and call go into the histogram, evenly spaced; all of them into the rest."""

_BINS_PER_SIGN = (
    255 * 8
)  # bins of one sign: the exponent of a finite float32 and its first three bits, so eight to the octave
_CHUNK_SIZE = 1 << 20  # values worked on at once, so that they stay in the cache
_MAX_PENDING = 1 << 18  # numbers at most that wait to be added up


@dataclass(frozen=True)
class Summary:
    """One layer's values as a whole. Those that are NaN or infinite are counted and left out of the rest."""

    calls: int
    count: int
    mean: float
    std: float
    min: float
    max: float
    zero_share: float
    channels: int
    dead: int  # channels that were zero everywhere
    nan: int
    inf: int


class RunningStatistics(Leaf):
    """Mean, variance, extremes, zeros, NaN and infinities of each channel, and a histogram over all of them.

    Every value counts, in any number of calls. Tensors are (N, C, ...) unless `channel_axis` says otherwise; those
    without such an axis have one channel. Variance is that of the population. What is not finite is counted and left
    out of everything else.
    """

    __slots__ = (
        "_axis",
        "_bin_counts",
        "_count",
        "_high",
        "_low",
        "_m2",
        "_mean",
        "_pending",
        "_pending_size",
        "_zeros",
        "calls",
        "channels",
        "first_not_finite",
        "inf",
        "nan",
    )

    accumulates = True

    def __init__(self, *, channel_axis: int = 1, histogram: bool = True) -> None:
        self._axis = channel_axis
        self._bin_counts = torch.zeros(2 * _BINS_PER_SIGN, dtype=torch.int64) if histogram else None
        self.calls = 0
        self.channels = 0
        self._pending: list[tuple[int, Tensor]] = []
        self._pending_size = 0  # numbers in it
        self.first_not_finite: int | None = None  # the call, from 0, in which the first NaN or infinity came

    def read(self) -> RunningStatistics:
        """Itself: what it says goes on with the calls."""
        return self

    def update(self, tensor: Tensor) -> None:
        """Take in the values of one more call."""
        rows = self._rows(tensor.detach())  # (R, C, L): R rows of L values for each channel
        if self.channels == 0:
            self._allocate(rows.shape[1])
        elif rows.shape[1] != self.channels:
            raise InputError(
                f"a tensor of shape {tuple(tensor.shape)} has {rows.shape[1]} channels on axis {self._axis}, those "
                f"before had {self.channels}; say which axis the channels are on: tp.keep.Running(channel_axis=...)"
            )
        if rows.numel():
            mean, var = _moments(rows)  # (R, C)
            # A sum that is not finite tells of a value that is not, or of an overflow; both are rare, and done slowly.
            if math.isfinite(float(mean.sum() + var.sum())):
                self._queue_moments(rows, mean, var)
            else:
                self._merge_finite(rows)
            if self._bin_counts is not None:
                self._bin_counts += _count_bins(rows, self.calls)
        self.calls += 1

    @property
    def count(self) -> Tensor:
        """(C,) float64: how many finite values there were."""
        return self._merged_count()

    @property
    def min(self) -> Tensor:
        """(C,) float64: the least finite value; infinity if there was none."""
        self._merged_count()
        return self._low

    @property
    def max(self) -> Tensor:
        """(C,) float64: the largest finite value; minus infinity if there was none."""
        self._merged_count()
        return self._high

    @property
    def mean(self) -> Tensor:
        """(C,) float64. NaN for a channel without a finite value."""
        count = self._merged_count()
        return torch.where(count > 0, self._mean, math.nan)

    @property
    def var(self) -> Tensor:
        """(C,) float64, of the population."""
        count = self._merged_count()
        return self._m2 / count

    @property
    def std(self) -> Tensor:
        """(C,) float64: the square root of `var`."""
        return self.var.sqrt()

    @property
    def zero_share(self) -> Tensor:
        """(C,) float64: which share of the finite values is exactly zero."""
        count = self._merged_count()
        return self._zeros / count

    @property
    def dead(self) -> Tensor:
        """(C,) bool: zero everywhere, in every call."""
        count = self._merged_count()
        return (self._zeros == count) & (count > 0) & (self.nan + self.inf == 0)

    def summary(self) -> Summary:
        """All channels filled together."""
        count = self._merged_count()
        total = float(count.sum())
        mean = float((self._mean * count).sum()) / total if total else math.nan
        m2 = float(self._m2.sum() + (count * (self._mean - mean).square()).sum()) if total else math.nan
        return Summary(
            calls=self.calls,
            count=int(total),
            mean=mean,
            std=math.sqrt(m2 / total) if total else math.nan,
            min=float(self.min.min()),
            max=float(self.max.max()),
            zero_share=float(self._zeros.sum()) / total if total else math.nan,
            channels=self.channels,
            dead=int(self.dead.sum()),
            nan=int(self.nan.sum()),
            inf=int(self.inf.sum()),
        )

    @property
    def has_histogram(self) -> bool:
        """Whether there is one, with values in it."""
        return self._bin_counts is not None and bool(self._bin_counts.any())

    def histogram(self, bins: int = 64) -> tuple[Tensor, Tensor]:
        """Counts (bins,) and edges (bins + 1,), float64, from the least sampled value to the largest.

        Values are known to an eighth of an octave, and spread evenly within it; the counts add up to the values that
        were sampled, at most `SAMPLED` of a call. Zero has to itself the narrowest of the bins it falls into.
        """
        if self._bin_counts is None:
            raise InputError("no histogram was kept; tp.keep.Running(histogram=True) keeps one")
        self._merged_count()
        low, high = _EDGES[:-1], _EDGES[1:]
        filled = self._bin_counts.nonzero().flatten()
        if not len(filled):
            raise NotFired("the histogram is empty: no finite value came")
        start, stop = float(low[filled[0]].clamp(min=self.min.min())), float(high[filled[-1]].clamp(max=self.max.max()))
        if not start < stop:  # one value; or float64 values closer than the bins tell difference
            start, stop = min(start, stop) - 0.5, max(start, stop) + 0.5
        edges = torch.linspace(start, stop, bins + 1, dtype=torch.float64)
        # The share of each fine bin that lies below each edge; a fine bin without width is a step.
        below = ((edges[:, None] - low[filled]) / (high - low)[filled]).clamp(0, 1)  # (bins + 1, filled)
        below[-1] = 1
        below[0] = 0
        return (below.diff(dim=0) * self._bin_counts[filled]).sum(1), edges

    def __repr__(self) -> str:
        if not self.calls:
            return "RunningStatistics(no call)"
        s = self.summary()
        return (
            f"RunningStatistics({s.calls} calls, {s.channels} channels: mean {s.mean:.4g}, std {s.std:.4g}, min "
            f"{s.min:.4g}, max {s.max:.4g}, zeros {s.zero_share:.1%}, dead {s.dead}, NaN {s.nan}, inf {s.inf})"
        )

    def _allocate(self, channels: int) -> None:
        self.channels = channels
        self._count, self._mean, self._m2, self._zeros, self.nan, self.inf = torch.zeros(
            6, channels, dtype=torch.float64
        ).unbind()
        self._low = torch.full((channels,), math.inf, dtype=torch.float64)
        self._high = torch.full((channels,), -math.inf, dtype=torch.float64)

    def _merged_count(self) -> Tensor:
        if not self.channels:
            raise NotFired("no value has come yet, so there are no statistics")
        self._merge_pending()
        return self._count

    def _rows(self, tensor: Tensor) -> Tensor:
        """(R, C, L), contiguous, in float32 or float64."""
        if tensor.is_complex():
            raise InputError("statistics of complex numbers are not defined here; take those of abs() with reduce")
        if tensor.is_nested or tensor.layout != torch.strided:
            raise InputError(f"statistics need a plain tensor; got a nested one, or one laid out as {tensor.layout}")
        if tensor.device.type == "mps":  # which has no float64
            tensor = tensor.cpu()
        if tensor.dtype != torch.float64:
            tensor = tensor.float() if tensor.is_floating_point() else tensor.double()
        if not -tensor.ndim <= self._axis < tensor.ndim:
            return tensor.reshape(1, 1, -1)
        by_channel = tensor.movedim(self._axis, 1) if tensor.ndim > 1 else tensor[None]
        rows = by_channel.reshape(*by_channel.shape[:2], math.prod(by_channel.shape[2:]))
        # Short rows are turned round, which costs little: one long row for each channel.
        if rows.shape[2] <= 4:
            rows = rows.movedim(0, 1).flatten(1)[None]
        return rows.contiguous()

    def _queue_moments(self, rows: Tensor, mean: Tensor, var: Tensor) -> None:
        """Keep the five numbers of each row until there are enough of them: a small tensor costs as much as a large."""
        flat = rows.view(-1, rows.shape[2])
        zeros = torch.empty(len(flat), dtype=torch.float64, device=rows.device)
        buffer = torch.empty(0, dtype=rows.dtype, device=rows.device)
        for start, chunk in _chunks(flat):
            torch.eq(chunk, 0, out=buffer.resize_(chunk.shape))  # as numbers, which are added up faster than truth is
            # A float32 counts to 16 million.
            exact = torch.float64 if rows.shape[2] > 2**24 else rows.dtype
            zeros[start : start + len(chunk)] = buffer.sum(1, dtype=exact)
        numbers = [mean, var, rows.amin(2), rows.amax(2)]
        found = torch.stack([*(number.double() for number in numbers), zeros.view(mean.shape)])  # (5, R, C)
        self._pending.append((rows.shape[2], found))
        self._pending_size += found.numel()
        if self._pending_size > _MAX_PENDING or len(self._pending) >= 256:
            self._merge_pending()

    def _merge_pending(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([found.cpu() for _, found in self._pending], 1)  # (5, R, C)
        lengths = torch.cat([torch.full((found.shape[1], 1), length) for length, found in self._pending])  # (R, 1)
        self._pending.clear()
        self._pending_size = 0
        mean, var, low, high, zeros = rows.unbind()  # (R, C) each
        total = lengths.sum()
        middle = (lengths * mean).sum(0) / total
        m2 = (lengths * (var + (mean - middle).square())).sum(0)
        count = torch.full((self.channels,), float(total), dtype=torch.float64)
        self._merge(count, middle, m2, zeros.sum(0), low.amin(0), high.amax(0))

    def _merge_finite(self, rows: Tensor) -> None:
        values = rows.cpu().double().movedim(1, 0).flatten(1)  # (C, R * L)
        finite = values.isfinite()
        nan, inf = values.isnan().sum(1), values.isinf().sum(1)
        if self.first_not_finite is None and not finite.all():
            self.first_not_finite = self.calls
        self.nan += nan
        self.inf += inf
        count = finite.sum(1).double()
        mean = values.where(finite, 0).sum(1) / count.clamp(min=1)
        m2 = (values - mean[:, None]).square().where(finite, 0).sum(1)
        low, high = values.where(finite, math.inf).amin(1), values.where(finite, -math.inf).amax(1)
        self._merge(count, mean, m2, (values == 0).sum(1).double(), low, high)

    def _merge(self, count: Tensor, mean: Tensor, m2: Tensor, zeros: Tensor, low: Tensor, high: Tensor) -> None:
        """Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm" (1979), eq. 2.1."""
        total = self._count + count
        share = count / total.clamp(min=1)
        difference = mean - self._mean
        self._mean += difference * share
        self._m2 += m2 + difference.square() * self._count * share
        self._count = total
        self._zeros += zeros
        self._low = torch.minimum(self._low, low)
        self._high = torch.maximum(self._high, high)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each row, each (R, C): the group norm's, which do not cancel and read the values once."""
    means, variances = [], []
    for _, chunk in _chunks(rows.view(-1, rows.shape[2])):
        size, length = chunk.shape
        _, mean, inverse = torch.native_group_norm(chunk[None], None, None, 1, size, length, size, 0.0)
        means.append(mean.flatten())
        variances.append(inverse.flatten().reciprocal().square())
    return torch.cat(means).view(rows.shape[:2]), torch.cat(variances).view(rows.shape[:2])


def _chunks(flat: Tensor) -> list[tuple[int, Tensor]]:
    size = max(1, _CHUNK_SIZE // flat.shape[1]) if flat.device.type == "cpu" else len(flat)
    return [(start, flat[start : start + size]) for start in range(0, len(flat), size)]


def _count_bins(rows: Tensor, call: int) -> Tensor:
    flat = rows.view(-1)
    step = -(-len(flat) // SAMPLED)
    while math.gcd(step, rows.shape[2]) > 1:  # else it might always meet the same columns of a grid
        step += 1
    values = flat[call % step :: step].float() + 0.0  # -0 becomes 0
    # As integers, negative floats count upwards from the least with their size: 0 to 2047, the positive ones from 2048.
    found = torch.bincount((values.view(torch.int32) >> 20) + 2048, minlength=4096).cpu()
    return torch.cat([found[:_BINS_PER_SIGN].flip(0), found[2048 : 2048 + _BINS_PER_SIGN]])


def _edges() -> Tensor:
    """(2 * _BINS_PER_SIGN + 1,) float64: the edges of the bins, from the least number to the largest."""
    sizes = (torch.arange(_BINS_PER_SIGN, dtype=torch.int32) << 20).view(torch.float32).double()
    sizes = torch.cat([sizes, torch.tensor([2.0**128], dtype=torch.float64)])
    return torch.cat([-sizes[1:].flip(0), sizes])


_EDGES = _edges()
