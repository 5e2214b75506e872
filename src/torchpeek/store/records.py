"""Results as data: JSON, and tables as parquet."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torchpeek.errors import TorchpeekError
from torchpeek.printable import printable

Columns: TypeAlias = Mapping[str, type]
"""Column name -> str, bool, int, float, or list for a list of floats."""


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """Return indented JSON. NaN and infinity, which JSON does not have, become "nan", "inf" and "-inf"."""
    return _json(value, indent=2, ascii_only=ascii_only) + "\n"


def encodable(text: str) -> str:
    """Escape what UTF-8 cannot encode, because file names may be any bytes. JSON reads the escapes as the same name."""
    return text.encode(errors="backslashreplace").decode()


def parquet_bytes(columns: Columns, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> bytes:
    """Return rows as the bytes of a parquet file, with `about` as JSON under the schema's metadata key `torchpeek`.

    A missing value is null. NaN is null, too, because it would make every mean NaN. Raises TorchpeekError if pyarrow is
    not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise TorchpeekError("pyarrow is not installed; next: pip install 'torchpeek[data]'") from error
    arrow_types = {
        str: pa.string(),
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        list: pa.list_(pa.float64()),
    }
    fields = [pa.field(name, arrow_types[type_]) for name, type_ in columns.items()]
    schema = pa.schema(fields, {"torchpeek": _json(about)})
    listed = [{name: _known(row.get(name)) for name in columns} for row in rows]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(listed, schema), buffer, compression="zstd")
    return buffer.getvalue()


def _json(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    # Control characters, direction marks and what UTF-8 cannot encode are in strings only, and JSON's escapes of them
    # are read as the same characters.
    return _SUSPECT.sub(_json_escape, text)


_SUSPECT = re.compile(r"[^\x20-\x7e\n]")


def _json_escape(match: re.Match[str]) -> str:
    char = match[0]
    return char if printable(char) == char else json.dumps(char)[1:-1].replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _known(value: Any) -> Any:
    match value:
        case list():
            return [_known(each) for each in value]
        case str():
            return encodable(value)
        case float() if math.isnan(value):
            return None
    return value
