"""Parts: what was computed of one shard for one group, in a folder that is complete or does not count."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchpeek._version import __version__
from torchpeek.errors import FormatError
from torchpeek.runs.storage import Storage
from torchpeek.store.json_values import parsed_json
from torchpeek.store.records import json_text

MARK = "part.json"
"""The file that says that a part is complete. It is written last."""

FORMAT = 1

_SHARD = re.compile(r"\d{6,9}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}")
_FILE = re.compile(r"[a-z][a-z0-9_]{0,63}\.(parquet|safetensors|json)")
_MOST_MARK = 1 << 20  # bytes of part.json


@dataclass(frozen=True)
class Part:
    """A complete part.

    Args:
        shard: The number of the shard.
        group: The name of the group.
        counts: How many rows each table has.
        files: Name of a file -> (bytes, SHA-256).
    """

    shard: int
    group: str
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]

    def file(self, name: str) -> str:
        """The name of one of its files in the run."""
        return f"{part_folder(self.shard, self.group)}/{name}"


def part_folder(shard: int, group: str) -> str:
    """The name of the folder of a part."""
    return f"parts/{shard:06d}/{group}"


def is_complete(storage: Storage, shard: int, group: str) -> bool:
    """Whether the part is there."""
    return storage.exists(f"{part_folder(shard, group)}/{MARK}")


def write_part(storage: Storage, shard: int, group: str, files: Mapping[str, bytes], counts: Mapping[str, int]) -> None:
    """Write a part. Killed at any moment, it leaves a whole part or none.

    Another process may write the same part at the same time: the first one stays, and both have the same bytes.

    Raises:
        FolderError: When it cannot be written, such as on a full disk.
    """
    digests = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    mark = {"format": FORMAT, "torchpeek": __version__, "counts": dict(counts), "files": digests}
    storage.put_folder(part_folder(shard, group), {**files, MARK: json_text(mark).encode()}, MARK)


def remove_part(storage: Storage, shard: int, group: str) -> None:
    """Remove a part."""
    storage.remove_folder(part_folder(shard, group), MARK)


def complete_parts(storage: Storage) -> Iterator[tuple[int, str]]:
    """Shard and group of every complete part, without reading them, sorted."""
    for shard in filter(_SHARD.fullmatch, storage.folders("parts")):
        for group in filter(_GROUP.fullmatch, storage.folders(f"parts/{shard}")):
            if is_complete(storage, int(shard), group):
                yield int(shard), group


def read_part(storage: Storage, shard: int, group: str) -> Part:
    """The part, from its mark. Raises FormatError where the mark is damaged."""
    name = f"{part_folder(shard, group)}/{MARK}"
    where = storage.url(name)
    mark = parsed_json(storage.read(name, _MOST_MARK).decode(errors="replace"), where, allowed="a part")
    try:
        if mark["format"] != FORMAT:
            raise FormatError(
                f"{where}: format {mark['format']!r:.20}, written by torchpeek {mark.get('torchpeek', '')!r:.20}; this "
                f"torchpeek reads {FORMAT}. Next: install that version"
            )
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in mark["files"].items()}
        counts = {str(name): int(count) for name, count in mark["counts"].items()}
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: damaged ({error})") from error
    if wrong := [name for name in files if not _FILE.fullmatch(name)]:
        raise FormatError(f"{where}: damaged: {wrong[0]!r:.60} is no name of a file of a part")
    return Part(shard, group, counts, files)


def damage(storage: Storage, part: Part) -> str:
    """What is wrong with the files of a part; empty where nothing is."""
    for name, (size, digest) in part.files.items():
        url = storage.url(part.file(name))
        try:
            data = storage.read(part.file(name), size)
        except FormatError as error:
            return str(error)
        if len(data) != size:
            return f"{url}: has {len(data):,} bytes, and was written with {size:,}"
        if hashlib.sha256(data).hexdigest() != digest:
            return f"{url}: its SHA-256 is not that with which it was written"
    return ""
