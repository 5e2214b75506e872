"""Results for machines: JSON, and a table as parquet."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torchpeek.errors import TorchpeekError

Columns: TypeAlias = Mapping[str, type]
"""Name -> str, bool, int, float, or list for a list of floats."""


def json_text(value: Any) -> str:
    """Readable JSON. It has no NaN and no infinity: they are "nan", "inf" and "-inf"."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parquet_bytes(columns: Columns, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> bytes:
    """The rows as a parquet file, with `about` as JSON under the key `torchpeek` of the schema's metadata.

    What a row does not have is null, and so is NaN, which would spoil every mean. Raises TorchpeekError where pyarrow
    is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise TorchpeekError("pyarrow is not installed; next: pip install 'torchpeek[data]'") from error
    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.float64())}
    fields = [pa.field(name, kinds[kind]) for name, kind in columns.items()]
    schema = pa.schema(fields, {"torchpeek": json.dumps(_finite(about), ensure_ascii=False, allow_nan=False)})
    listed = [{name: _known(row.get(name)) for name in columns} for row in rows]
    packed = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(listed, schema), packed, compression="zstd")
    return packed.getvalue()


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
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
