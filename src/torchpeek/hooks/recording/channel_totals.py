"""ChannelTotals: the numbers of all values of each channel, to which the values of one call after another are added.

They are right for every magnitude that a dtype can hold: no square overflows or underflows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchpeek.hooks.recording.moments import SAFE_RANGE, chunks, combined, row_moments, scales, times

_MAX_PENDING = 1 << 18  # the most numbers that wait to be merged


class ChannelTotals:
    """Count, mean, standard deviation, extremes, zeros, NaN and infinities of each channel.

    Args:
        channels: The number of channels C.

    Attributes:
        count: (C,) float64: the number of finite values. Only these enter the next five.
        mean: (C,) float64: their mean; a finite number without a value.
        std: (C,) float64: their standard deviation, of the population.
        zeros: (C,) float64: how many of them are exactly zero.
        low: (C,) float64: the least of them; infinity without a value.
        high: (C,) float64: the largest of them; minus infinity without a value.
        nan: (C,) float64: the number of values that were NaN.
        inf: (C,) float64: the number of values that were infinite.
        first_not_finite: The call, from 0, with the first NaN or infinity; None if there was none.
    """

    __slots__ = (
        "_pending",
        "_pending_size",
        "channels",
        "count",
        "first_not_finite",
        "high",
        "inf",
        "low",
        "mean",
        "nan",
        "std",
        "zeros",
    )

    def __init__(self, channels: int) -> None:
        self.channels = channels
        zeros = torch.zeros(6, channels, dtype=torch.float64)
        self.count, self.mean, self.std, self.zeros, self.nan, self.inf = zeros.unbind()
        self.low = torch.full((channels,), math.inf, dtype=torch.float64)
        self.high = torch.full((channels,), -math.inf, dtype=torch.float64)
        self.first_not_finite: int | None = None
        self._pending: list[tuple[int, Tensor]] = []
        self._pending_size = 0  # the numbers in it

    def add(self, rows: Tensor, call: int) -> None:
        """Add values. All attributes but the last three are right only after `merge_pending`.

        Args:
            rows: (R, C, L) float32 or float64, contiguous: R rows of L values for each channel; at least one value.
            call: The number of the call.
        """
        low, high = rows.amin(2), rows.amax(2)  # (R, C)
        mean, std = row_moments(rows)  # (R, C)
        if not _are_safe(mean, std, low, high):
            self._merge_scaled(rows, call)
            return
        flat = rows.view(-1, rows.shape[2])
        zeros = torch.empty(len(flat), dtype=torch.float64, device=rows.device)
        buffer = torch.empty(0, dtype=rows.dtype, device=rows.device)
        for start, chunk in chunks(flat):
            torch.eq(chunk, 0, out=buffer.resize_(chunk.shape))  # as floats, because summing booleans is slower
            # A float32 can count up to 2**24.
            exact = torch.float64 if rows.shape[2] > 2**24 else rows.dtype
            zeros[start : start + len(chunk)] = buffer.sum(1, dtype=exact)
        # The five numbers of each row are merged in large groups, as a small tensor costs as much time.
        moments = torch.stack([*(number.double() for number in (mean, std, low, high)), zeros.view(mean.shape)])
        self._pending.append((rows.shape[2], moments))  # (5, R, C)
        self._pending_size += moments.numel()
        if self._pending_size > _MAX_PENDING or len(self._pending) >= 256:
            self.merge_pending()

    def merge_pending(self) -> None:
        """Merge what waits to be merged."""
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

    def over_channels(self) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of the values of all channels together, (1,) each."""
        return combined(self.count[:, None], self.mean[:, None], self.std[:, None])

    def pool(self) -> None:
        """Make one channel of all."""
        self.merge_pending()
        self.channels, (self.mean, self.std) = 1, self.over_channels()
        self.count, self.zeros, self.nan, self.inf = (
            each.sum(0, keepdim=True) for each in (self.count, self.zeros, self.nan, self.inf)
        )
        self.low, self.high = self.low.amin(0, keepdim=True), self.high.amax(0, keepdim=True)

    def _merge_scaled(self, rows: Tensor, call: int) -> None:
        """Merge values of any magnitude, also NaN and infinity, by squares of the values divided by the largest."""
        values = rows.cpu().double().movedim(1, 0).flatten(1)  # (C, R * L)
        finite = values.isfinite()
        nan, inf = values.isnan().sum(1), values.isinf().sum(1)
        if self.first_not_finite is None and not finite.all():
            self.first_not_finite = call
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
        self.mean, self.std = combined(
            torch.stack([self.count, count]), torch.stack([self.mean, mean]), torch.stack([self.std, std])
        )
        self.count = self.count + count
        self.zeros = self.zeros + zeros
        self.low = torch.minimum(self.low, low)
        self.high = torch.maximum(self.high, high)


def _are_safe(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether all values are finite, and no square overflowed or underflowed. Others are rare, and take longer."""
    least, most = SAFE_RANGE[std.dtype]
    if not float((mean.abs() + std).amax()) < most:
        return False
    return float(std.amin()) >= least or not bool(((std < least) & (low < high)).any())
