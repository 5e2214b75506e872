"""Work in several processes, a task at a time. What crashes or takes too long ends its process and no other."""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What came of a task.

    Args:
        task: The number of the task.
        row: The worker's answer; None if it took too long, or if its process ended.
        seconds: How long it took.
        problem: Why there is no row; empty if there is one.
    """

    task: int
    row: dict[str, Any] | None
    seconds: float
    problem: str = ""


def in_processes(module: str, tasks: Sequence[int], jobs: int, limit: float) -> Iterator[Result]:
    """Yield the results in the order in which the tasks end.

    Args:
        module: Run as `python -m module --worker`; `answer_tasks` is what it calls.
        tasks: The numbers of the tasks.
        jobs: The number of processes.
        limit: The seconds that a task may take.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for each in tasks:
        waiting.put(each)
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def serve() -> None:
        worker: _Worker | None = None
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            worker = worker or _Worker(module)
            started = time.perf_counter()
            row = worker.answer(task, limit)
            seconds = time.perf_counter() - started
            problem = ""
            if row is None:
                problem = f"took longer than {limit:.0f} s" if seconds >= limit else "the process ended"
            if row is None or row.get("worker ends"):
                worker.end()
                worker = None
            results.put(Result(task, row, seconds, problem))
        if worker is not None:
            worker.end()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for _ in tasks:
        yield results.get()


def answer_tasks(answer: Any) -> None:
    """In a worker: read numbers of tasks, and write a line with what `answer` returns for each.

    What the tasks themselves print goes to stderr.

    Args:
        answer: A function from the number to a dict. With "worker ends" in it, this process is replaced afterwards.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(int(line))), file=answers, flush=True)


class _Worker:
    """A process that answers one task after the other."""

    def __init__(self, module: str) -> None:
        environment = {**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def answer(self, task: int, limit: float) -> dict[str, Any] | None:
        """None if it takes longer, or if the process ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(task, file=self._process.stdin, flush=True)
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


def _python_path() -> str:
    here = str(Path(__file__).parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
