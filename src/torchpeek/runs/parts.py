"""Parts: what was computed of one shard for one group, in a folder that is complete or does not exist."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchpeek._version import __version__
from torchpeek.errors import FolderError, FormatError
from torchpeek.interrupts import uninterrupted
from torchpeek.store.json_values import parsed_json
from torchpeek.store.records import json_text
from torchpeek.store.regular_files import read_regular
from torchpeek.system_errors import ignored, is_of_system

MARK = "part.json"
"""The file that says that a part is complete. It is written last."""

FORMAT = 1

_SHARD = re.compile(r"\d{6,}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}")
_FILE = re.compile(r"[a-z][a-z0-9_]{0,63}\.(parquet|safetensors|json)")
_MOST_MARK = 1 << 20  # bytes of part.json
_TEMPORARY = ".part-"


@dataclass(frozen=True)
class Part:
    """A complete part.

    Args:
        folder: Its folder.
        shard: The number of the shard.
        group: The name of the group.
        counts: How many rows each table has.
        files: Name of a file -> (bytes, SHA-256).
    """

    folder: Path
    shard: int
    group: str
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]


def part_folder(run: Path, shard: int, group: str) -> Path:
    """The folder of a part."""
    return run / "parts" / f"{shard:06d}" / group


def is_complete(run: Path, shard: int, group: str) -> bool:
    """Whether the part is there."""
    return (part_folder(run, shard, group) / MARK).is_file()


def write_part(run: Path, shard: int, group: str, files: Mapping[str, bytes], counts: Mapping[str, int]) -> Part:
    """Write a part aside, force it to the disk, and rename it. Killed at any moment, it leaves a whole part or none.

    Another process may write the same part at the same time: the first one stays, and both have the same bytes.

    Raises:
        FolderError: When it cannot be written, such as on a full disk.
    """
    target = part_folder(run, shard, group)
    digests = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    mark = json_text({"format": FORMAT, "torchpeek": __version__, "counts": dict(counts), "files": digests}).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f"{_TEMPORARY}{group}-{secrets.token_hex(8)}"
        try:
            aside.mkdir()
            for name, data in {**files, MARK: mark}.items():
                _write_synced(aside / name, data)
            _sync_folder(aside)
            _put(aside, target)
            _sync_folder(target.parent)
        except BaseException:
            with uninterrupted():
                shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        if not is_of_system(error):
            raise
        raise FolderError(
            f"{target}: cannot be written ({(error.strerror or str(error)).lower()}). Next: free some space, and give "
            "the same command again; it goes on where it stopped"
        ) from error
    return Part(target, shard, group, counts, digests)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with ignored():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(aside: Path, target: Path) -> None:
    """Rename a finished part. One that is complete already stays; what is there without a mark is removed."""
    for _ in range(3):
        try:
            os.rename(aside, target)
            return
        except OSError as error:
            if not is_of_system(error) or not target.exists():
                raise
        if (target / MARK).is_file():
            shutil.rmtree(aside, ignore_errors=True)
            return
        shutil.rmtree(target, ignore_errors=True)  # somebody has deleted its mark
    raise FolderError(f"{target}: another process writes to it again and again")


def remove_part(run: Path, shard: int, group: str) -> None:
    """Remove a part, its mark first, so that it is never seen as complete with files missing."""
    folder = part_folder(run, shard, group)
    with uninterrupted():
        (folder / MARK).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(run: Path, older_than: float) -> None:
    """Remove what killed processes have left of parts, if it was not touched for so many seconds."""
    for aside in (run / "parts").glob(f"*/{_TEMPORARY}*"):
        with ignored():
            if time.time() - aside.stat().st_mtime > older_than:
                shutil.rmtree(aside, ignore_errors=True)


def complete_parts(run: Path) -> Iterator[tuple[int, str]]:
    """Shard and group of every complete part, without reading them, sorted."""
    for shard in _names(run / "parts", _SHARD):
        for group in _names(run / "parts" / shard, _GROUP):
            if is_complete(run, int(shard), group):
                yield int(shard), group


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []


def read_part(run: Path, shard: int, group: str) -> Part:
    """The part, from its mark. Raises FormatError where the mark is damaged."""
    folder = part_folder(run, shard, group)
    where = str(folder / MARK)
    mark = parsed_json(read_regular(where, FormatError, _MOST_MARK).decode(errors="replace"), where, allowed="a part")
    try:
        if mark["format"] != FORMAT:
            raise FormatError(f"{where}: format {mark['format']!r:.20}; this torchpeek reads {FORMAT}")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in mark["files"].items()}
        counts = {str(name): int(count) for name, count in mark["counts"].items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: damaged ({error})") from error
    if wrong := [name for name in files if not _FILE.fullmatch(name)]:
        raise FormatError(f"{where}: damaged: {wrong[0]!r:.60} is no name of a file of a part")
    return Part(folder, shard, group, counts, files)


def damage(part: Part) -> str:
    """What is wrong with the files of a part; empty where nothing is."""
    for name, (size, digest) in part.files.items():
        path = part.folder / name
        try:
            data = read_regular(path, FormatError, size)
        except FormatError as error:
            return str(error)
        if len(data) != size:
            return f"{path}: has {len(data):,} bytes, and was written with {size:,}"
        if hashlib.sha256(data).hexdigest() != digest:
            return f"{path}: its SHA-256 is not that with which it was written"
    return ""
