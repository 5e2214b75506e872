"""Tables: CSV, JSON lines and parquet."""

from __future__ import annotations

import base64
import json
import os
import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from images import noise
from torchpeek.errors import ClassNotFound, FormatError, InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import Source, source_of, stored_source
from torchpeek.runs.sources.table import TableSource

CLASSES = ["cat", "dog", "7"]
ROWS: list[dict[str, Any]] = [
    {"path": "a.png", "label": "dog", "boxes": [[1, 2, 3, 4]], "mask": "m/a.png", "split": "val"},
    {"path": "sub/b.png", "label": "cat", "boxes": [], "mask": None, "split": "val"},
    {"path": "sub/b.png", "label": None, "boxes": [[0, 0, 2, 2], [1, 1, 3, 3]], "mask": None, "split": None},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "sub/b.png", "m/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise((8 + number, 8)).save(tmp_path / name)
    return tmp_path


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        comma = "\t" if kind == "tsv" else ","

        def cell(value: Any) -> str:
            text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            return '"' + text.replace('"', '""') + '"'

        lines = [comma.join(rows[0]), *(comma.join(map(cell, row.values())) for row in rows)]
        file.write_text("\ufeff" + "\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_column_of_every_format(folder: Path, kind: str) -> None:
    source = source_of(written(folder, kind, ROWS), CLASSES)
    assert list(source.samples()) == [
        Sample("a.png", "", 1, "dog", ((1.0, 2.0, 3.0, 4.0),), "m/a.png", "val"),
        Sample("sub/b.png#1", "sub/b.png", 0, "cat", (), None, "val"),  # two rows with the same path are two samples
        Sample("sub/b.png#2", "sub/b.png", None, None, ((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)), None, None),
    ]
    assert source.labels_from == "the column label has class names"
    for reader in (source, pickle.loads(pickle.dumps(source)), stored_source(source.description)):
        first, second, _ = source.samples()
        assert reader.read(first) == (folder / "a.png").read_bytes()
        assert reader.read(second) == (folder / "sub/b.png").read_bytes()
        assert reader.read_mask(first) == (folder / "m/a.png").read_bytes()
        assert reader.read_mask(second) is None


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_key_column_names_the_samples(folder: Path, kind: str) -> None:
    rows = [{"key": "one", "path": "a.png"}, {"key": "two", "path": "sub/b.png"}]
    samples = list(source_of(written(folder, kind, rows), None).samples())
    assert [(each.key, each.location) for each in samples] == [("one", "a.png"), ("two", "sub/b.png")]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("1", (1, "dog")),
        ("1.0", (1, "dog")),
        ("7", (2, "7")),
        (" Dog ", (1, "Dog")),
        ("-1", (None, None)),
        ("", (None, None)),
    ],
)
def test_labels_in_text(folder: Path, label: str, expected: object) -> None:
    source = source_of(written(folder, "csv", [{"path": "a.png", "label": label}]), CLASSES)
    assert [(each.label, each.label_name) for each in source.samples()] == [expected]


def test_numbers_with_gaps_as_pandas_writes_them(folder: Path) -> None:
    table = pa.table({"path": ["a.png", "sub/b.png"], "label": pa.array([1.0, float("nan")])})
    pq.write_table(table, folder / "t.parquet")
    assert [each.label for each in source_of(folder / "t.parquet", CLASSES).samples()] == [1, None]


def test_names_that_are_no_class_are_kept_and_said(folder: Path) -> None:
    rows = [{"path": "a.png", "label": "dog"}, {"path": "sub/b.png", "label": "lynx"}]
    source = source_of(written(folder, "csv", rows), CLASSES)
    assert [(each.label, each.label_name) for each in source.samples()] == [(1, "dog"), (None, "lynx")]
    assert source.labels_from == (
        "the column label has class names (1 of 2 are no class of the model, or of several: 'lynx')"
    )


def test_a_number_that_is_no_class_names_the_row(folder: Path) -> None:
    source = source_of(
        written(folder, "csv", [{"path": "a.png", "label": 0}, {"path": "sub/b.png", "label": 3}]), CLASSES
    )
    with pytest.raises(ClassNotFound, match=r"row 1: no class 3; the model has 3, 0 to 2"):
        list(source.samples())


