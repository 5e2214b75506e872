"""Torch Datasets: objects, and those of a module."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from images import noise
from torchpeek.errors import InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import source_of, stored_source

CLASSES = ["cat", "dog"]


class Items(Dataset[Any]):
    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items, self.read = items, list[int]()
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def test_images_paths_bytes_and_pairs(tmp_path: Path) -> None:
    noise((9, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    items = Items(
        [(tmp_path / "a.png", 0), (data, 1), (noise((8, 8)), "dog"), {"image": str(tmp_path / "a.png"), "label": 1}]
    )
    source = source_of(items, CLASSES)
    samples = list(source.samples())
    assert [(each.key, each.label, each.label_name) for each in samples] == [
        ("0", 0, "cat"),
        ("1", 1, "dog"),
        ("2", 1, "dog"),
        ("3", 1, "dog"),
    ]
    read = [source.read(each) for each in samples]
    assert read[0] == read[1] == read[3] == data
    assert Image.open(io.BytesIO(read[2])).tobytes() == noise((8, 8)).tobytes()
    assert pickle.loads(pickle.dumps(source)).read(samples[2]) == read[2]


def test_the_digest_of_an_image_is_that_of_its_pixels_and_known_beforehand() -> None:
    source = source_of(Items([Image.new("RGB", (2, 1), (1, 2, 3))]), None)
    (sample,) = source.samples()
    assert hashlib.sha256(source.read(sample)).digest() == hashlib.sha256(b"P6\n2 1\n255\n\1\2\3\1\2\3").digest()


def test_an_image_is_upright_and_in_rgb_as_elsewhere() -> None:
    turned = Image.new("L", (3, 2), 7)
    turned.getexif()[0x0112] = 6
    source = source_of(Items([turned]), None)
    (sample,) = source.samples()
    assert source.read(sample).startswith(b"P6\n2 3\n255\n")


def test_targets_are_labels_without_reading_an_item(tmp_path: Path) -> None:
    items = Items([b"0", b"1", b"2"], targets=torch.tensor([1, 0, -1]), classes=["dog", "cat"])
    source = source_of(items, CLASSES)
    items.read.clear()
    assert [(each.label, each.label_name) for each in source.samples()] == [(0, "cat"), (1, "dog"), (None, None)]
    assert items.read == []
    assert source.labels_from == "the Dataset has the data set's classes, by their names"


def test_an_item_that_raises_is_no_stop(tmp_path: Path) -> None:
    source = source_of(Items([(noise((8, 8)), 1), ValueError("broken"), (noise((8, 8)), 0)]), CLASSES)
    samples = list(source.samples())
    assert [each.label for each in samples] == [1, None, 0]
    with pytest.raises(PictureError, match=r"item 1 .*ValueError: broken"):
        source.read(samples[1])
    assert list(source_of(Items([RuntimeError("first")]), None).samples()) == [Sample("0")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Items([(torch.zeros(3, 8, 8), 1)]), "without the transform"),
        (Items([7]), "a PIL image, a path, the bytes"),
        (iter([1]), "torch Dataset"),
        (3, "torch Dataset"),
        ("no_such_module:items", "no module 'no_such_module'"),
        ("json:no_such", "no 'no_such'"),
        ("no_such_folder", "does not exist"),
    ],
)
def test_what_is_no_dataset_is_refused(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        source_of(data, None)


MODULE = """
from PIL import Image
made = []
def items():
    made.append(1)
    return [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(3)]
"""


def test_a_callable_is_called_for_a_run_and_never_to_open_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_items.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    source = source_of("user_items:items", None)
    samples = list(source.samples())
    assert len(samples) == 3
    travelled = pickle.dumps(source)
    assert pickle.loads(travelled).read(samples[1]) == source.read(samples[1])
    del sys.modules["user_items"]
    stored = stored_source(source.description)
    assert stored.description == source.description
    with pytest.raises(PictureError, match=r"user_items:items is code, which is not imported"):
        stored.read(samples[1])
    with pytest.raises(PictureError):
        pickle.loads(pickle.dumps(stored)).read(samples[1])
    assert "user_items" not in sys.modules


def test_a_callable_that_gives_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_nothing.py").write_text("def items():\n    return iter([])\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="__len__ and __getitem__"):
        source_of("user_nothing:items", None)
