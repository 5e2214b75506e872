"""torchpeek as a process: Ctrl-C, a terminal, and a reader that closes its pipe."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from cli_runner import environment

CAM = ("cam", "pictures", "--model", "my_nets:make")


DROPPING = """
import os, signal, time, weakref
from torch import nn

def interrupt(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))

class Dropped:
    pass

class Deleted:
    def __del__(self):
        interrupt()

class Slow(nn.Conv2d):
    def __init__(self, drop):
        super().__init__(3, 4, 3)
        self.drop = drop

    def forward(self, x):
        self.drop()
        for _ in range(200):
            time.sleep(0.02)
        return super().forward(x)

def drop_referenced():
    value = Dropped()
    reference = weakref.ref(value, interrupt)
    del value

def weakref_():
    return Slow(drop_referenced)

def del_():
    return Slow(Deleted)
"""


class TestProcess:
    """The real thing, in a process of its own."""

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from torchpeek.cli import main; main()", *words]

    def test_interrupt(self, place) -> None:
        for n in range(40):
            (place / "pictures" / f"more{n}.png").write_bytes((place / "pictures" / "a.png").read_bytes())
        words = self.command("cam", "pictures", "--model", "my_nets:slow", "--batch-size", "1", "--method", "cam")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
        deadline = time.monotonic() + 60
        while not list((place / "peek").glob("*/all.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in err
        assert "Traceback" not in err
        leftovers = [path for path in (place / "peek").rglob("*") if path.name.startswith(".")]
        assert leftovers == []
        done = json.loads((place / "peek" / "results.json").read_text())["pictures"]
        assert 1 <= len(done) < 43
        assert (place / "peek" / "report.html").is_file()

    @pytest.mark.parametrize("drop", ["__del__", "weakref"])
    def test_an_interrupt_that_python_drops_is_repeated(self, drop: str, place) -> None:
        """As one is that arrives in a callback of a weak reference, which imports run, or in a `__del__`."""
        (place / "dropping.py").write_text(DROPPING)
        process = subprocess.run(
            self.command("layers", "--model", f"dropping:{drop.strip('_')}_", "--input-size", "3", "8", "8"),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        assert (process.returncode, process.stdout) == (130, "")
        assert "error: interrupted" in process.stderr
        assert "Exception ignored" not in process.stderr

    def test_on_a_terminal(self, place) -> None:
        """A bar on stderr, gone at the end; the table is on stdout alone."""
        primary, secondary = pty.openpty()
        words = self.command(*CAM)
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=secondary, text=True, env=environment(TERM="xterm")
        )
        os.close(secondary)
        parts: list[bytes] = []
        reading = threading.Thread(target=read_all, args=(primary, parts))  # a terminal holds no more than 4,096 bytes
        reading.start()
        out, _ = process.communicate(timeout=120)
        reading.join(10)
        shown = b"".join(parts).decode()
        assert process.returncode == 0
        assert "report: peek/report.html" in out
        assert "explaining" in shown
        assert "explaining" not in out

    def test_a_reader_that_has_enough(self, place) -> None:
        process = subprocess.Popen(
            self.command("methods"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        process.stdout.close()
        with process.stderr as errors:
            err = errors.read()
        assert process.wait(60) == 0
        assert b"Traceback" not in err


def read_all(terminal: int, parts: list[bytes]) -> None:
    """Until the other side is closed, of which Linux says EIO."""
    with suppress(OSError):
        while part := os.read(terminal, 100_000):
            parts.append(part)