def test_absolute_paths_and_paths_above_are_read_in_their_folder_alone(folder: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("x/1.png", "x/y/2.png", "secret.png"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        noise((9, 9)).save(other / name)
    (folder / "ann").mkdir()
    rows = [{"path": str(other / "x/1.png")}, {"path": f"file://{other}/x/y/2.png"}, {"path": "../a.png"}]
    source = source_of(written(folder / "ann", "csv", rows), None)
    samples = list(source.samples())
    common = os.path.commonpath([other, folder])
    assert source.description["roots"] == [common]
    assert [source.read(each) for each in samples] == [
        (other / "x/1.png").read_bytes(),
        (other / "x/y/2.png").read_bytes(),
        (folder / "a.png").read_bytes(),
    ]
    alone = source_of(written(folder / "ann", "jsonl", rows[:2]), None)
    assert alone.description["roots"] == [str(other / "x")]
    stored = stored_source(alone.description)
    assert stored.read(samples[0]) == (other / "x/1.png").read_bytes()
    for outside in (
        str(other / "secret.png"),
        f"{other}/x/../secret.png",
        f"{other}/xy.png",
        "../a.png",
        "s3://b/c.png",
    ):
        with pytest.raises(PictureError, match="inside of"):
            stored.read(Sample("key", outside))


def with_bytes(folder: Path, kind: str, count: int = 9) -> tuple[Source, list[bytes]]:
    pictures = []
    for number in range(count):
        noise((8 + number, 8)).save(folder / "x.png")
        pictures.append((folder / "x.png").read_bytes())
    if kind == "jsonl":
        rows = [{"image": base64.b64encode(each).decode(), "label": "cat"} for each in pictures]
    elif kind == "struct":
        rows = [{"image": {"bytes": each, "path": None}, "label": "cat"} for each in pictures]
    else:
        rows = [{"image": each, "label": "cat"} for each in pictures]
    return source_of(written(folder, "jsonl" if kind == "jsonl" else "parquet", rows), CLASSES), pictures


@pytest.mark.parametrize("kind", ["bytes", "struct", "jsonl"])
def test_bytes_are_read_by_row_in_any_sequence(folder: Path, kind: str) -> None:
    source, pictures = with_bytes(folder, kind)
    samples = list(source.samples())
    assert [each.key for each in samples] == [str(number) for number in range(9)]
    stored = stored_source(source.description)
    for number in (0, 1, 2, 5, 8, 3, 3, 0, 7):
        assert stored.read(samples[number]) == pictures[number]
    with pytest.raises((PictureError, FormatError)):
        stored.read(Sample("99", "row:99" if kind != "jsonl" else "byte:3"))


def _read_all(source: Source, samples: list[Sample], queue: Any) -> None:
    queue.put([source.read(each) for each in samples])


def test_no_open_file_is_shared_over_a_fork(folder: Path) -> None:
    source, pictures = with_bytes(folder, "bytes", count=200)
    samples = list(source.samples())
    assert source.read(samples[0]) == pictures[0]  # opens it
    context = get_context("fork")
    queues = [context.Queue() for _ in range(2)]
    children = [context.Process(target=_read_all, args=(source, samples, queue)) for queue in queues]
    for child in children:
        child.start()
    own = [source.read(each) for each in samples]
    found = [queue.get(timeout=60) for queue in queues]
    for child in children:
        child.join(60)
    assert own == pictures
    assert found == [pictures, pictures]


def test_the_classes_that_hugging_face_writes_into_parquet(folder: Path) -> None:
    info = {"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}
    schema = pa.schema([("path", pa.string()), ("label", pa.int64())], {"huggingface": json.dumps(info)})
    pq.write_table(pa.table({"path": ["a.png", "sub/b.png"], "label": [0, 1]}, schema=schema), folder / "t.parquet")
    source = source_of(folder / "t.parquet", CLASSES)
    assert [(each.label, each.label_name) for each in source.samples()] == [(1, "dog"), (0, "cat")]
    assert source.labels_from == "the column label has the data set's classes, by their names"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "file,label\na.png,1\n", "'file', 'label'"),
        ("t.csv", "path,label\na.png\n", "Expected 2 columns"),
        ("t.csv", "", "Empty CSV file"),
        ("t.csv", b"path,lab\xffl\na.png,1\n", "codec can't decode"),
        ("t.csv", b"path,label\n\xff.png,1\n", "UTF8"),
        ("t.jsonl", '{"path": "a.png"}\n{"path": \n', "row 1"),
        ("t.jsonl", '{"path": "a.png"}\n[1]\n', "row 1"),
        ("t.jsonl", '{"path": "a.png"}\n{"label": 1}\n', "row 1: has no path"),
        ("t.jsonl", '{"path": "a.png", "boxes": [[1, 2, 3]]}\n', "row 0"),
        ("t.jsonl", '{"path": "a.png", "boxes": "[[4, 2, 3"}\n', "row 0"),
        ("t.jsonl", '{"path": "a.png", "label": [1]}\n', r"row 0.*label"),
        ("t.jsonl", "[" * 100_000 + "\n", "row 0"),
        ("t.parquet", "no parquet", "not a parquet file"),
    ],
)
def test_a_damaged_table_is_named(folder: Path, name: str, text: str | bytes, words: str) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((FormatError, InputError), match=words) as raised:
        list(source_of(folder / name, CLASSES).samples())
    assert name in str(raised.value)


def test_a_truncated_parquet_file_is_named(folder: Path) -> None:
    source, _ = with_bytes(folder, "bytes")
    samples = list(source.samples())
    file = folder / "table.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(FormatError, match=r"table\.parquet"):
        stored_source(source.description).read(samples[0])


def test_a_large_table_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample comes before the last rows are read a second time; pyarrow reads 32 MiB ahead."""
    file = folder / "t.csv"
    file.write_text("path,label\n" + "".join(f"{number:04000d}.jpg,1\n" for number in range(10_000)))
    source = source_of(file, CLASSES)
    assert isinstance(source, TableSource)
    samples = source.samples()
    assert next(samples).key == f"{0:04000d}.jpg"
    with file.open("r+b") as damaged:
        damaged.seek(-30, os.SEEK_END)
        damaged.write(b"a,b,c,d\n")
    with pytest.raises(FormatError, match=r"t\.csv"):
        list(samples)
