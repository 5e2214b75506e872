"""RunningStatistics: mean, variance, extremes and a histogram of a layer's values per channel, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks.recording.storage import Leaf

SAMPLED = 65_536
"""The most values of one call of a layer in the histogram, evenly spaced. All other numbers use every value."""

# A bin is given by the sign, the exponent and the first three bits of a finite float32: eight bins to the octave.
_BINS_PER_SIGN = 255 * 8
_CHUNK_SIZE = 1 << 20  # values that are processed at a time, so that they stay in the cache
_MAX_PENDING = 1 << 18  # the most numbers that wait to be merged


@dataclass(frozen=True)
class Summary:
    """The statistics of a layer over all its channels.

    Args:
        calls: The number of calls.
        count: The number of finite values. Only these enter the fields from `mean` to `zero_share`.
        mean: Their mean; NaN if there is none.
        std: Their standard deviation, of the population.
        min: The least of them.
        max: The largest of them.
        zero_share: The share of them that is exactly zero, from 0 to 1.
        channels: The number of channels.
        dead: The number of channels that were zero everywhere.
        nan: The number of values that were NaN.
        inf: The number of values that were infinite.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        ...     output = model(torch.tensor([[-1.0, 2.0]]))
        >>> tape["0"].output.summary().zero_share
        0.5
    """

    calls: int
    count: int
    mean: float
    std: float
    min: float
    max: float
    zero_share: float
    channels: int
    dead: int
    nan: int
    inf: int


class RunningStatistics(Leaf):
    """Mean, variance, extremes, zeros, NaN and infinities of each channel, and a histogram over all channels.

    Every value of every call counts. Values that are NaN or infinite are counted apart and left out of all other
    numbers. The variance is that of the population.

    Args:
        channel_axis: The axis of the channels. A tensor that does not have this axis counts as one channel.
        histogram: Whether to count a histogram.

    Attributes:
        calls: The number of calls.
        channels: The number of channels C; 0 before the first call.
        nan: (C,) float64: the number of values that were NaN.
        inf: (C,) float64: the number of values that were infinite.
        first_not_finite: The call, from 0, with the first NaN or infinity; None if there was none.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        ...     output = model(torch.ones(2, 3))
        >>> tape["0"].output.mean
        tensor([1., 1., 1.], dtype=torch.float64)
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
        self._pending_size = 0  # the numbers in it
        self.first_not_finite: int | None = None

    def read(self) -> RunningStatistics:
        """Read the statistics, as every leaf of a recording is read.

        Returns:
            The statistics themselves. Later calls of the layer go on changing them.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> RunningStatistics().read()
            RunningStatistics(no call)
        """
        return self

    def update(self, tensor: Tensor) -> None:
        """Add the values of one more call.

        Args:
            tensor: Real values of any shape; (N, C, ...) unless `channel_axis` says otherwise.

        Raises:
            InputError: When the number of channels is not that of the calls before, or the tensor is complex, nested
                or sparse.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.mean
            tensor([1., 2.], dtype=torch.float64)
        """
        rows = self._rows(tensor.detach())  # (R, C, L): R rows of L values for each channel
        if self.channels == 0:
            self._allocate(rows.shape[1])
        elif rows.shape[1] != self.channels:
            raise InputError(
                f"a tensor of shape {tuple(tensor.shape)} has {rows.shape[1]} channels on axis {self._axis}, but the "
                f"tensors before had {self.channels}; tp.keep.Running(channel_axis=...) sets the axis of the channels"
            )
        if rows.numel():
            mean, var = _moments(rows)  # (R, C)
            # If the sum is not finite, then a value is not finite or the sum has overflowed. Both are rare and slow.
            if math.isfinite(float(mean.sum() + var.sum())):
                self._queue_moments(rows, mean, var)
            else:
                self._merge_in_float64(rows)
            if self._bin_counts is not None:
                self._bin_counts += _count_bins(rows, self.calls)
        self.calls += 1

    @property
    def count(self) -> Tensor:
        """(C,) float64: the number of finite values."""
        return self._merged_count()

    @property
    def min(self) -> Tensor:
        """(C,) float64: the least finite value; infinity if there is none."""
        self._merged_count()
        return self._low

    @property
    def max(self) -> Tensor:
        """(C,) float64: the largest finite value; minus infinity if there is none."""
        self._merged_count()
        return self._high

    @property
    def mean(self) -> Tensor:
        """(C,) float64: the mean of the finite values; NaN for a channel without one."""
        count = self._merged_count()
        return torch.where(count > 0, self._mean, math.nan)

    @property
    def var(self) -> Tensor:
        """(C,) float64: the variance of the finite values, of the population."""
        count = self._merged_count()
        return self._m2 / count

    @property
    def std(self) -> Tensor:
        """(C,) float64: the square root of `var`."""
        return self.var.sqrt()

    @property
    def zero_share(self) -> Tensor:
        """(C,) float64: the share of the finite values that is exactly zero, from 0 to 1."""
        count = self._merged_count()
        return self._zeros / count

    @property
    def dead(self) -> Tensor:
        """(C,) bool: whether the channel was zero everywhere in every call."""
        count = self._merged_count()
        return (self._zeros == count) & (count > 0) & (self.nan + self.inf == 0)

    def summary(self) -> Summary:
        """Combine all channels.

        Returns:
            The numbers over all values of all channels.

        Raises:
            NotFired: When there was no call yet.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.summary().mean
            1.5
        """
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
        """Whether a histogram is counted and has values in it."""
        return self._bin_counts is not None and bool(self._bin_counts.any())

    def histogram(self, bins: int = 64) -> tuple[Tensor, Tensor]:
        """The histogram over all channels, from the least sampled value to the largest.

        At most 65,536 values of a call are sampled. They are counted in fine bins, eight to the octave, and spread
        evenly within their fine bin. Zeros are in the narrowest fine bin, which starts at 0.

        Args:
            bins: The number of bins.

        Returns:
            The counts (bins,) and the edges (bins + 1,), both float64. The counts add up to the number of sampled
            values.

        Raises:
            InputError: When no histogram is counted.
            NotFired: When there was no finite value yet.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
            >>> statistics.histogram(bins=2)[0]
            tensor([2., 2.], dtype=torch.float64)
        """
        if self._bin_counts is None:
            raise InputError("these statistics have no histogram; tp.keep.Running(histogram=True) counts one")
        self._merged_count()
        low, high = _EDGES[:-1], _EDGES[1:]
        filled = self._bin_counts.nonzero().flatten()
        if not len(filled):
            raise NotFired("the histogram is empty: there was no finite value")
        start, stop = float(low[filled[0]].clamp(min=self.min.min())), float(high[filled[-1]].clamp(max=self.max.max()))
        if not start < stop:  # a single value, or float64 values closer than a fine bin
            start, stop = min(start, stop) - 0.5, max(start, stop) + 0.5
        edges = torch.linspace(start, stop, bins + 1, dtype=torch.float64)
        # The share of each fine bin that is below each edge. A fine bin of width 0 is a step.
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
            raise NotFired("there are no statistics, because there was no value yet")
        self._merge_pending()
        return self._count

    def _rows(self, tensor: Tensor) -> Tensor:
        """The tensor as R rows of L values for each channel: (R, C, L), contiguous, in float32 or float64."""
        if tensor.is_complex():
            raise InputError(
                "statistics are not defined for complex numbers; tp.keep.Stored(reduce=torch.abs) stores the magnitudes"
            )
        if tensor.is_nested or tensor.layout != torch.strided:
            layout = "a nested one" if tensor.is_nested else tensor.layout
            raise InputError(f"statistics need a dense tensor; got {layout}")
        if tensor.device.type == "mps":  # MPS has no float64
            tensor = tensor.cpu()
        if tensor.dtype != torch.float64:
            tensor = tensor.float() if tensor.is_floating_point() else tensor.double()
        if not -tensor.ndim <= self._axis < tensor.ndim:
            return tensor.reshape(1, 1, -1)
        by_channel = tensor.movedim(self._axis, 1) if tensor.ndim > 1 else tensor[None]
        rows = by_channel.reshape(*by_channel.shape[:2], math.prod(by_channel.shape[2:]))
        # Many short rows are slow. Transposing them is cheap and gives one long row for each channel.
        if rows.shape[2] <= 4:
            rows = rows.movedim(0, 1).flatten(1)[None]
        return rows.contiguous()

    def _queue_moments(self, rows: Tensor, mean: Tensor, var: Tensor) -> None:
        """Queue the five numbers of each row. They are merged in large groups, as a small tensor costs as much time."""
        flat = rows.view(-1, rows.shape[2])
        zeros = torch.empty(len(flat), dtype=torch.float64, device=rows.device)
        buffer = torch.empty(0, dtype=rows.dtype, device=rows.device)
        for start, chunk in _chunks(flat):
            torch.eq(chunk, 0, out=buffer.resize_(chunk.shape))  # as floats, because summing booleans is slower
            # A float32 can count up to 2**24.
            exact = torch.float64 if rows.shape[2] > 2**24 else rows.dtype
            zeros[start : start + len(chunk)] = buffer.sum(1, dtype=exact)
        numbers = [mean, var, rows.amin(2), rows.amax(2)]
        moments = torch.stack([*(number.double() for number in numbers), zeros.view(mean.shape)])  # (5, R, C)
        self._pending.append((rows.shape[2], moments))
        self._pending_size += moments.numel()
        if self._pending_size > _MAX_PENDING or len(self._pending) >= 256:
            self._merge_pending()

    def _merge_pending(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([moments.cpu() for _, moments in self._pending], 1)  # (5, R, C)
        lengths = torch.cat([torch.full((moments.shape[1], 1), length) for length, moments in self._pending])  # (R, 1)
        self._pending.clear()
        self._pending_size = 0
        mean, var, low, high, zeros = rows.unbind()  # (R, C) each
        total = lengths.sum()
        middle = (lengths * mean).sum(0) / total
        m2 = (lengths * (var + (mean - middle).square())).sum(0)
        count = torch.full((self.channels,), float(total), dtype=torch.float64)
        self._merge(count, middle, m2, zeros.sum(0), low.amin(0), high.amax(0))

    def _merge_in_float64(self, rows: Tensor) -> None:
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
        """Merge a group of values into the total.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm" (1979), eq. 2.1.
        """
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
    """Mean and variance of each row, each (R, C).

    They are those of torch's group norm, which reads the values once and does not suffer from cancellation.
    """
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
    while math.gcd(step, rows.shape[2]) > 1:  # with a common divisor it could hit the same columns of a grid each time
        step += 1
    values = flat[call % step :: step].float() + 0.0  # -0 becomes 0
    # The first 12 bits of a float32 as a signed integer, plus 2048: negative values have 0 to 2047, ascending with
    # their magnitude, and positive values have 2048 to 4095.
    counts = torch.bincount((values.view(torch.int32) >> 20) + 2048, minlength=4096).cpu()
    return torch.cat([counts[:_BINS_PER_SIGN].flip(0), counts[2048 : 2048 + _BINS_PER_SIGN]])


def _edges() -> Tensor:
    """The edges of the fine bins in ascending order: (2 * _BINS_PER_SIGN + 1,) float64."""
    sizes = (torch.arange(_BINS_PER_SIGN, dtype=torch.int32) << 20).view(torch.float32).double()
    sizes = torch.cat([sizes, torch.tensor([2.0**128], dtype=torch.float64)])
    return torch.cat([-sizes[1:].flip(0), sizes])


_EDGES = _edges()
