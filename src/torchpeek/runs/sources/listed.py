"""Pictures whose paths come from standard input, one a line, or a JSON object a line."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchpeek.errors import InputError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources.file_places import FolderPlace
from torchpeek.runs.sources.listed_files import read_listed
from torchpeek.runs.sources.table import TableSource
from torchpeek.runs.sources.table_rows import json_row

_FILE = "listed.jsonl"


class _HeldFolder:
    """A new temporary folder, which the process that made it removes when nothing needs it any more."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="torchpeek-")
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


class ListSource:
    """Pictures that were named on standard input, which can be read only once: the list of the run has them.

    Args:
        base: What relative paths are relative to.
        roots: The folders and URLs that absolute paths lie in.
        table: The list, until its samples are written down.
        held: The folder of the list. It is removed with the source.
    """

    def __init__(
        self,
        base: FolderPlace,
        roots: Sequence[str],
        table: TableSource | None = None,
        held: _HeldFolder | None = None,
    ) -> None:
        self.base, self.roots, self._table, self._held = base, list(roots), table, held

    def __getstate__(self) -> dict[str, Any]:
        """Workers read, and list nothing."""
        return {**self.__dict__, "_table": None, "_held": None}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "list", "path": self.base.address, "roots": self.roots}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return "the paths from standard input"

    @property
    def labels_from(self) -> str:
        """Where the labels come from."""
        words = "" if self._table is None else self._table.labels_from
        return words.replace("the column label has", "standard input has")

    def samples(self) -> Iterator[Sample]:
        """The samples, in the sequence of the lines."""
        if self._table is None:
            raise InputError("the paths were read from standard input, which is over; give them again")
        return self._table.samples()

    def read(self, sample: Sample) -> bytes:
        """The bytes of the file."""
        return read_listed(sample.location or sample.key, self.base, self.roots)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask's file."""
        return None if sample.mask is None else read_listed(sample.mask, self.base, self.roots)


def list_source(lines: Iterable[bytes], class_names: Sequence[str] | None) -> ListSource:
    """The source for the lines of a list, which goes to a file of its own: it is never in memory.

    Args:
        lines: Paths relative to the working directory, absolute paths or URLs; or JSON objects with `path` and what
            else a table has.
        class_names: The names of the model's classes.

    Raises:
        FormatError: When a line cannot be read.
        InputError: When a line has no path.
    """
    held = _HeldFolder()
    with (Path(held.path) / _FILE).open("wb") as file:
        number = 0
        for line in lines:
            text = line.rstrip(b"\r\n")
            if not text.strip():
                continue
            where = f"standard input, line {number + 1}"
            row = json_row(text, where) if text.startswith(b"{") else {"path": text.decode(errors="surrogateescape")}
            if not isinstance(row.get("path"), str) or not row["path"]:
                raise InputError(f"{where}: has no path; needed: a path, or a JSON object with the key 'path'")
            file.write(json.dumps(row).encode() + b"\n")
            number += 1
    if not number:
        raise InputError("standard input has no paths; needed: the path of a picture in each line")
    base = FolderPlace(Path.cwd())
    table = TableSource(FolderPlace(held.path), _FILE, class_names, base=base)
    return ListSource(base, table.description["roots"], table, held)
