"""Run the checks on the architectures one by one, each with a time limit, and print what works: `python -m matrix`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import selectors
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from matrix.architectures import ARCHITECTURES
from matrix.building import Architecture
from matrix.summary import summary, write_page

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "matrix.jsonl"
PAGE = ROOT / "docs" / "models.md"
PACKAGES = ("torch", "torchvision", "timm", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="those whose name or family the expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--limit", type=float, default=240, help="seconds for one")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--page", action="store_true", help="write the table into docs/models.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work()
        return
    chosen = [each for each in ARCHITECTURES if re.search(given.only, f"{each} {each.family}")]
    known = {} if given.again else done()
    rest = [each for each in chosen if key(each) not in known]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(chosen)} architectures, {len(chosen) - len(rest)} of them done before")
    for row in examined_in_processes(rest, given.jobs, given.limit):
        known[row["key"]] = row
        state = "; ".join(f"{check}: {why}" for check, why in row["failed"].items()) or row.get("gridless") or "ok"
        console.print(f"{row['seconds']:6.1f} s  {row['model']}  {state}", markup=False)
    rows = [known[key(each)] for each in chosen]
    console.print(summary(rows), markup=False)
    if given.page:
        write_page(PAGE, rows, {name: version(name) for name in PACKAGES})


def done() -> dict[str, dict[str, Any]]:
    """What is known already, by key; of several the last."""
    if not KEPT.is_file():
        return {}
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    return {row["key"]: row for row in rows}


def key(architecture: Architecture) -> str:
    """Changes with the architecture, the packages, torchpeek's source and the checks."""
    return hashlib.sha256(f"{architecture!r} {_everything_else()}".encode()).hexdigest()[:16]


_KNOWN: list[str] = []


def _everything_else() -> str:
    if not _KNOWN:
        files = [
            *(ROOT / "src").rglob("*.py"),
            *(Path(__file__).parent / name for name in ("checks.py", "building.py")),
        ]
        source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()
        _KNOWN.append(" ".join([source, *(f"{name} {version(name)}" for name in PACKAGES)]))
    return _KNOWN[0]


def examined_in_processes(architectures: list[Architecture], jobs: int, limit: float) -> Any:
    """Yields a row for each as it is done; what crashes or takes too long ends its process and no other."""
    waiting: queue.SimpleQueue[Architecture] = queue.SimpleQueue()
    for each in architectures:
        waiting.put(each)
    rows: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def serve() -> None:
        worker: Worker | None = None
        while True:
            try:
                architecture = waiting.get_nowait()
            except queue.Empty:
                break
            worker = worker or Worker()
            started = time.perf_counter()
            row = worker.examined(architecture, limit)
            if row is None:
                seconds = time.perf_counter() - started
                why = f"took longer than {limit:.0f} s" if seconds >= limit else "the process ended"
                row = {"model": str(architecture), "family": architecture.family, "failed": {"run": why}}
                row |= {"seconds": round(seconds, 1), "size": architecture.size}
                worker.end()
                worker = None
            rows.put(row | {"key": key(architecture)})
        if worker is not None:
            worker.end()

    KEPT.parent.mkdir(exist_ok=True)
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for _ in architectures:
        row = rows.get()
        with KEPT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield row


class Worker:
    """A process that examines what it is told to, one after the other."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "matrix", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def examined(self, architecture: Architecture, limit: float) -> dict[str, Any] | None:
        """None where it takes longer, or the process ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(ARCHITECTURES.index(architecture), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                return None
        line = self._process.stdout.readline()
        row: dict[str, Any] | None = json.loads(line) if line else None
        return row

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def work() -> None:
    """Reads numbers of architectures, writes a line for each. What the networks print goes nowhere."""
    import torch

    from matrix.checks import examined

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        row = examined(ARCHITECTURES[int(line)])
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()
