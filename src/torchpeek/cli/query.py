"""torchpeek query: SQL over the tables of a run."""

from __future__ import annotations

import csv as csv_format
import io
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

from torchpeek.cli.console import print_json, print_table
from torchpeek.cli.signals import start_running
from torchpeek.cli.terminal import print_text
from torchpeek.errors import OptionError, RunError
from torchpeek.runs.run import open_run
from torchpeek.store import write_whole
from torchpeek.system_errors import is_from_outside


def run(place: str, sql: str | None, *, csv: bool, parquet: Path | None, json: bool) -> int:
    """Print the result of a query, or write it. Returns the exit status."""
    if sum((csv, json, parquet is not None)) > 1:
        raise OptionError("--csv, --json and --parquet are three forms of the result; allowed: one of them")
    start_running()
    opened = open_run(place)
    if sql is None:
        header, rows = ["table", "column", "type"], list[tuple[Any, ...]]()
        for table in ("samples", "heatmaps", "errors"):
            relation = getattr(opened, table)
            rows += [(table, *each) for each in zip(relation.columns, map(str, relation.types), strict=True)]
    else:
        relation = opened.sql(sql)
        if relation is None:
            raise RunError("the query has no result; allowed: a query that selects rows")
        header = list(relation.columns)
        if parquet is not None:
            return _written(relation, parquet)
        rows = _rows(relation)
    if parquet is not None:
        raise OptionError("--parquet needs a query")
    if json:
        print_json([dict(zip(header, map(_value, row), strict=True)) for row in rows])
    elif csv:
        writer = csv_format.writer(sys.stdout, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if each is None else _value(each) for each in row] for row in rows])
    else:
        print_table(header, [[_cell(each) for each in row] for row in rows])
        print_text(f"{len(rows):,} rows" if len(rows) != 1 else "1 row")
    return 0


def _rows(relation: Any) -> list[tuple[Any, ...]]:
    """The rows. Raises RunError where the query fails while it is computed."""
    try:
        return list(relation.fetchall())
    except Exception as error:
        if is_from_outside(error):
            raise
        raise RunError(f"the query cannot be run: {error}") from error


def _written(relation: Any, file: Path) -> int:
    import pyarrow.parquet as pq

    try:
        table = relation.to_arrow_table()
    except Exception as error:
        if is_from_outside(error):
            raise
        raise RunError(f"the query cannot be run: {error}") from error
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(file, buffer.getvalue())
    print_text(f"{table.num_rows:,} rows written to {file}")
    return 0


def _value(value: Any) -> Any:
    """A value as JSON and CSV have it."""
    match value:
        case bytes():
            return value.hex()
        case datetime() | date():
            return value.isoformat()
        case dict():
            return {str(key): _value(each) for key, each in value.items()}
        case list() | tuple():
            return [_value(each) for each in value]
        case bool() | int() | float() | str() | None:
            return value
        case _:
            return str(value)


def _cell(value: Any) -> str:
    """A value as a table shows it."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case _:
            return str(_value(value))
