"""Shards: how the frozen list of samples is cut into pieces of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchpeek.errors import FormatError

_MOST_THREADS = 2**12


@dataclass(frozen=True)
class Shard:
    """Some batches of the frozen list.

    Args:
        number: Its number in the run.
        start: Its first sample.
        stop: The sample after its last.
        batch: Samples in a batch; the last one may have fewer.
    """

    number: int
    start: int
    stop: int
    batch: int

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First sample, and the one after the last, of each batch."""
        return [(first, min(first + self.batch, self.stop)) for first in range(self.start, self.stop, self.batch)]


@dataclass(frozen=True)
class Cut:
    """How the frozen list is divided into shards.

    Args:
        samples: How many samples the list has.
        batch: Samples in a batch.
        batches: Batches in a shard.
        first: How many samples at the beginning of the list are shards of their own, which may be computed alone: the
            random sample, or the first ones. 0 where there are none.
        sample_seed: The seed of the random sample; None where the list is as it was read.
        threads: In how many threads the model computes: sums are rounded in another way where it is another number.
    """

    samples: int
    batch: int
    batches: int
    first: int = 0
    sample_seed: int | None = None
    threads: int = 1

    def __len__(self) -> int:
        return self._count(self.first) + self._count(self.samples - self.first)

    def _count(self, samples: int) -> int:
        return -(-samples // (self.batch * self.batches))

    def shards(self) -> Iterator[Shard]:
        """All shards, in their sequence."""
        size, number = self.batch * self.batches, 0
        for begin, end in ((0, self.first), (self.first, self.samples)):
            for start in range(begin, end, size):
                yield Shard(number, start, min(start + size, end), self.batch)
                number += 1

    def shard(self, number: int) -> Shard:
        """One of them."""
        size, before = self.batch * self.batches, self._count(self.first)
        begin, end = (0, self.first) if number < before else (self.first, self.samples)
        start = begin + size * (number if number < before else number - before)
        return Shard(number, start, min(start + size, end), self.batch)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Cut:
        """The cut that `asdict` gave. Raises FormatError, which names the file, where it is none."""
        known = {each.name for each in fields(cls)}
        if isinstance(value, dict) and set(value) == known:
            cut = cls(**value)
            numbers = [number for name, number in asdict(cut).items() if name != "sample_seed"]
            whole = all(type(number) is int and 0 <= number < 2**40 for number in numbers)
            if (
                whole
                and min(cut.batch, cut.batches, cut.threads) > 0
                and cut.first <= cut.samples
                and cut.threads < 2**12
            ):
                return cut
        raise FormatError(f"{where}: how the samples are cut into shards is damaged")
