"""RunningStatistics: mean, variance, extremes and a histogram of a layer's values per channel, in constant memory.

They are right for every magnitude that a dtype can hold: no square overflows or underflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks.recording.fine_bins import FLOAT32_BINS, FLOAT64_BINS
from torchpeek.hooks.recording.moments import SAFE_RANGE, chunks, combined, row_moments, scales, times
from torchpeek.hooks.recording.storage import Leaf
from torchpeek.tensor_formats import (
    Sizes,
    dense,
    is_ordinary,
    nested_by_channel,
    shape_sizes,
    shape_text,
)
from torchpeek.text_table import percentage

_MAX_PENDING = 1 << 18  # the most numbers that wait to be merged


@dataclass(frozen=True)
class Summary:
    """The statistics of a layer over all its channels.

    Args:
        calls: The number of calls.
        count: The number of finite values. Only these enter the fields from `mean` to `zero_share`, which are NaN if
            there is none.
        mean: Their mean.
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


class ChannelsVary(InputError):
    """A tensor has another number of channels than those before it."""


class RunningStatistics(Leaf):
    """Mean, variance, extremes, zeros, NaN and infinities of each channel, and a histogram over all channels.

    Every value of every call counts. Values that are NaN or infinite are counted apart and left out of all other
    numbers. The variance is that of the population.

    Args:
        channel_axis: The axis of the channels. A tensor that does not have this axis counts as one channel, and with
            None every tensor does.
        histogram: Whether to count a histogram.
        alternative_axis: Another axis that may be that of the channels. Its statistics are kept, too, until the length
            of one of the two axes varies from call to call. The channels are then on the other one.

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
        "_alternative",
        "_axis",
        "_bin_counts",
        "_bins",
        "_count",
        "_counts_bins",
        "_high",
        "_low",
        "_mean",
        "_pending",
        "_pending_size",
        "_shape",
        "_std",
        "_zeros",
        "calls",
        "channels",
        "first_not_finite",
        "inf",
        "nan",
    )

    accumulates = True

    _count: Tensor
    _mean: Tensor
    _std: Tensor
    _zeros: Tensor
    _low: Tensor
    _high: Tensor
    nan: Tensor
    inf: Tensor

    def __init__(
        self, *, channel_axis: int | None = 1, histogram: bool = True, alternative_axis: int | None = None
    ) -> None:
        self._axis = channel_axis
        self._alternative = (
            None if alternative_axis is None else RunningStatistics(channel_axis=alternative_axis, histogram=False)
        )
        self._shape: Sizes = ()  # of the first tensor
        self._counts_bins = histogram
        self._bins = FLOAT32_BINS
        self._bin_counts: Tensor | None = None
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
            tensor: Real values of any shape; (N, C, ...) unless `channel_axis` says otherwise. Of a nested tensor every
                value of every part counts. Quantised values count dequantised, and sparse ones with their zeros.

        Raises:
            InputError: When the number of channels is not that of the calls before, or the tensor is complex or has no
                values.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.mean
            tensor([1., 2.], dtype=torch.float64)
        """
        if self._alternative is not None:
            try:
                self._alternative.update(tensor)
            except ChannelsVary:
                self._alternative = None
        rows = self._rows(tensor.detach())  # (R, C, L): R rows of L values for each channel
        if self.channels == 0:
            self._shape = shape_sizes(tensor)
            self._bins = FLOAT64_BINS if tensor.dtype == torch.float64 else FLOAT32_BINS
            self._allocate(rows.shape[1])
        elif rows.shape[1] != self.channels:
            if self._alternative is None:
                raise ChannelsVary(
                    f"a tensor of shape {shape_text(tensor)} has {rows.shape[1]} channels on axis {self._axis}, but "
                    f"the tensors before had {self.channels}; tp.keep.Running(channel_axis=...) sets the axis of the "
                    "channels"
                )
            self._count_bins(rows)
            self._adopt_alternative()
            return
        if rows.numel():
            low, high = rows.amin(2), rows.amax(2)  # (R, C)
            mean, std = row_moments(rows)  # (R, C)
            if _are_safe(mean, std, low, high):
                self._queue_moments(rows, mean, std, low, high)
            else:
                self._merge_scaled(rows)
            self._count_bins(rows)
        self.calls += 1

    @property
    def is_ambiguous(self) -> bool:
        """Whether the channels may be on another axis, of which there are statistics, too."""
        return self._alternative is not None

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels; None where every tensor counts as one channel."""
        return self._axis

    @property
    def first_shape(self) -> Sizes:
        """The sizes of the first tensor; "*" for an axis of a nested one whose length varies."""
        return self._shape

    def exclude_axes(self, axes: set[int]) -> None:
        """Take note that the channels are on none of these axes, because their lengths depend on the batch.

        Args:
            axes: The axes, counted from the start.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics(channel_axis=1)
            >>> statistics.update(torch.ones(2, 3))
            >>> statistics.exclude_axes({1})
            >>> statistics.channels
            1
        """
        excluded = {*axes, *(axis - len(self._shape) for axis in axes)}
        if self._alternative is not None and self._alternative._axis in excluded:
            self._alternative = None
        if self._axis not in excluded:
            return
        if self._alternative is None:
            self.pool_channels()
        else:
            self._adopt_alternative()

    def pool_channels(self) -> None:
        """Count all channels as one, now and in later calls.

        Example:
            >>> from torchpeek.hooks.recording.running_statistics import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.pool_channels()
            >>> statistics.mean
            tensor([1.5000], dtype=torch.float64)
        """
        self._axis, self._alternative = None, None
        if not self.channels:
            return
        count = self._merged_count()
        mean, std = combined(count[:, None], self._mean[:, None], self._std[:, None])
        self.channels, self._mean, self._std = 1, mean, std
        self._count, self._zeros, self.nan, self.inf = (
            each.sum(0, keepdim=True) for each in (count, self._zeros, self.nan, self.inf)
        )
        self._low, self._high = self._low.amin(0, keepdim=True), self._high.amax(0, keepdim=True)

    def _adopt_alternative(self) -> None:
        """Become the statistics by the alternative axis, which has counted the same calls."""
        other = self._alternative
        assert other is not None
        own = ("_alternative", "_bin_counts", "_bins", "_counts_bins", "_shape")  # the alternative has no histogram
        for name in RunningStatistics.__slots__:
            if name not in own:
                setattr(self, name, getattr(other, name))
        self._alternative = None

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
        return self.std.square()

    @property
    def std(self) -> Tensor:
        """(C,) float64: the standard deviation of the finite values; NaN for a channel without one.

        It is right also where `var`, its square, is too large or too small for float64.
        """
        count = self._merged_count()
        return torch.where(count > 0, self._std, math.nan)

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
        mean, std = combined(count[:, None], self._mean[:, None], self._std[:, None])
        return Summary(
            calls=self.calls,
            count=int(total),
            mean=float(mean) if total else math.nan,
            std=float(std) if total else math.nan,
            min=float(self.min.min()) if total else math.nan,
            max=float(self.max.max()) if total else math.nan,
            zero_share=float(self._zeros.sum()) / total if total else math.nan,
            channels=self.channels,
            dead=int(self.dead.sum()),
            nan=int(self.nan.sum()),
            inf=int(self.inf.sum()),
        )

    @property
    def has_histogram(self) -> bool:
        """Whether a histogram is counted and has values in it."""
        return self._bin_counts is not None and bool(self._bin_counts.any())  # None before the first value

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
        if not self._counts_bins:
            raise InputError("these statistics have no histogram; tp.keep.Running(histogram=True) counts one")
        self._merged_count()
        if self._bin_counts is None or not self._bin_counts.any():
            raise NotFired("the histogram is empty: there was no finite value")
        low, high = self._bins.edges[:-1], self._bins.edges[1:]
        filled = self._bin_counts.nonzero().flatten()
        start, stop = float(low[filled[0]].clamp(min=self.min.min())), float(high[filled[-1]].clamp(max=self.max.max()))
        if not start < stop:  # a single value, or float64 values closer than a fine bin
            start, stop = min(start, stop) - 0.5, max(start, stop) + 0.5
        if math.isfinite(stop - start):
            edges = torch.linspace(start, stop, bins + 1, dtype=torch.float64)
        else:
            edges = 2 * torch.linspace(start / 2, stop / 2, bins + 1, dtype=torch.float64)
        # The share of each fine bin that is below each edge. A fine bin of width 0 is a step.
        below = (edges[:, None] / 2 - low[filled] / 2) / (high / 2 - low / 2)[filled]  # halves do not overflow
        below = below.clamp(0, 1)  # (bins + 1, filled)
        below[-1] = 1
        below[0] = 0
        return (below.diff(dim=0) * self._bin_counts[filled]).sum(1), edges

    def __repr__(self) -> str:
        if not self.calls:
            return "RunningStatistics(no call)"
        s = self.summary()
        return (
            f"RunningStatistics({s.calls} calls, {s.channels} channels: mean {s.mean:.4g}, std {s.std:.4g}, min "
            f"{s.min:.4g}, max {s.max:.4g}, zeros {percentage(s.zero_share)}, dead {s.dead}, NaN {s.nan}, inf {s.inf})"
        )

    def _allocate(self, channels: int) -> None:
        self.channels = channels
        self._count, self._mean, self._std, self._zeros, self.nan, self.inf = torch.zeros(
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
                f"its values are complex numbers ({tensor.dtype}), which have no least and no largest. Next: "
                "reduce=torch.abs, of statistics or tp.keep.Running, counts their magnitudes"
            )
        is_nested = tensor.is_nested
        if is_nested:
            tensor = nested_by_channel(tensor, self._axis)[None]  # (1, C, values)
        elif not is_ordinary(tensor):
            tensor = dense(tensor, "what it returns")
        if tensor.device.type == "mps":  # MPS has no float64
            tensor = tensor.cpu()
        if tensor.dtype != torch.float64:
            tensor = tensor.float() if tensor.is_floating_point() else tensor.double()
        if is_nested:
            return tensor.contiguous()
        if self._axis is None or not -tensor.ndim <= self._axis < tensor.ndim:
            return tensor.reshape(1, 1, -1)
        by_channel = tensor.movedim(self._axis, 1) if tensor.ndim > 1 else tensor[None]
        rows = by_channel.reshape(*by_channel.shape[:2], math.prod(by_channel.shape[2:]))
        # Many short rows are slow. Transposing them is cheap and gives one long row for each channel.
        if rows.shape[2] <= 4:
            rows = rows.movedim(0, 1).flatten(1)[None]
        return rows.contiguous()

    def _queue_moments(self, rows: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> None:
        """Queue the five numbers of each row. They are merged in large groups, as a small tensor costs as much time."""
        flat = rows.view(-1, rows.shape[2])
        zeros = torch.empty(len(flat), dtype=torch.float64, device=rows.device)
        buffer = torch.empty(0, dtype=rows.dtype, device=rows.device)
        for start, chunk in chunks(flat):
            torch.eq(chunk, 0, out=buffer.resize_(chunk.shape))  # as floats, because summing booleans is slower
            # A float32 can count up to 2**24.
            exact = torch.float64 if rows.shape[2] > 2**24 else rows.dtype
            zeros[start : start + len(chunk)] = buffer.sum(1, dtype=exact)
        moments = torch.stack([*(number.double() for number in (mean, std, low, high)), zeros.view(mean.shape)])
        self._pending.append((rows.shape[2], moments))  # (5, R, C)
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
        means, stds, low, high, zeros = rows.unbind()  # (R, C) each
        counts = lengths.double().expand(means.shape)
        mean, std = combined(counts, means, stds)
        self._merge(counts.sum(0), mean, std, zeros.sum(0), low.amin(0), high.amax(0))

    def _merge_scaled(self, rows: Tensor) -> None:
        """Merge values of any magnitude, also NaN and infinity, by squares of the values divided by the largest."""
        values = rows.cpu().double().movedim(1, 0).flatten(1)  # (C, R * L)
        finite = values.isfinite()
        nan, inf = values.isnan().sum(1), values.isinf().sum(1)
        if self.first_not_finite is None and not finite.all():
            self.first_not_finite = self.calls
        self.nan += nan
        self.inf += inf
        count = finite.sum(1).double()
        low, high = values.where(finite, math.inf).amin(1), values.where(finite, -math.inf).amax(1)
        scale, back = scales(values.where(finite, 0).abs().amax(1))
        scaled = times(values, scale[:, :, None]).where(finite, 0)
        mean = scaled.sum(1) / count.clamp(min=1)
        std = ((scaled - mean[:, None]).where(finite, 0).square().sum(1) / count.clamp(min=1)).sqrt()
        self._merge(count, times(mean, back), times(std, back), (values == 0).sum(1).double(), low, high)

    def _merge(self, count: Tensor, mean: Tensor, std: Tensor, zeros: Tensor, low: Tensor, high: Tensor) -> None:
        """Merge a group of values into the total."""
        self._mean, self._std = combined(
            torch.stack([self._count, count]), torch.stack([self._mean, mean]), torch.stack([self._std, std])
        )
        self._count = self._count + count
        self._zeros = self._zeros + zeros
        self._low = torch.minimum(self._low, low)
        self._high = torch.maximum(self._high, high)

    def _count_bins(self, rows: Tensor) -> None:
        if self._counts_bins and rows.numel():
            counts = self._bins.counts(rows, self.calls)
            self._bin_counts = counts if self._bin_counts is None else self._bin_counts + counts


def _are_safe(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether all values are finite, and no square overflowed or underflowed. Others are rare, and take longer."""
    least, most = SAFE_RANGE[std.dtype]
    if not float((mean.abs() + std).amax()) < most:
        return False
    return float(std.amin()) >= least or not bool(((std < least) & (low < high)).any())
