"""Two writers on one folder: the second is refused, and hears of the first. A killed one holds up nobody."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import torchpeek as tp
from torchpeek.errors import FolderError
from torchpeek.hooks.recording.keep import Captured
from torchpeek.store import OutputFolder, check_folder, folder_lock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(params=["flock", "file"])
def without_flock(request, monkeypatch) -> bool:
    """Once with the system's locks, once with a file, as on a file system or a system without them."""
    if request.param == "file":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    return request.param == "file"


class Holder:
    """Another process that has the folder."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._hold, args=(folder, theirs))
        self.process.start()
        assert self.connection.recv() == "held"

    @staticmethod
    def _hold(folder: Path, connection: Any) -> None:
        held = OutputFolder.prepared(folder)
        connection.send("held")
        connection.recv()
        held.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self) -> None:
        self.connection.send("end")
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def captured(value: float, layer: str = "a") -> Captured:
    return Captured(layer, "output", 0, torch.tensor(value))


def test_two_in_one_process(without_flock, tmp_path) -> None:
    first = OutputFolder.prepared(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(
            FolderError, match=rf"is in use: another object or thread of this process \({os.getpid()}\).* Next: wait"
        ):
            OutputFolder.prepared(tmp_path / "out", overwrite=overwrite)
    first.write("a", b"1")
    with pytest.raises(FolderError, match=r"not empty \(1 entries, and another object .* is writing to it\)"):
        OutputFolder.prepared(tmp_path / "out")
    first.close()
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a"]
    OutputFolder.prepared(tmp_path / "out", overwrite=True).close()
    with pytest.raises(FolderError, match="does not have the folder"):
        first.write("b", b"1")


def test_one_folder_by_other_names(without_flock, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = OutputFolder.prepared("out")
    (tmp_path / "link").symlink_to("out")
    for name in ("link", "./out", "../" + tmp_path.name + "/out", tmp_path / "link"):
        with pytest.raises(FolderError, match="in use"):
            OutputFolder.prepared(name)
    assert first.held


def test_what_nobody_refers_to_holds_nothing(without_flock, tmp_path) -> None:
    def fail() -> None:
        folder: Any = OutputFolder.prepared(tmp_path)
        folder = [folder]
        folder.append(folder)  # garbage that only the collector finds
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    OutputFolder.prepared(tmp_path)


def test_a_failed_second_leaves_the_folder_of_the_first(without_flock, tmp_path) -> None:
    first = OutputFolder.prepared(tmp_path / "a" / "b")
    with pytest.raises(FolderError):
        OutputFolder.prepared(tmp_path / "a" / "b")
    assert first.write("c", b"1").read_bytes() == b"1"
    second = OutputFolder.prepared(tmp_path / "d" / "e")
    second.abandon()
    assert not (tmp_path / "d").exists()


def test_threads_race_for_a_folder(without_flock, tmp_path) -> None:
    for number in range(2):
        got: list[OutputFolder] = []
        refused: list[FolderError] = []
        start = threading.Barrier(8)

        def claim(folder: Path, got=got, refused=refused, start=start) -> None:
            start.wait()
            try:
                got.append(OutputFolder.prepared(folder))
            except FolderError as error:
                refused.append(error)

        threads = [threading.Thread(target=claim, args=(tmp_path / str(number) / "out",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 7)
        assert {"in use"} == {"in use" if "in use" in str(each) else str(each) for each in refused}


def test_a_killed_process_holds_nothing(without_flock, tmp_path) -> None:
    process = Holder(tmp_path / "out")
    with pytest.raises(FolderError, match=rf"process {process.pid} on {socket.gethostname()} is writing to it"):
        OutputFolder.prepared(tmp_path / "out")
    left = tmp_path / "out" / folder_lock.temporary_prefix().replace(str(os.getpid()), str(process.pid))
    left.write_bytes(b"half a file")
    other = tmp_path / "out" / ".torchpeek-another-host-1-x"
    other.write_bytes(b"of a process that may run")
    process.kill()
    folder = OutputFolder.prepared(tmp_path / "out")
    assert not left.exists()
    assert other.exists()
    folder.write("a", b"1")


def test_an_ended_process_leaves_no_file(without_flock, tmp_path) -> None:
    process = Holder(tmp_path / "out")
    process.end()
    assert process.process.exitcode == 0
    assert list((tmp_path / "out").iterdir()) == []


class TestLockFile:
    """Where the file system has no locks."""

    @pytest.fixture(autouse=True)
    def unlockable(self, monkeypatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)

    def write(self, folder: Path, **about: Any) -> None:
        mine = {"process": os.getpid(), "host": socket.gethostname(), "started": folder_lock._started(os.getpid())}
        (folder / ".torchpeek-lock").write_text(json.dumps(mine | about))

    def test_of_a_process_that_runs(self, tmp_path) -> None:
        self.write(tmp_path, process=os.getppid(), started=folder_lock._started(os.getppid()))
        with pytest.raises(FolderError, match=f"process {os.getppid()} on"):
            OutputFolder.prepared(tmp_path)

    def test_of_another_machine(self, tmp_path) -> None:
        self.write(tmp_path, host="node-7")
        with pytest.raises(FolderError, match=r"process \d+ on node-7 \(if that has ended, delete .*torchpeek-lock\)"):
            OutputFolder.prepared(tmp_path)

    @pytest.mark.parametrize("about", [{"process": 2**22 + 7}, {"started": "1"}])
    def test_of_a_process_that_is_gone(self, about, tmp_path) -> None:
        self.write(tmp_path, **about)
        folder = OutputFolder.prepared(tmp_path)
        assert json.loads((tmp_path / ".torchpeek-lock").read_text())["process"] == os.getpid()
        folder.close()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": "x"}'])
    def test_that_is_damaged(self, text, tmp_path) -> None:
        file = tmp_path / ".torchpeek-lock"
        file.write_text(text)
        with pytest.raises(FolderError, match="another process"):
            OutputFolder.prepared(tmp_path)  # it may be just being written
        os.utime(file, (1, 1))
        OutputFolder.prepared(tmp_path)


def test_a_lock_file_counts_where_there_are_locks(tmp_path) -> None:
    """Another machine has the same folder over a file system without locks."""
    TestLockFile().write(tmp_path, host="node-7")
    with pytest.raises(FolderError, match="node-7"):
        OutputFolder.prepared(tmp_path)


class TestFolderThatVanishes:
    def test_moved(self, without_flock, tmp_path) -> None:
        folder = OutputFolder.prepared(tmp_path / "out")
        folder.write("a", b"1")
        (tmp_path / "out").rename(tmp_path / "moved")
        with pytest.raises(FolderError, match=r"output folder .*out' was moved to .*moved' while it was written to"):
            folder.write("b", b"1")
        assert not (tmp_path / "out").exists()

    def test_deleted_and_made_again(self, tmp_path) -> None:
        folder = OutputFolder.prepared(tmp_path / "out")
        (tmp_path / "out").rmdir()
        (tmp_path / "out").mkdir()
        with pytest.raises(FolderError, match="was removed while"):
            folder.write("b", b"1")
        assert list((tmp_path / "out").iterdir()) == []
        OutputFolder.prepared(tmp_path / "out").write("c", b"1")

    def test_a_stream_does_not_move_with_the_working_folder(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        stream = tp.TensorStream("stream")
        (tmp_path / "sub").mkdir()
        os.chdir("sub")
        stream(captured(1))
        assert [each.tensor.item() for each in stream] == [1]
        assert len(list((tmp_path / "stream").iterdir())) == 1


class TestStreams:
    def test_a_second_one_is_refused(self, without_flock, tmp_path) -> None:
        first = tp.TensorStream(tmp_path / "s")
        with pytest.raises(FolderError, match="in use"):
            tp.TensorStream(tmp_path / "s")
        first(captured(1))
        with pytest.raises(FolderError, match="not empty"):
            tp.TensorStream(tmp_path / "s")

    def test_opened_ones_of_a_process_lose_nothing(self, without_flock, tmp_path) -> None:
        stream = tp.TensorStream(tmp_path / "s")
        start = threading.Barrier(4)

        def write(own: tp.TensorStream, layer: str) -> None:
            start.wait()
            for value in range(20):
                own(captured(float(value), layer))

        streams = [stream, stream, tp.TensorStream.opened(tmp_path / "s"), tp.TensorStream.opened(tmp_path / "s")]
        threads = [threading.Thread(target=write, args=(each, f"l{n}")) for n, each in enumerate(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stream) == 80
        for n in range(4):
            assert [int(each) for each in stream.read(f"l{n}")] == list(range(20))

    def test_reading_needs_no_lock(self, without_flock, tmp_path) -> None:
        stream = tp.TensorStream(tmp_path / "s")
        stream(captured(1))
        reader = tp.TensorStream.opened(tmp_path / "s")
        assert len(reader) == 1
        del stream
        process = Holder(tmp_path / "empty")
        assert list(tp.TensorStream.opened(tmp_path / "empty")) == []
        with pytest.raises(FolderError, match=f"process {process.pid}"):
            tp.TensorStream.opened(tmp_path / "empty")(captured(1))
        process.end()
        tp.TensorStream.opened(tmp_path / "empty")(captured(1))

    def test_a_forked_process_has_not_the_lock_of_its_parent(self, without_flock, tmp_path) -> None:
        stream = tp.TensorStream(tmp_path / "s")
        context = multiprocessing.get_context("fork")
        said = context.SimpleQueue()

        def child() -> None:
            try:
                stream(captured(2))
            except FolderError as error:
                said.put(str(error))

        process = context.Process(target=child)
        process.start()
        process.join()
        assert f"process {os.getpid()} on" in said.get()
        stream(captured(1))
        assert [int(each.tensor) for each in stream] == [1]


def test_tensorboard_may_have_several_writers(tmp_path) -> None:
    held = OutputFolder.prepared(tmp_path / "out")
    check_folder(tmp_path / "out")
    check_folder(tmp_path / "new")
    assert held.held
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="is a file"):
        check_folder(tmp_path / "file")


class TestFullDisk:
    @pytest.fixture(params=[errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def full(self, request, monkeypatch) -> int:
        def replace(*_: object, **more: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "replace", replace)
        return int(request.param)

    def test_the_old_file_stays(self, tmp_path, monkeypatch, full) -> None:
        (tmp_path / "map.safetensors").write_bytes(b"old")
        heatmap = tp.Heatmap(
            torch.ones(1, 1, 2, 2),
            torch.ones(1, 1),
            tp.targets.ClassScores(torch.tensor([[0]])),
            tp.Provenance("gradcam", "0"),
        )
        with pytest.raises(FolderError, match=r"map\.safetensors: cannot be written \(") as raised:
            tp.save(heatmap, tmp_path / "map.safetensors")
        assert ("are free" in str(raised.value)) == (full != errno.EIO)
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("map.safetensors", b"old")]

    def test_of_a_stream(self, tmp_path, full) -> None:
        stream = tp.TensorStream(tmp_path)
        with pytest.raises(FolderError, match=r"00000000-a-output\.safetensors: cannot be written \("):
            stream(captured(1))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs on this system")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_lock_file_that_is_no_file(tmp_path: Path, make) -> None:
    """Opening it would wait, or never end."""
    make(tmp_path / ".torchpeek-lock")
    with pytest.raises(FolderError, match=r"\.torchpeek-lock in it is no regular file; delete it"):
        OutputFolder.prepared(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"process": 1e999, "host": "", "started": ""}', "9" * 5000])
def test_a_lock_file_that_nobody_wrote(tmp_path: Path, text: str) -> None:
    file = tmp_path / ".torchpeek-lock"
    file.write_text(text)
    os.utime(file, (0, 0))
    OutputFolder.prepared(tmp_path).close()
