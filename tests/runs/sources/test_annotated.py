"""Labels, boxes and masks that are given beside the data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from images import noise
from torchpeek.errors import ClassNotFound, FormatError, InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import source_of, stored_source

CLASSES = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in/a.png", "in/s/b.png", "masks/s/b.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise((8, 8)).save(tmp_path / name)
    return tmp_path


def test_a_dict_of_labels_and_boxes(folder: Path) -> None:
    labels, boxes = {"a.png": "dog", "s/b.png": 0}, {"s/b.png": [1, 2, 3, 4]}
    source = source_of(folder / "in", CLASSES, labels=labels, boxes=boxes)
    assert list(source.samples()) == [
        Sample("a.png", "", 1, "dog"),
        Sample("s/b.png", "", 0, "cat", ((1.0, 2.0, 3.0, 4.0),)),
    ]
    assert source.labels_from == "labels= gives them"
    assert pickle.loads(pickle.dumps(source)).labels is None  # workers have the list of samples


@pytest.mark.parametrize("prefix", ["", "./", "ABSOLUTE/"])
def test_a_table_of_labels(folder: Path, prefix: str) -> None:
    prefix = prefix.replace("ABSOLUTE", str(folder / "in"))
    (folder / "labels.csv").write_text(f"path,label\n{prefix}a.png,dog\n{prefix}s/b.png,lynx\n")
    source = source_of(folder / "in", CLASSES, labels=folder / "labels.csv")
    assert [(each.label, each.label_name) for each in source.samples()] == [(1, "dog"), (None, "lynx")]
    assert source.labels_from == (
        f"the column label of {folder / 'labels.csv'} has class names "
        "(1 of 2 are no class of the model, or of several: 'lynx')"
    )


def test_a_file_of_boxes(folder: Path) -> None:
    (folder / "boxes.json").write_text(json.dumps({"a.png": [[1, 2, 3, 4], [0, 0, 1, 1]]}))
    source = source_of(folder / "in", None, boxes=str(folder / "boxes.json"))
    assert [len(each.boxes) for each in source.samples()] == [2, 0]


def test_masks_of_another_format(folder: Path) -> None:
    source = source_of(folder / "in", None, masks=folder / "masks")
    first, second = source.samples()
    assert (first.mask, second.mask) == (None, "s/b.webp")
    for reader in (source, stored_source(source.description)):
        assert reader.read_mask(first) is None
        assert reader.read_mask(second) == (folder / "masks/s/b.webp").read_bytes()
        with pytest.raises(PictureError, match="inside of"):
            reader.read_mask(Sample("a", mask="../in/a.png"))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"labels": {"a.png": "lion"}}, ClassNotFound, "lion"),
        ({"labels": {"a.png": 2}}, ClassNotFound, "no class 2"),
        ({"labels": {"a.png": []}}, InputError, "label"),
        ({"labels": ["cat"]}, InputError, "labels is"),
        ({"labels": "labels.txt"}, InputError, "a table that ends in"),
        ({"labels": "none.csv"}, FormatError, r"none\.csv"),
        ({"labels": {"x.png": 1}}, InputError, r"labels: none of 1 .* 'x\.png'.* 's/b\.png'"),
        ({"boxes": {"x.png": [1, 2, 3, 4]}}, InputError, "boxes: none of 1"),
        ({"boxes": {"a.png": [3, 2, 1, 4]}}, InputError, "left, top, right, bottom"),
        ({"boxes": [1]}, InputError, "boxes is"),
        ({"masks": "none"}, InputError, "masks is"),
        ({"masks": "in/s"}, InputError, "masks: none of 1"),
    ],
)
def test_what_is_of_no_use_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], error: type, words: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=words):
        list(source_of("in", CLASSES, **given).samples())


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"kind": "pickle"},
        {"kind": "folder"},
        {"kind": "folder", "path": 3},
        {"kind": "table", "path": "t.csv", "roots": "x"},
        {"kind": "tar", "path": "x", "patterns": [1]},
        {"kind": "hugging face", "name": "x"},
        {"kind": "dataset", "callable": 1, "type": "x"},
        {"kind": "folder", "path": ".", "masks": 3},
    ],
)
def test_a_damaged_description_is_named(description: dict[str, Any]) -> None:
    with pytest.raises((FormatError, InputError), match="source of the run"):
        stored_source(description)
