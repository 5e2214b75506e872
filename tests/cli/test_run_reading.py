"""torchpeek query, verify and export: what is read of a finished run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cli_runner import asked, run, strict

MAKE = ("--model", "my_nets:make")


@pytest.fixture
def finished(place: Path) -> Path:
    words = ("--method", "gradcam", "--out", "v1", "--workers", "0", "--batch", "2")
    assert run("run", "pictures", *MAKE, *words) == 0
    return place / "v1"


class TestQuery:
    QUERY = "select key, probability, digest, correct, [1, 2] as listed from samples where key < 'c' order by key"

    def test_a_table(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert run("query", "v1", "select key, label, 0.1234567::double as x from samples order by key") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines] == [
            ["key", "label", "x"],
            ["a.png", "0.123457"],
            ["b.png", "0.123457"],
            ["c.png", "0.123457"],
            ["3", "rows"],
        ]

    def test_the_forms_agree(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        as_json = asked(capsys, "query", "v1", self.QUERY)
        assert run("query", "v1", self.QUERY, "--csv") == 0
        as_csv = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert run("query", "v1", self.QUERY, "--parquet", "out.parquet") == 0
        assert capsys.readouterr().out == "2 rows written to out.parquet\n"
        as_parquet = pq.read_table("out.parquet").to_pylist()
        assert [row["key"] for row in as_json] == ["a.png", "b.png"]
        for one, two, three in zip(as_json, as_csv, as_parquet, strict=True):
            assert (one["key"], one["digest"]) == (two["key"], two["digest"]) == (three["key"], three["digest"])
            assert one["probability"] == float(two["probability"]) == three["probability"]
            assert one["correct"] is None is three["correct"]
            assert one["listed"] == three["listed"] == [1, 2]
            assert two["correct"] == ""

    def test_without_a_query_the_columns(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        columns = asked(capsys, "query", "v1")
        assert {row["table"] for row in columns} == {"samples", "heatmaps", "errors"}
        assert {"table": "heatmaps", "column": "class", "type": "VARCHAR"} in columns

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["v1", "selec 1"], "the query cannot be run"),
            (["v1", "select key::int from samples"], "the query cannot be run"),
            (["v1", "select 1", "--csv", "--json"], "allowed: one of them"),
            (["pictures", "select 1"], "run.json"),
        ],
    )
    def test_what_is_wrong(
        self, finished: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("query", *words) == 2
        assert said in capsys.readouterr().err


class TestVerify:
    def test_whole(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert run("verify", "v1") == 0
        assert capsys.readouterr().out == "parts: 1, damaged: 0, not computed yet: 0\n"

    def test_damaged_and_repaired(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (maps,) = finished.rglob("maps.safetensors")
        before = maps.read_bytes()
        maps.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        capsys.readouterr()
        assert run("verify", "v1") == 1
        printed = capsys.readouterr().out
        assert "maps.safetensors: its SHA-256 is not that" in printed
        assert "torchpeek verify v1 --repair computes them again" in printed
        assert run("verify", "v1", "--repair") == 2  # no code is imported because a run names it
        assert "--model my_nets:make" in capsys.readouterr().err
        assert run("verify", "v1", "--repair", *MAKE, "--json") == 0
        found = strict(capsys.readouterr().out)
        assert len(found["repaired"]) == len(found["damaged"]) == 1
        assert maps.read_bytes() == before
        assert run("verify", "v1") == 0


class TestExport:
    def test_parquet_and_png(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert run("export", "v1", "--to", "parquet", "--out", "tables") == 0
        assert pq.read_table("tables/samples.parquet").num_rows == 3
        assert run("export", "v1", "--to", "png", "--out", "overlays", "--limit", "2") == 0
        assert capsys.readouterr().out.endswith("written to overlays/: 2 heatmaps\n")
        assert len(list(Path("overlays").glob("*.png"))) == 2

    def test_wrong_use(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("export", "v1", "--to", "gif", "--out", "x") == 2
        assert "png" in capsys.readouterr().err
        assert run("export", "v1", "--to", "png", "--out", "v1") == 2
