"""The fine bins of a histogram: counted in constant memory, before the range of the values is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchpeek.cached import cached_property

SAMPLED = 65_536
"""The most values of one call of a layer in the histogram, evenly spaced. All other numbers use every value."""


@dataclass(frozen=True, eq=False)
class FineBins:
    """Fine bins: the sign, the exponent and the first three bits of a finite number, which makes eight to the octave.

    Args:
        dtype: The dtype of the numbers.
        integer: The integer dtype of the same size.
        exponents: How many exponents the finite numbers have.
        shift: How many bits follow the first three.
    """

    dtype: torch.dtype
    integer: torch.dtype
    exponents: int
    shift: int

    @property
    def per_sign(self) -> int:
        """The number of bins for the numbers of each sign."""
        return self.exponents * 8

    def counts(self, rows: Tensor, call: int) -> Tensor:
        """How many sampled values are in each bin, in ascending order: (2 * per_sign,) int64.

        NaN and infinity are in none.
        """
        flat = rows.view(-1)
        step = -(-len(flat) // SAMPLED)
        while math.gcd(step, rows.shape[2]) > 1:  # a common divisor could hit the same columns of a grid each time
            step += 1
        values = flat[call % step :: step]
        if values.dtype != self.dtype:
            largest = torch.finfo(self.dtype).max
            values = values.where(~values.isfinite(), values.clamp(-largest, largest)).to(self.dtype)
        # The first 12 bits of a float32, or 15 of a float64, as a signed integer, plus half their number: negative
        # values come first, ascending with their magnitude, then the positive values.
        per_sign = self.per_sign
        half = per_sign + 8  # the last exponent is that of NaN and infinity
        bins = ((values + 0.0).view(self.integer) >> self.shift) + half  # -0 becomes 0
        counts = torch.bincount(bins, minlength=2 * half).cpu()
        return torch.cat([counts[:per_sign].flip(0), counts[half : half + per_sign]])

    @cached_property
    def edges(self) -> Tensor:
        """The edges of the bins in ascending order: (2 * per_sign + 1,) float64."""
        starts = torch.arange(self.per_sign, dtype=self.integer) << self.shift
        sizes = starts.view(self.dtype).double()
        end = 2.0**128 if self.dtype == torch.float32 else torch.finfo(torch.float64).max
        sizes = torch.cat([sizes, torch.tensor([end], dtype=torch.float64)])
        return torch.cat([-sizes[1:].flip(0), sizes])


FLOAT32_BINS = FineBins(torch.float32, torch.int32, 255, 20)
FLOAT64_BINS = FineBins(torch.float64, torch.int64, 2047, 49)
