"""The tables of a part: their columns, and rows as the bytes of a parquet file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from torchpeek.errors import FormatError
from torchpeek.runs.storage import Storage

PREDICTED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.float32(), 4), nullable=False),  # what the input shows: left, top, right, bottom
        pa.field("top_classes", pa.list_(pa.int32())),
        pa.field("top_probabilities", pa.list_(pa.float32())),
    ]
)
"""The table `predicted` of the group "predictions": a row a sample."""

HEATMAPS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("method", pa.dictionary(pa.int16(), pa.string()), nullable=False),
        pa.field("layer", pa.dictionary(pa.int16(), pa.string()), nullable=False),
        pa.field("target", pa.int16(), nullable=False),  # which of the scores of the sample
        pa.field("label", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("tensor", pa.dictionary(pa.int16(), pa.string()), nullable=False),  # its name in maps.safetensors
        pa.field("place", pa.int32(), nullable=False),  # its index in that tensor
        pa.field("exponent", pa.int16(), nullable=False),  # the stored values times 2**exponent are the map's
        *(
            pa.field(name, pa.float32())
            for name in ("centre_x", "centre_y", "spread", "border", "peak_x", "peak_y", "entropy", "inside_box")
        ),
        pa.field("inside_mask", pa.float32()),
        pa.field("metrics", pa.map_(pa.string(), pa.float32())),
    ]
)
"""The table `index` of a group with methods: a row a map."""

ERRORS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""The table `errors` of every group: a row a sample that could not be used."""


def table_bytes(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Rows as a parquet file, which has the same bytes for the same rows."""
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd", store_schema=False)
    return buffer.getvalue()


def read_table(storage: Storage, name: str) -> list[dict[str, Any]]:
    """The rows of a table of a part. Raises FormatError where it is damaged."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(storage.read(name))).to_pylist()
    except pa.ArrowException as error:
        raise FormatError(f"{storage.url(name)}: damaged ({error})") from error
    return rows
