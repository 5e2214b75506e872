"""A folder of pictures: which files, in which sequence, and which classes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from images import noise
from torchpeek.errors import PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import source_of, stored_source

CLASSES = ["tench, Tinca tinca", "tiger cat", "T-shirt", "t shirt"]


def save(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise((8, 8)).save(file)


def test_pictures_of_all_folders_sorted_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, "b.jpg", "a/2.png", "a/10.png", "a.png", ".hidden.png", ".git/x.png", "z/y/x.webp")
    (tmp_path / "notes.txt").write_text("no picture")
    keys = [sample.key for sample in source_of(tmp_path, None).samples()]
    assert keys == ["a.png", "a/10.png", "a/2.png", "b.jpg", "z/y/x.webp"]
    assert keys == sorted(keys)


def test_folders_that_are_class_names_are_labels_and_this_is_said(tmp_path: Path) -> None:
    save(tmp_path, "tiger_cat/1.png", "TENCH/deeper/1.png")
    source = source_of(tmp_path, CLASSES)
    assert [(each.label, each.label_name) for each in source.samples()] == [(0, "TENCH"), (1, "tiger_cat")]
    assert source.labels_from == "the folders are class names"


def test_a_folder_that_is_no_class_or_several_leaves_all_without_labels(tmp_path: Path) -> None:
    save(tmp_path, "tiger cat/1.png", "lion/1.png")
    source = source_of(tmp_path, CLASSES)
    assert {each.label for each in source.samples()} == {None}
    assert source.labels_from == ""
    save(tmp_path / "two", "t_shirt/1.png")  # two classes of the model are called so
    assert [each.label for each in source_of(tmp_path / "two", CLASSES).samples()] == [None]


def test_parts_of_a_data_set_are_splits_and_the_folders_in_them_are_classes(tmp_path: Path) -> None:
    save(tmp_path, "train/tench/1.png", "val/tiger cat/1.png", "val/tench/1.png")
    samples = list(source_of(tmp_path, CLASSES).samples())
    assert [(each.split, each.label) for each in samples] == [("train", 0), ("val", 0), ("val", 1)]


def test_a_link_to_a_folder_above_is_not_followed_again_and_a_link_to_itself_is_named(tmp_path: Path) -> None:
    save(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    source = source_of(tmp_path, None)
    assert [each.key for each in source.samples()] == ["a/1.png", "self.png"]
    with pytest.raises(PictureError, match=r"self\.png"):
        source.read(Sample("self.png"))


def test_a_name_that_is_no_utf_8_is_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/a\xff.png"
    noise((8, 8)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", raw)
    source = source_of(tmp_path, None)
    (sample,) = source.samples()
    assert sample.key == "a\\udcff.png"
    assert source.read(sample) == Path(os.fsdecode(raw)).read_bytes()


@pytest.mark.parametrize("key", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", "a\0.png"])
def test_nothing_outside_of_the_folder_is_read(tmp_path: Path, key: str) -> None:
    save(tmp_path, "secret.png", "in/a/1.png")
    source = stored_source({"kind": "folder", "path": str(tmp_path / "in")})
    with pytest.raises(PictureError, match="inside of"):
        source.read(Sample(key, location=key))


def test_a_pickled_source_and_the_one_of_the_description_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "in/1.png")
    monkeypatch.chdir(tmp_path)
    source = source_of("in", None)
    monkeypatch.chdir("/")  # the description names the folder wherever it is opened
    (sample,) = source.samples()
    data = (tmp_path / "in" / "1.png").read_bytes()
    assert source.read(sample) == pickle.loads(pickle.dumps(source)).read(sample) == data
    assert stored_source(source.description).read(sample) == data


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/b/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    samples = source_of(tmp_path, None).samples()
    assert next(samples).key == "a/1.png"
    with pytest.raises(PictureError, match="permission denied"):
        next(samples)
