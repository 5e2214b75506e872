"""The samples of a run: what each is called, where it is, what is known of it, and the frozen list of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from torchpeek.errors import FormatError
from torchpeek.runs.storage import FolderStorage, Storage
from torchpeek.system_errors import is_of_library

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """A picture of a data set.

    Args:
        key: Its name in the run: the path relative to the source, the name of the member, or the number of the row.
        location: Where its bytes are, as its source reads it; the key where it is empty.
        label: The class index, or None.
        label_name: The name of the class as the source has it, or None.
        boxes: Boxes of the object as left, top, right and bottom, in pixels of the picture.
        mask: Where the mask of the object is, as the source reads it, or None.
        split: The part of the data set that it belongs to, such as "validation", or None.
    """

    key: str
    location: str = ""
    label: int | None = None
    label_name: str | None = None
    boxes: tuple[Box, ...] = ()
    mask: str | None = None
    split: str | None = None


SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("label_name", pa.string()),
        pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4))),
        pa.field("mask", pa.string()),
        pa.field("split", pa.string()),
    ]
)
"""The columns of samples.parquet. The number of a row is the number of its sample."""

ROW_GROUP = 65_536
"""Rows of samples.parquet that are written, and read, at a time."""


def write_samples(file: Path, samples: Iterable[Sample]) -> int:
    """Write a list of samples while it is listed. Returns how many there are."""
    iterator, count = iter(samples), 0
    with pq.ParquetWriter(file, SCHEMA, compression="zstd", store_schema=True) as writer:
        while batch := list(islice(iterator, ROW_GROUP)):
            writer.write_table(_table(batch), row_group_size=ROW_GROUP)
            count += len(batch)
    return count


def _table(samples: Sequence[Sample]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [getattr(each, name) for each in samples] for name in SCHEMA.names}
    columns["boxes"] = [[list(box) for box in boxes] or None for boxes in columns["boxes"]]
    return pa.table(columns, schema=SCHEMA)


class SampleList:
    """A frozen list of samples, of which only the rows that are asked for are in memory."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        with self._opened() as file:
            if missing := [each for each in SCHEMA.names if each not in file.schema_arrow.names]:
                raise FormatError(f"{storage.url(name)}: no list of samples: it has no column {missing[0]!r}")
            rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = _running_sums(rows)

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """Open the file anew: an open one must not get into another process. Raises FormatError where it is damaged."""
        try:
            with self._storage.open(self._name) as file:
                yield pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (isinstance(error, FormatError) or not is_of_library(error)):
                raise
            raise FormatError(f"{self._storage.url(self._name)}: no list of samples, or damaged ({error})") from error

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, start: int, stop: int) -> list[Sample]:
        """The samples from number `start` to before `stop`."""
        groups = [i for i, (first, after) in enumerate(pairwise(self._starts)) if first < stop and after > start]
        if not groups:
            return []
        with self._opened() as file:
            table = file.read_row_groups(groups, columns=SCHEMA.names)
        begin = start - self._starts[groups[0]]
        return list(_samples(table.slice(begin, stop - start)))


def _running_sums(numbers: Sequence[int]) -> list[int]:
    sums = [0]
    for number in numbers:
        sums.append(sums[-1] + number)
    return sums


def _samples(table: pa.Table) -> Iterator[Sample]:
    for row in table.to_pylist():
        row["boxes"] = tuple(tuple(box) for box in row["boxes"] or ())
        yield Sample(**row)


def write_sampled_first(file: Path, samples: Iterable[Sample], first: int, seed: int) -> int:
    """Write a list of samples, with a random sample of them first. Returns how many there are.

    The list is written twice, so that it is never in memory whole: the random sample is drawn when its length is known.

    Args:
        file: The file.
        samples: The samples, in their sequence.
        first: How many samples are drawn.
        seed: The seed of the draw.
    """
    listed = file.with_name("listed.parquet")
    count = write_samples(listed, samples)
    drawn = random.Random(seed).sample(range(count), min(first, count))
    in_sequence = SampleList(FolderStorage(file.parent), listed.name)

    def all_samples() -> Iterator[Sample]:
        chosen = set(drawn)
        for is_drawn in (True, False):
            for start in range(0, count, ROW_GROUP):
                for row, sample in enumerate(in_sequence.rows(start, start + ROW_GROUP), start):
                    if (row in chosen) is is_drawn:
                        yield sample

    return write_samples(file, all_samples())
