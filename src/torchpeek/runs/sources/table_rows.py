"""The rows of tables: CSV, JSON lines and parquet, a batch at a time and never the whole table in memory."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from torchpeek.errors import FormatError, TorchpeekError, shown
from torchpeek.runs.sources.file_places import FilePlace
from torchpeek.store.json_values import parsed_json
from torchpeek.system_errors import is_from_outside

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".pq": "parquet"}
"""Suffix of a file -> what it is."""

_ROWS = 16_384  # that are in memory at a time
LONGEST_LINE = 64 << 20
"""Bytes of a line of JSON, which may have a picture in it."""

Row = dict[str, Any]


def table_format(name: str) -> str | None:
    """What a file of this name is: "csv", "tsv", "json", "parquet", or None for no table."""
    return SUFFIXES.get(os.path.splitext(name)[1].lower())


class _named:  # noqa: N801  # used as contextlib.suppress is
    """Raise a FormatError, which names the table, for whatever pyarrow raises."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, TorchpeekError) and not is_from_outside(error):
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise FormatError(f"{self._where}: damaged, or no such table ({reason})") from error


def table_columns(place: FilePlace, name: str) -> list[str]:
    """The names of the columns. Of JSON lines those of the first line.

    Args:
        place: The folder of the table.
        name: The name of its file.

    Raises:
        FormatError: When it cannot be read.
    """
    where = f"{place.address}/{name}"
    with place.open(name) as file, _named(where):
        match table_format(name):
            case "parquet":
                return list(_parquet(file).schema_arrow.names)
            case "json":
                return next((list(row) for _, _, row in _json_lines(file, where)), [])
            case _:
                with _csv(file, name, None) as reader:
                    return list(reader.schema.names)


def is_text(place: FilePlace, name: str, column: str) -> bool:
    """Whether a column may have text: that of a parquet file is bytes, say."""
    if table_format(name) != "parquet":
        return True
    with place.open(name) as file, _named(f"{place.address}/{name}"):
        return str(_parquet(file).schema_arrow.field(column).type) in ("string", "large_string")


def class_names_of_table(place: FilePlace, name: str) -> list[str] | None:
    """The names of the classes that the column `label` numbers, where a parquet file of Hugging Face has them."""
    if table_format(name) != "parquet":
        return None
    where = f"{place.address}/{name}"
    with place.open(name) as file, _named(where):
        metadata = _parquet(file).schema_arrow.metadata or {}
    if b"huggingface" not in metadata:
        return None
    value = parsed_json(metadata[b"huggingface"], where, allowed="features of Hugging Face")
    for part in ("info", "features", "label", "names"):
        value = value.get(part) if isinstance(value, dict) else None
    return [str(each) for each in value] if isinstance(value, list) else None


def table_rows(place: FilePlace, name: str, columns: Sequence[str]) -> Iterator[tuple[int, int, Row]]:
    """The rows of a table, with these columns of those that it has.

    Args:
        place: The folder of the table.
        name: The name of its file.
        columns: The columns.

    Yields:
        The number of a row, from 0 on; where it begins, in bytes, in a file of JSON lines, else 0; and column -> value.

    Raises:
        FormatError: When it is damaged. The message names the file, and the line of JSON lines.
    """
    where = f"{place.address}/{name}"
    with place.open(name) as file:
        if table_format(name) == "json":
            for number, offset, row in _json_lines(file, where):
                yield number, offset, {column: row[column] for column in columns if column in row}
            return
        number = 0
        for rows in _batches(file, name, where, columns):
            for row in rows:
                yield number, 0, row
                number += 1


def _batches(file: BinaryIO, name: str, where: str, columns: Sequence[str]) -> Iterator[list[Row]]:
    with _named(where):
        if table_format(name) == "parquet":
            parquet = _parquet(file)
            has = [column for column in columns if column in parquet.schema_arrow.names]
            batches = parquet.iter_batches(batch_size=_ROWS, columns=has, use_threads=False)
        else:
            batches = iter(_csv(file, name, columns))
    while True:
        with _named(where):
            batch = next(batches, None)
            rows = None if batch is None else batch.to_pylist()
        if rows is None:
            return
        yield rows


def _parquet(file: BinaryIO) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file)


def _csv(file: BinaryIO, name: str, columns: Sequence[str] | None) -> Any:
    """A reader of a CSV file, with these columns as text: a label "007" would be a number otherwise."""
    import pyarrow as pa
    from pyarrow import csv

    delimiter = "\t" if table_format(name) == "tsv" else ","
    return csv.open_csv(
        file,
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            include_columns=columns,
            include_missing_columns=True,
            column_types=dict.fromkeys(columns or (), pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _json_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, int, Row]]:
    """Number, offset and object of each line that is not empty."""
    number, offset = 0, 0
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise FormatError(f"{where}, row {number}: longer than {LONGEST_LINE:,} bytes; allowed: an object a line")
        if line.strip():
            yield number, offset, json_row(line, f"{where}, row {number}")
            number += 1
        offset += len(line)


def json_row(line: bytes, where: str) -> Row:
    """The object in a line of JSON. Raises FormatError where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if is_from_outside(error):
            raise
        raise FormatError(f"{where}: is {shown(line.decode(errors='replace'))}; allowed: a JSON object") from error
    if not isinstance(row, dict):
        raise FormatError(f"{where}: is {shown(row)}; allowed: a JSON object with the columns as keys")
    return row


class ParquetCells:
    """The values of one column of a parquet file, read row by row: quickly where the rows are asked for in sequence.

    Args:
        file: The open file, which is closed with this.
        column: The name of the column.
        where: What the file is called in errors.
    """

    def __init__(self, file: BinaryIO, column: str, where: str) -> None:
        weakref.finalize(self, file.close)
        with _named(where):
            self._file, self._column, self._where = _parquet(file), column, where
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = self._after = 0  # the rows that are in memory
        self._stop = 0  # the end of the row group

    def value(self, row: int) -> Any:
        """The value in a row. Raises FormatError where there is none."""
        try:
            if not self._first <= row < self._stop:
                self._seek(row)
            while row >= self._after:
                self._batch = next(self._batches)
                self._first, self._after = self._after, self._after + len(self._batch)
            return self._batch.column(0)[row - self._first].as_py()
        except Exception as error:  # of pyarrow, for a damaged file
            if is_from_outside(error):
                raise
            self._stop = 0
            raise FormatError(
                f"{self._where}, row {row}: cannot be read; the table was changed or is damaged"
            ) from error

    def _seek(self, row: int) -> None:
        first = 0
        for group in range(self._file.metadata.num_row_groups if row >= 0 else 0):
            after = first + self._file.metadata.row_group(group).num_rows
            if row < after:
                self._batches = self._file.iter_batches(64, [group], [self._column], use_threads=False)
                self._batch, self._first, self._after, self._stop = None, first, first, after
                return
            first = after
        raise LookupError(row)
