"""Signals and closed streams of a process that runs a command."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cli_runner import environment
from torchpeek.cli import signals

NOTHING = "error: interrupted; nothing was written\n"
COMPLETE = "error: interrupted; what was written so far is complete\n"
INTERRUPTS_ITSELF = """
import os, signal, time
for name in {names}:
    os.kill(os.getpid(), getattr(signal, name))
try:
    time.sleep({sleep})
except BaseException as error:
    raise ImportError("as an extension in C has it") from error
"""
AFTER_LOADING = """
import os, signal, torchpeek as tp
from networks import PooledNet

class Interrupts(PooledNet):
    called = 0

    def forward(self, x):
        Interrupts.called += 1
        if Interrupts.called >= 3 and os.path.isdir("out"):
            try:
                os.kill(os.getpid(), signal.{name})
                sum(range(1000))
            except BaseException as error:
                if {conceal} == "turned":
                    raise RuntimeError("turned into another error") from error
                if {conceal} != "swallowed":
                    raise
        return super().forward(x)

def make():
    return tp.LoadedModel(Interrupts(), tp.Preprocess(resize=16, crop=(16, 16)))
"""


def started(*words: str, folder: Path | None = None, **more: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, with the modules of a folder before all others."""
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([*([str(folder)] if folder else []), variables["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "torchpeek", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        **more,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("module", "names", "status"),
    [
        ("cyclopts", ["SIGINT"], 130),
        ("torch", ["SIGINT"], 130),
        ("torch", ["SIGINT", "SIGINT"], 130),
        ("torch", ["SIGTERM"], 143),
        ("torch", ["SIGHUP"], 129),
    ],
)
def test_while_modules_load(tmp_path, module: str, names: list[str], status: int) -> None:
    """Whatever the module would make of a KeyboardInterrupt."""
    (tmp_path / f"{module}.py").write_text(INTERRUPTS_ITSELF.format(names=names, sleep=1))
    process = started("methods", folder=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", NOTHING)


AT_THE_FIRST_FILE = """
import os, signal, sys

class Sends:
    def find_spec(self, name, *more):
        if name == "torchpeek.cli.signals":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Sends())
sys.argv = ["torchpeek", "--version"]
from torchpeek.__main__ import main  # as the script `torchpeek` does
main()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_before_signals_are_handled(name: str, status: int) -> None:
    """It waits for the file that handles it."""
    code = AT_THE_FIRST_FILE.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", NOTHING)


def test_a_worker_process_handles_its_own_signals(monkeypatch) -> None:
    """A process that `multiprocessing` starts imports the file of the command again."""
    monkeypatch.setattr(signals, "_process", signals._Process())
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    before = signal.getsignal(signal.SIGTERM)
    signals.take_over()
    assert signals._process.id is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_was_ignored_stays_ignored(tmp_path) -> None:
    """As `nohup` has it."""
    (tmp_path / "torch.py").write_text(INTERRUPTS_ITSELF.format(names=["SIGHUP"], sleep=0) + "os._exit(7)")
    process = started("methods", folder=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.communicate(timeout=60)
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("name", "conceal", "status"), [("SIGHUP", "", 129), ("SIGINT", "turned", 130), ("SIGINT", "swallowed", 130)]
)
def test_while_a_command_runs(place, name: str, conceal: str, status: int) -> None:
    """What was done is written, also if the model's code conceals the interrupt."""
    (place / "after.py").write_text(AFTER_LOADING.format(name=name, conceal=repr(conceal)))
    words = ("evaluate", "pictures", "--model", "after:make", "--metric", "sparseness", "--method", "cam", "-o", "out")
    process = started(*words, cwd=place)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1] + "\n") == (status, COMPLETE), err
    assert "Traceback" not in err
    if (place / "out").exists():
        results = json.loads((place / "out" / "results.json").read_text())
        assert not results["skipped"], "the picture is not at fault"


def test_while_the_process_ends(tmp_path) -> None:
    """The status is decided: a signal during the exit handlers ends the process at once, with no traceback."""
    code = (
        "import atexit, os, signal, time\n"
        "from torchpeek.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(20)))"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("redirections", "status", "said"),
    [
        (">&-", 0, ""),
        ("2>&- cams", 2, ""),
        ("<&- >&- 2>&- cams", 2, ""),
        pytest.param(
            "> /dev/full",
            2,
            "error: standard output cannot be written (no space left on device)\n",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full"),
        ),
    ],
)
def test_streams_that_are_closed_or_full(redirections: str, status: int, said: str) -> None:
    command = f"{sys.executable} -m torchpeek --version {redirections}"
    if "cams" in redirections:
        command = command.replace("--version ", "")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_the_status_does_not_depend_on_the_reader(place) -> None:
    """The reader of both streams goes before the work begins; a picture is skipped."""
    (place / "pictures" / "bad.png").write_bytes(b"no picture")
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "torchpeek", "cam", "pictures", "--model", "my_nets:make", "--method", "cam"]
    process = subprocess.Popen(words, stdout=writer, stderr=writer, env=environment(), cwd=place)
    os.close(writer)
    assert process.wait(120) == 1
    assert len(json.loads((place / "peek" / "results.json").read_text())["pictures"]) == 3


class TestHandler:
    """The phases, in this process."""

    @pytest.fixture(autouse=True)
    def process(self, monkeypatch):
        process = signals._Process()
        process.id, process.phase = os.getpid(), "running"
        monkeypatch.setattr(signals, "_process", process)

        def exited(status: int) -> None:
            raise SystemExit(status)

        monkeypatch.setattr(os, "_exit", exited)
        return process

    def test_one_exception_then_the_end(self, process) -> None:
        with pytest.raises(KeyboardInterrupt):
            signals._handle(signal.SIGTERM, None)
        signals._handle(signal.SIGINT, None)  # twice in quick succession
        process.arrived -= 2
        with pytest.raises(SystemExit, match="143"):
            signals._handle(signal.SIGINT, None)

    def test_not_within_an_import(self, process, tmp_path, monkeypatch) -> None:
        """It waits for the end of the import, and then also ends a sleep."""
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(signals, "_SECONDS_TO_REPEAT", 0.2)
        (tmp_path / "raises_nothing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndone = 1")
        before = signal.signal(signal.SIGINT, signals._handle)
        try:
            import raises_nothing  # type: ignore[import-not-found]

            assert raises_nothing.done
            with pytest.raises(KeyboardInterrupt):
                time.sleep(20)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_two_that_waited_for_an_import_are_one(self, process) -> None:
        process.signal, process.arrived = signal.SIGINT, time.monotonic() - 1.5
        with pytest.raises(KeyboardInterrupt):
            signals._handle(signal.SIGINT, None)
        signals._handle(signal.SIGINT, None)

    def test_a_child_process_keeps_the_standard_behaviour(self, process) -> None:
        process.id = -1
        with pytest.raises(KeyboardInterrupt):
            signals._handle(signal.SIGINT, None)

    def test_what_code_has_caught_is_raised_again(self, process) -> None:
        signals.raise_if_interrupted()
        with suppress(KeyboardInterrupt):
            signals._handle(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            signals.raise_if_interrupted()
