"""A run that is killed, starved of disk or shared by two processes loses nothing, has nothing twice, and goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paths import ROOT
from run_data import colour_model, part_digests, write_pictures
from torchpeek.errors import FolderError
from torchpeek.runs import api
from torchpeek.runs.run import open_run
from torchpeek.runs.storage import FolderStorage

COUNT = 40

# Runs once, in a process of its own.
ONCE = """
import sys
import torch
torch.set_num_threads(1)
from run_data import colour_model
from torchpeek.runs import api
api.measured_batches = lambda *_, **__: (4, 1)
api.run(colour_model(), *sys.argv[1:3], methods=["gradcam"], workers=0)
"""

# Each line on stdin is a number of milliseconds and what to run: a forked child runs it, and is killed after so long.
FORKS = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from run_data import colour_model
from torchpeek.runs import api
api.measured_batches = lambda *_, **__: (4, 1)
data, out = sys.argv[1:3]
methods = {"one": ["gradcam"], "two": ["gradcam", "layercam"], "add": ["layercam"]}
print("ready", flush=True)
for line in sys.stdin:
    milliseconds, which = line.split()
    process = os.fork()
    if not process:
        api.run(colour_model(), data, out, methods=methods[which], workers=0)
        os._exit(0)
    end = time.monotonic() + float(milliseconds) / 1000
    while time.monotonic() < end and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.0005)
    try:
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
    except (ProcessLookupError, ChildProcessError):
        print("ended", flush=True)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(api, "measured_batches", lambda *_, **__: (4, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, COUNT)
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills(data: Path, tmp_path: Path) -> None:
    """At random moments of a first pass, and then of an additive one."""
    out, draw = tmp_path / "out", random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(data), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def attempt(milliseconds: float, which: str) -> str:
            process.stdin.write(f"{milliseconds} {which}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        killed = 0
        for which in ("one", "add"):
            started = time.monotonic()
            for _ in range(10):
                killed += attempt(draw.uniform(1, 150), which) == "killed"
            assert attempt(60_000, which) == "ended"
            assert time.monotonic() - started < 60
        process.stdin.close()
    assert killed >= 10  # the others came when the run was over
    api.run(colour_model(), data, tmp_path / "undisturbed", methods=["gradcam"], workers=0)
    api.run(colour_model(), None, tmp_path / "undisturbed", methods=["layercam"], workers=0)
    assert part_digests(out) == part_digests(tmp_path / "undisturbed")
    rows = open_run(out).sql("select count(*), count(distinct (key, method)) from heatmaps").fetchall()
    assert rows == [(2 * COUNT, 2 * COUNT)]


@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_each_step_of_a_part(data: Path, tmp_path: Path, monkeypatch, step: int) -> None:
    """Before each write, sync and rename: what is raised there leaves the folder as a kill does."""
    calls = [0]

    class Killed(BaseException):
        pass

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            calls[0] += 1
            if calls[0] == 8 + step:  # after run.json and the group
                raise Killed
            return function(*args, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "rename", "link"):
            patched.setattr(os, name, counted(getattr(os, name)))
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            api.run(colour_model(), data, tmp_path / "out", methods=["gradcam"], workers=0)
    assert calls[0] == 8 + step
    api.run(colour_model(), data, tmp_path / "out", methods=["gradcam"], workers=0)
    api.run(colour_model(), data, tmp_path / "undisturbed", methods=["gradcam"], workers=0)
    complete = {name: digest for name, digest in part_digests(tmp_path / "out").items() if "/.torchpeek-" not in name}
    assert complete == part_digests(tmp_path / "undisturbed")
    FolderStorage(tmp_path / "out").remove_unfinished(-1)
    assert part_digests(tmp_path / "out") == complete


def test_two_processes_at_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}
    processes = [subprocess.Popen([sys.executable, "-c", ONCE, str(data), str(out)], env=env) for _ in range(2)]
    assert [process.wait(90) for process in processes] == [0, 0]
    api.run(colour_model(), data, tmp_path / "alone", methods=["gradcam"], workers=0)
    assert part_digests(out) == part_digests(tmp_path / "alone")
    assert [name for name in os.listdir(out) if name.startswith(".")] == []


def test_a_part_whose_mark_is_gone_is_written_again(tmp_path: Path) -> None:
    """As a kill leaves it that strikes while a part is removed."""
    storage = FolderStorage(tmp_path)
    storage.put_folder("parts/000000/one", {"a.json": b"1", "part.json": b"{}"}, "part.json")
    (tmp_path / "parts/000000/one/part.json").unlink()
    storage.put_folder("parts/000000/one", {"a.json": b"2", "part.json": b"{}"}, "part.json")
    assert (tmp_path / "parts/000000/one/a.json").read_bytes() == b"2"
    storage.put_folder("parts/000000/one", {"a.json": b"3", "part.json": b"{}"}, "part.json")
    assert (tmp_path / "parts/000000/one/a.json").read_bytes() == b"2"  # the first one stays


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        with pytest.raises(FolderError, match=r"cannot be written \(no space left on device\)\. Next: make room"):
            api.run(colour_model(), data, place / "out", methods=["gradcam"], workers=0)
        some = part_digests(place / "out")
        assert 0 < sum(name.endswith("part.json") for name in some) < COUNT // 4
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        api.run(colour_model(), data, place / "out", methods=["gradcam"], workers=0)
        api.run(colour_model(), data, tmp_path / "undisturbed", methods=["gradcam"], workers=0)
        assert part_digests(place / "out") == part_digests(tmp_path / "undisturbed")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_interrupt_keeps_what_is_done(data: Path, tmp_path: Path) -> None:
    done: list[int] = []

    def report(progress: object) -> None:
        done.append(1)
        if len(done) == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        api.run(colour_model(), data, tmp_path / "out", methods=["gradcam"], workers=0, report=report)
    assert sum(name.endswith("part.json") for name in part_digests(tmp_path / "out")) == 4
    api.run(colour_model(), data, tmp_path / "out", methods=["gradcam"], workers=0)
    api.run(colour_model(), data, tmp_path / "undisturbed", methods=["gradcam"], workers=0)
    assert part_digests(tmp_path / "out") == part_digests(tmp_path / "undisturbed")
