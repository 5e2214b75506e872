"""A table of pictures: CSV, JSON lines or parquet, with their paths or their bytes, labels, boxes, masks and splits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchpeek.errors import FormatError, InputError, PictureError, listed_names, shown
from torchpeek.runs.labels import Classes, FoundLabels, known_synsets
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources.file_places import FilePlace, FolderPlace, UrlPlace
from torchpeek.runs.sources.known_boxes import known_boxes
from torchpeek.runs.sources.listed_files import FoundRoots, read_listed, resolved
from torchpeek.runs.sources.per_process import PerProcess
from torchpeek.runs.sources.repeated_keys import repeated_keys, unique_key
from torchpeek.runs.sources.table_rows import (
    LONGEST_LINE,
    ParquetCells,
    Row,
    class_names_of_table,
    is_text,
    json_row,
    table_columns,
    table_format,
    table_rows,
)
from torchpeek.store.pictures import is_picture_name

_ROW, _BYTE = "row:", "byte:"  # before the number of a row of parquet, and before where a line of JSON begins
_COLUMNS = ("key", "path", "label", "boxes", "mask", "split")


@dataclass(frozen=True)
class _Scanned:
    """What is known of a table after one look at every row."""

    repeated: frozenset[bytes]
    labels: FoundLabels
    roots: Sequence[str]


class TableSource:
    """The rows of a table.

    A row has the column `path` (relative to the folder of the table, absolute, or a URL) or `image` (the bytes of a
    file, or {"bytes", "path"} as Hugging Face has them; in JSON lines as base64). Further columns are `label` (class
    index or name), `boxes`, `mask` (a path), `split` and `key`.

    Args:
        place: The folder of the table.
        name: The name of its file.
        class_names: The names of the model's classes.
        roots: The folders and URLs that its absolute paths lie in, where it was looked at before.
        base: What relative paths are relative to, if not to the folder of the table.
    """

    def __init__(
        self,
        place: FolderPlace | UrlPlace,
        name: str,
        class_names: Sequence[str] | None = None,
        roots: Sequence[str] | None = None,
        base: FolderPlace | UrlPlace | None = None,
    ) -> None:
        self.place, self.name, self._class_names = place, name, class_names
        self.base = place if base is None else base
        self._roots = None if roots is None else list(roots)
        self._scan: _Scanned | None = None
        self._cells = PerProcess(partial(_cells, place, name))
        self._found_columns: list[str] | None = None
        if roots is None and not {"path", "image"} & set(self._columns):
            raise InputError(
                f"{place.address}/{name}: has the columns {listed_names(self._columns) or 'of no row'}; needed: "
                "'path', or 'image' with the bytes of each picture. Next: rename the column"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Workers read, and list nothing: they need neither class names nor labels."""
        return {**self.__dict__, "_scan": None, "_class_names": None, "_roots": self._found_roots}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {
            "kind": "table",
            "path": f"{self.place.address.rstrip('/')}/{self.name}",
            "roots": list(self._found_roots),
        }

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the table {self.place.address.rstrip('/')}/{self.name}"

    @property
    def labels_from(self) -> str:
        """What the column of labels says."""
        words = self._scanned.labels.words
        return words and f"the column label has {words}"

    @property
    def _found_roots(self) -> Sequence[str]:
        return self._scanned.roots if self._roots is None else self._roots

    @property
    def _columns(self) -> Sequence[str]:
        if self._found_columns is None:
            self._found_columns = table_columns(self.place, self.name)
        return self._found_columns

    @property
    def _scanned(self) -> _Scanned:
        if self._scan is None:
            classes = Classes(self._class_names, known_synsets(self._class_names))
            labels = FoundLabels(classes, class_names_of_table(self.place, self.name))
            roots = FoundRoots()

            def keys() -> Iterator[str]:
                for number, _, row in self._rows(("key", "path", "label", "mask")):
                    labels.added(row.get("label"), self._where(number))
                    for path in (row.get("path"), row.get("mask")):
                        if path:
                            roots.add(resolved(str(path), self.base.address))
                    yield self._key(number, row)

            self._scan = _Scanned(repeated_keys(keys()), labels, roots.found())
        return self._scan

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[int, int, Row]]:
        """The rows; where the column image has the name of a file, that is the path."""
        has_paths = "image" in self._columns and is_text(self.place, self.name, "image")
        for number, offset, row in table_rows(self.place, self.name, (*columns, "image") if has_paths else columns):
            image = row.get("image")
            if isinstance(image, str) and not row.get("path") and (is_picture_name(image) or not self._is_json):
                row["path"] = image
            yield number, offset, row

    @property
    def _is_json(self) -> bool:
        return table_format(self.name) == "json"

    def _where(self, number: int) -> str:
        return f"{self.place.address}/{self.name}, row {number}"

    @staticmethod
    def _key(number: int, row: Row) -> str:
        key = row.get("key")
        return str(number) if key is None and not row.get("path") else str(row["path"] if key is None else key)

    def samples(self) -> Iterator[Sample]:
        """The samples, row by row."""
        scanned, base = self._scanned, self.base.address
        has_images = "image" in self._columns
        for number, offset, row in self._rows(_COLUMNS):
            where = self._where(number)
            key = unique_key(self._key(number, row), number, scanned.repeated)
            if row.get("path"):
                location = resolved(str(row["path"]), base)
            elif has_images:
                location = f"{_BYTE}{offset}" if self._is_json else f"{_ROW}{number}"
            else:
                raise FormatError(f"{where}: has no path; needed: the path of a picture in each row")
            label, name = scanned.labels.of(row.get("label"), where)
            mask, split = row.get("mask"), row.get("split")
            yield Sample(
                key,
                "" if location == key else location,
                label,
                name,
                known_boxes(row.get("boxes"), where),
                resolved(str(mask), base) if mask else None,
                None if split is None else str(split),
            )

    def read(self, sample: Sample) -> bytes:
        """The bytes of the file, or those in the row."""
        location = sample.location or sample.key
        for mark, value in ((_ROW, self._of_row), (_BYTE, self._of_line)):
            if location.startswith(mark) and location[len(mark) :].isdecimal():
                return self._bytes(value(int(location[len(mark) :])), sample.key)
        return read_listed(location, self.base, self._found_roots)

    def _of_row(self, row: int) -> Any:
        return self._cells.get().value(row)

    def _of_line(self, offset: int) -> Any:
        with self.place.open(self.name) as file:
            file.seek(offset)
            image = json_row(file.readline(LONGEST_LINE), f"{self.place.address}/{self.name}").get("image")
        if isinstance(image, dict):
            image = {**image, "bytes": _decoded(image.get("bytes"))}
        return image if isinstance(image, dict) else _decoded(image)

    def _bytes(self, image: Any, key: str) -> bytes:
        if isinstance(image, dict):  # as Hugging Face stores a picture
            if image.get("bytes") is None and isinstance(image.get("path"), str):
                return read_listed(resolved(image["path"], self.base.address), self.base, self._found_roots)
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise PictureError(f"{key}: the column image has {shown(image)}; allowed: the bytes of a picture")
        return image

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask's file."""
        return None if sample.mask is None else read_listed(sample.mask, self.base, self._found_roots)


def _decoded(text: Any) -> Any:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else text
    except binascii.Error:
        return text


def _cells(place: FilePlace, name: str) -> ParquetCells:
    return ParquetCells(place.open(name), "image", f"{place.address}/{name}")
