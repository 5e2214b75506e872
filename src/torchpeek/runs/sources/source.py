"""What every source of samples has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torchpeek.runs.samples import Sample


class Source(Protocol):
    """Lists samples, and reads them. It can be pickled, so that workers on other machines read the same."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it: enough to open the same source again."""
        ...

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        ...

    @property
    def labels_from(self) -> str:
        """Where the labels of its samples come from, in words; empty where they have none."""
        ...

    def samples(self) -> Iterator[Sample]:
        """The samples, always in the same sequence, one after the other: a list of all is never in memory."""
        ...

    def read(self, sample: Sample) -> bytes:
        """The bytes of a sample's picture. Raises PictureError, which names it, where they cannot be read."""
        ...

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask of its object; None where it has none."""
        ...
