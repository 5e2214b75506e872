"""Results for machines, read back: JSON and parquet."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from cli_runner import strict
from torchpeek.store import json_text, parquet_bytes

COLUMNS = {"name": str, "count": int, "value": float, "good": bool, "curve": list}


def test_json_has_no_nan() -> None:
    given = {"a": [math.nan, (math.inf, 1)], "b": {"c": -math.inf, "d": 0.1}, "ü": None}
    text = json_text(given)
    assert strict(text) == {"a": ["nan", ["inf", 1]], "b": {"c": "-inf", "d": 0.1}, "ü": None}
    assert "ü" in text
    assert text.endswith("}\n")


class TestParquet:
    def read(self, rows: Any, about: Any = None) -> Any:
        parquet = pytest.importorskip("pyarrow.parquet")
        return parquet.read_table(io.BytesIO(parquet_bytes(COLUMNS, rows, about or {})))

    def test_rows_come_back(self) -> None:
        full = {"name": "猫", "count": 2**40, "value": 0.1, "good": False, "curve": [0.1, 1 / 3, 1e-300]}
        poor = {"name": "b", "value": math.inf, "unknown": 3}
        found = self.read([full, poor])
        assert found.to_pylist() == [full, {**dict.fromkeys(COLUMNS), "name": "b", "value": math.inf}]
        kinds = {field.name: str(field.type) for field in found.schema}
        assert kinds == {"name": "string", "count": "int64", "value": "double", "good": "bool", "curve": kinds["curve"]}
        assert kinds["curve"].startswith("list<")

    def test_nan_is_null(self) -> None:
        found = self.read([{"value": math.nan, "curve": [1.0, math.nan]}]).to_pylist()
        assert (found[0]["value"], found[0]["curve"]) == (None, [1.0, None])

    def test_without_rows(self) -> None:
        found = self.read([])
        assert (found.num_rows, found.column_names) == (0, list(COLUMNS))

    def test_what_it_is_about(self) -> None:
        about = {"seed": 3, "options": {"radius": math.inf}}
        metadata = self.read([], about).schema.metadata
        assert strict(metadata[b"torchpeek"].decode()) == {"seed": 3, "options": {"radius": "inf"}}
