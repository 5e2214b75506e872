"""OutputFolder and Directory: links are not followed, and a folder that is moved or removed is noticed."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from torchpeek.errors import FolderError
from torchpeek.store import OutputFolder


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder.prepared(tmp_path / "out")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(b"mine")
    return tmp_path / "outside"


class TestLinks:
    """A write replaces a link, and never changes its target."""

    @pytest.mark.parametrize("target", ["../outside/a.png", "../outside", "nowhere", "a.png"])
    def test_a_link_in_the_place_of_a_file(self, folder, outside, target: str) -> None:
        (folder.path / "a.png").symlink_to(target)
        folder.write("a.png", b"new")
        assert not (folder.path / "a.png").is_symlink()
        assert (folder.path / "a.png").read_bytes() == b"new"
        assert [(each.name, each.read_bytes()) for each in outside.iterdir()] == [("a.png", b"mine")]

    def test_a_hard_link(self, folder, outside) -> None:
        os.link(outside / "a.png", folder.path / "a.png")
        folder.write("a.png", b"new")
        assert (outside / "a.png").read_bytes() == b"mine"

    @pytest.mark.parametrize("target", ["../outside", "nowhere", "other", "."])
    def test_a_link_in_the_place_of_a_subfolder(self, folder, outside, target: str) -> None:
        (folder.path / "other").mkdir()
        (folder.path / "a").symlink_to(target)
        folder.write("a/a.png", b"new")
        assert not (folder.path / "a").is_symlink()
        assert (folder.path / "a" / "a.png").read_bytes() == b"new"
        assert (outside / "a.png").read_bytes() == b"mine"
        assert list((folder.path / "other").iterdir()) == []

    def test_a_link_that_comes_between_two_steps(self, folder, outside, monkeypatch) -> None:
        """Another process replaces the subfolder at the moment of the write."""
        opened = os.open

        def racing(path: Any, flags: int, *more: Any, **at: Any) -> int:
            if str(path).startswith(".torchpeek-"):
                (folder.path / "a").rename(folder.path / "before")
                (folder.path / "a").symlink_to(outside)
            return opened(path, flags, *more, **at)

        monkeypatch.setattr(os, "open", racing)
        folder.write("a/a.png", b"new")
        assert (outside / "a.png").read_bytes() == b"mine"
        assert (folder.path / "before" / "a.png").read_bytes() == b"new"

    def test_the_folder_itself_may_be_a_link(self, tmp_path, outside) -> None:
        (tmp_path / "link").symlink_to(outside)
        OutputFolder.prepared(tmp_path / "link", overwrite=True).write("b.png", b"new")
        assert (outside / "b.png").read_bytes() == b"new"

    def test_deleting_and_reading_follow_no_link(self, folder, outside) -> None:
        (folder.path / "a.png").symlink_to(outside / "a.png")
        (folder.path / "a").symlink_to(outside)
        os.mkfifo(folder.path / "pipe")
        assert [folder.read(name) for name in ("a.png", "pipe", "none")] == [None] * 3
        for name in ("a.png", "a/a.png", "none", "none/none"):
            folder.delete(name)
        assert not (folder.path / "a.png").is_symlink()
        assert (outside / "a.png").read_bytes() == b"mine"


class TestMoved:
    @staticmethod
    def remade(path: Path) -> None:
        shutil.rmtree(path)
        path.mkdir()

    @pytest.mark.parametrize("again", [False, True])
    def test_moved(self, folder, again: bool) -> None:
        folder.write("a/a.png", b"first")
        place = folder.path.rename(folder.path.with_name("else"))
        if again:
            folder.path.mkdir()
        with pytest.raises(FolderError, match=r"output folder '.*out' was moved.* while it was written to"):
            folder.write("a/b.png", b"second")
        assert not list(folder.path.glob("*"))
        assert folder.path.exists() == again
        folder.followed().write("results.json", b"{}")
        assert (place / "results.json").read_bytes() == b"{}"
        assert folder.place in (place, None)
        folder.abandon()
        assert folder.path.exists() == again, "another folder of this name is not removed"

    @pytest.mark.parametrize("remove", [shutil.rmtree, remade])
    def test_removed(self, folder, remove) -> None:
        remove(folder.path)
        with pytest.raises(FolderError, match="was removed while it was written to"):
            folder.write("a.png", b"data")
        with pytest.raises(FolderError, match="cannot be written"):
            folder.followed().write("a.png", b"data")
        assert folder.place is None
        assert not list(folder.path.glob("*"))

    def test_another_working_directory(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        folder = OutputFolder.prepared("out")
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path / "inner")
        folder.write("a.png", b"data")
        assert (tmp_path / "out" / "a.png").read_bytes() == b"data"

    def test_a_copy_writes_to_the_same_folder(self, folder) -> None:
        copied = copy.deepcopy(folder)
        del folder
        assert copied.write("a.png", b"data").read_bytes() == b"data"


CODES = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EMFILE", "ENAMETOOLONG")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("step", ["open", "fdopen", "replace", "mkdir"])
def test_every_error_names_the_file_and_leaves_nothing(folder, monkeypatch, step: str, code: str) -> None:
    number = getattr(errno, code)
    function = getattr(os, step)

    def failing(*words: Any, **more: Any) -> Any:
        if step != "open" or str(words[0]).startswith(".torchpeek-"):
            raise OSError(number, os.strerror(number))
        return function(*words, **more)

    monkeypatch.setattr(os, step, failing)
    reason = os.strerror(number).lower()
    with pytest.raises(FolderError, match=rf"out/a/b\.png: cannot be written \({reason}\)"):
        folder.write("a/b.png", b"data")
    monkeypatch.undo()
    assert list(folder.path.iterdir()) == []


def test_no_file_stays_open(folder) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for n in range(20):
        folder.write(f"{n}/a.png", b"data")
        folder.delete(f"{n}/a.png")
    assert list(folder.path.iterdir()) == []
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_part_is_deleted_if_it_fails(folder) -> None:
    folder.write("kept.png", b"data")
    with pytest.raises(KeyboardInterrupt), folder.part() as part:
        part.write("a/a.png", b"data")
        part.write("b.png", b"data")
        raise KeyboardInterrupt
    assert [each.name for each in folder.path.iterdir()] == ["kept.png"]
    with folder.part() as part:
        part.write("a/a.png", b"data")
    assert (folder.path / "a" / "a.png").is_file()
