"""OutputFolder: files that are whole or missing, and errors that name them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from torchpeek.errors import FolderError
from torchpeek.store import OutputFolder


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    folder = OutputFolder.prepared(tmp_path / "out")

    def replace(*names, **folders) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FolderError, match=r"out/a/b\.png: cannot be written \(no space left on device\)"):
        folder.write("a/b.png", b"data")
    assert list(folder.path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    folder = OutputFolder.prepared(tmp_path)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FolderError, match=r"a\.png: cannot be written \(is a directory\)"):
        folder.write("a.png", b"data")


def test_files_that_something_has_removed(tmp_path: Path) -> None:
    folder = OutputFolder.prepared(tmp_path / "out")
    folder.write("a/b.png", b"data")
    folder.write("c.png", b"data")
    folder.check_files()
    folder.delete("c.png")  # by itself
    folder.check_files()
    shutil.rmtree(tmp_path / "out" / "a")
    with pytest.raises(FolderError, match=r"of 1 files that were written, 1 are gone, such as 'a/b\.png'"):
        folder.check_files()
