"""RunningStatistics: mean, variance, extremes and a histogram of a layer's values per channel, in constant memory.

They are right for every magnitude that a dtype can hold: no square overflows or underflows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks.recording.channel_totals import ChannelTotals
from torchpeek.hooks.recording.fine_bins import FLOAT32_BINS, FLOAT64_BINS
from torchpeek.hooks.recording.statistics_summary import Summary
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

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        ...     output = model(torch.ones(2, 3))
        >>> tape["0"].output.mean
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    __slots__ = ("_alternative", "_axis", "_bin_counts", "_bins", "_counts_bins", "_shape", "_totals", "calls")

    accumulates = True

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
        self._totals: ChannelTotals | None = None  # None before the first call

    def read(self) -> RunningStatistics:
        """Read the statistics, as every leaf of a recording is read.

        Returns:
            The statistics themselves. Later calls of the layer go on changing them.

        Example:
            >>> from torchpeek.hooks import RunningStatistics
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
            >>> from torchpeek.hooks import RunningStatistics
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
        if self._totals is None or not self._totals.channels:
            self._shape = shape_sizes(tensor)
            self._bins = FLOAT64_BINS if tensor.dtype == torch.float64 else FLOAT32_BINS
            self._totals = ChannelTotals(rows.shape[1])
        elif rows.shape[1] != self._totals.channels:
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
            self._totals.add(rows, self.calls)
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
            >>> from torchpeek.hooks import RunningStatistics
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
            >>> from torchpeek.hooks import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.pool_channels()
            >>> statistics.mean
            tensor([1.5000], dtype=torch.float64)
        """
        self._axis, self._alternative = None, None
        if self.channels:
            self._merged().pool()

    def _adopt_alternative(self) -> None:
        """Become the statistics by the alternative axis, which has counted the same calls."""
        other = self._alternative
        assert other is not None
        self._axis, self._totals, self.calls = other._axis, other._totals, other.calls  # it has no histogram
        self._alternative = None

    @property
    def channels(self) -> int:
        """The number of channels C; 0 before the first call."""
        return 0 if self._totals is None else self._totals.channels

    @property
    def nan(self) -> Tensor:
        """(C,) float64: the number of values that were NaN."""
        return self._merged().nan

    @property
    def inf(self) -> Tensor:
        """(C,) float64: the number of values that were infinite."""
        return self._merged().inf

    @property
    def first_not_finite(self) -> int | None:
        """The call, from 0, with the first NaN or infinity; None if there was none."""
        return None if self._totals is None else self._totals.first_not_finite

    @property
    def count(self) -> Tensor:
        """(C,) float64: the number of finite values."""
        return self._merged().count

    @property
    def min(self) -> Tensor:
        """(C,) float64: the least finite value; infinity if there is none."""
        return self._merged().low

    @property
    def max(self) -> Tensor:
        """(C,) float64: the largest finite value; minus infinity if there is none."""
        return self._merged().high

    @property
    def mean(self) -> Tensor:
        """(C,) float64: the mean of the finite values; NaN for a channel without one."""
        totals = self._merged()
        return torch.where(totals.count > 0, totals.mean, math.nan)

    @property
    def var(self) -> Tensor:
        """(C,) float64: the variance of the finite values, of the population."""
        return self.std.square()

    @property
    def std(self) -> Tensor:
        """(C,) float64: the standard deviation of the finite values; NaN for a channel without one.

        It is right also where `var`, its square, is too large or too small for float64.
        """
        totals = self._merged()
        return torch.where(totals.count > 0, totals.std, math.nan)

    @property
    def zero_share(self) -> Tensor:
        """(C,) float64: the share of the finite values that is exactly zero, from 0 to 1."""
        totals = self._merged()
        return totals.zeros / totals.count

    @property
    def dead(self) -> Tensor:
        """(C,) bool: whether the channel was zero everywhere in every call."""
        totals = self._merged()
        return (totals.zeros == totals.count) & (totals.count > 0) & (totals.nan + totals.inf == 0)

    def summary(self) -> Summary:
        """Combine all channels.

        Returns:
            The numbers over all values of all channels.

        Raises:
            NotFired: When there was no call yet.

        Example:
            >>> from torchpeek.hooks import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> statistics.summary().mean
            1.5
        """
        totals = self._merged()
        total = float(totals.count.sum())
        mean, std = totals.over_channels()
        return Summary(
            calls=self.calls,
            count=int(total),
            mean=float(mean) if total else math.nan,
            std=float(std) if total else math.nan,
            min=float(totals.low.min()) if total else math.nan,
            max=float(totals.high.max()) if total else math.nan,
            zero_share=float(totals.zeros.sum()) / total if total else math.nan,
            channels=self.channels,
            dead=int(self.dead.sum()),
            nan=int(totals.nan.sum()),
            inf=int(totals.inf.sum()),
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
            >>> from torchpeek.hooks import RunningStatistics
            >>> statistics = RunningStatistics()
            >>> statistics.update(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
            >>> statistics.histogram(bins=2)[0]
            tensor([2., 2.], dtype=torch.float64)
        """
        if not self._counts_bins:
            raise InputError("these statistics have no histogram; tp.keep.Running(histogram=True) counts one")
        totals = self._merged()
        if self._bin_counts is None or not self._bin_counts.any():
            raise NotFired("the histogram is empty: there was no finite value")
        low, high = self._bins.edges[:-1], self._bins.edges[1:]
        filled = self._bin_counts.nonzero().flatten()
        start = float(low[filled[0]].clamp(min=totals.low.min()))
        stop = float(high[filled[-1]].clamp(max=totals.high.max()))
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

    def _merged(self) -> ChannelTotals:
        if self._totals is None or not self._totals.channels:
            raise NotFired("there are no statistics, because there was no value yet")
        self._totals.merge_pending()
        return self._totals

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

    def _count_bins(self, rows: Tensor) -> None:
        if self._counts_bins and rows.numel():
            counts = self._bins.counts(rows, self.calls)
            self._bin_counts = counts if self._bin_counts is None else self._bin_counts + counts
