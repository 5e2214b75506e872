"""make evaluate: score every method by most metrics on real photographs, and write docs/leaderboard.md.

It starts with an estimate of its time, and resumes an interrupted run. It fails if fewer than 20 photographs could be
scored with a model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evaluation import scoring
from evaluation.models import MODELS, folded
from evaluation.page import page
from evaluation.pictures import Labelled, labelled

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / ".cache" / "leaderboard.jsonl"
PAGE = ROOT / "docs" / "leaderboard.md"
LEAST = 20
_EXPENSIVE_ON = 4  # photographs
_PASSES = 6300  # a photograph takes as long as this many forward passes, with scoring, sorting and imputing
_CELLS = 4  # of a mosaic
# By default glibc returns the memory of every large tensor to the system and requests it again, which takes a tenth of
# the time. A process reads these settings when it starts. Other systems ignore them.
_MEMORY = {"MALLOC_TOP_PAD_": 2**28, "MALLOC_TRIM_THRESHOLD_": 2**32, "MALLOC_MMAP_THRESHOLD_": 2**32}


@dataclass(frozen=True)
class Job:
    model: str
    kind: str  # "photograph", "expensive" or "mosaic"
    names: tuple[str, ...]  # of photographs

    @property
    def weight(self) -> float:
        """Its approximate time, as a multiple of that of a photograph with all methods but the expensive ones."""
        return {"photograph": 1.0, "expensive": 1.4, "mosaic": 0.3}[self.kind]

    @property
    def key(self) -> str:
        """Identifies the result: it changes with the job, and with the source code that the numbers depend on."""
        return hashlib.sha256(f"{self!r} {source()}".encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make evaluate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes that run at once, with one thread each")
    parser.add_argument("--most", type=int, default=21, help="use at most this many photographs")
    parser.add_argument("--page-only", action="store_true", help="only write the page from the stored results")
    arguments = parser.parse_args()
    available = [each for each in labelled() if not each.doubt]
    photographs = available[: arguments.most]
    if len(photographs) < LEAST:
        print(f"{len(photographs)} labelled photographs, but {LEAST} are needed: run tools/fetch_pictures.py")
        return 1
    jobs = list(all_jobs(photographs, available))
    known = {key: row for key, row in stored_results().items() if key in {job.key for job in jobs}}
    rest = [] if arguments.page_only else [job for job in jobs if job.key not in known]
    print(f"{len(jobs)} jobs, {len(jobs) - len(rest)} of them done before", flush=True)
    if rest:
        print(f"about {estimated(rest, arguments.jobs):.0f} minutes, estimated from a few forward passes", flush=True)
    start, done, whole = time.monotonic(), 0.0, sum(job.weight for job in rest)
    os.environ.update({name: str(size) for name, size in _MEMORY.items()})
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(arguments.jobs, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending = {pool.submit(scored, job): job for job in rest}
        for future in as_completed(pending):
            job = pending[future]
            row = {"key": job.key, **asdict(job), **future.result()}
            known[job.key] = row
            with RESULTS.open("a") as file:  # on a line of its own, even if the line before was cut off
                file.write("\n" + json.dumps(row))
            done += job.weight
            left = (time.monotonic() - start) / done * (whole - done)
            said = row.get("failed") or f"{row['seconds']:.0f} s"
            print(f"{job.model} {job.kind} {', '.join(job.names)}: {said}; {left / 60:.0f} minutes left", flush=True)
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():  # otherwise the exit waits for jobs that take minutes
            worker.terminate()
        print("interrupted; the results so far are stored, and make evaluate resumes from them", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    rows = [known[job.key] for job in jobs if job.key in known]
    for model in MODELS:
        count = sum(row["model"] == model and row["kind"] == "photograph" and "failed" not in row for row in rows)
        if count < LEAST:
            print(f"only {count} photographs were scored with {model}; {LEAST} are needed", file=sys.stderr)
            return 1
    PAGE.write_text(page(rows, available))
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def estimated(jobs: list[Job], processes: int) -> float:
    """Minutes: the time of a forward pass in one thread, times the number of passes that all jobs are worth."""
    torch.set_num_threads(1)
    seconds = {}
    for model in {job.model for job in jobs}:
        module, several = folded(MODELS[model]().module), torch.randn(4, 3, 224, 224)
        with torch.inference_mode():
            module(several)
            start = time.perf_counter()
            for _ in range(8):
                module(several)
        seconds[model] = (time.perf_counter() - start) / 8 / len(several)
    return sum(_PASSES * job.weight * seconds[job.model] for job in jobs) / processes / 60


def all_jobs(photographs: list[Labelled], for_mosaics: list[Labelled]) -> Iterator[Job]:
    """The expensive jobs first, because they take longest. Then every photograph with both models; then the mosaics."""
    names = [each.name for each in photographs]
    for model in MODELS:
        yield from (Job(model, "expensive", (name,)) for name in names[:_EXPENSIVE_ON])
    for name in names:
        yield from (Job(model, "photograph", (name,)) for model in MODELS)
    for several in mosaics(for_mosaics):
        yield from (Job(model, "mosaic", tuple(each.name for each in several)) for model in MODELS)


def mosaics(photographs: list[Labelled]) -> list[list[Labelled]]:
    """Groups of four photographs of four classes, as a class in two cells has no cell. No photograph is used twice."""
    waiting, groups = list(photographs), []
    while True:
        chosen: dict[int, Labelled] = {}
        for each in waiting:
            if len(chosen) < _CELLS:
                chosen.setdefault(each.label, each)
        if len(chosen) < _CELLS:
            return groups
        groups.append([*chosen.values()])
        waiting = [each for each in waiting if each not in groups[-1]]


def stored_results() -> dict[str, dict[str, Any]]:
    """The results of earlier runs, by key."""
    if not RESULTS.is_file():
        return {}
    rows = []
    for line in RESULTS.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # an empty line, or one that was cut off when the program was killed
            rows.append(json.loads(line))
    return {row["key"]: row for row in rows if "failed" not in row}


_SOURCE: list[str] = []
_LOADED: dict[str, Any] = {}


def source() -> str:
    """A digest of all source code that a number depends on, and of the versions of the packages."""
    if not _SOURCE:
        inside, here = ROOT / "src" / "torchpeek", ROOT / "bench" / "evaluation"
        rooms = ("cam", "engine", "evaluation", "explanation", "hooks", "metrics", "models")
        shown = {"measurement.py", "verdicts.py"}  # these only read the numbers
        files = [file for room in rooms for file in sorted((inside / room).rglob("*.py")) if file.name not in shown]
        files += [inside / name for name in ("heatmap.py", "picture.py")]
        files += [inside / "store" / name for name in ("pictures.py", "picture_formats.py", "upright_images.py")]
        files += [here / name for name in ("models.py", "pictures.json", "scoring.py")]
        versions = [version(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")]
        text = b"".join([*(file.read_bytes() for file in files), " ".join(versions).encode()])
        _SOURCE.append(hashlib.sha256(text).hexdigest())
    return _SOURCE[0]


def scored(job: Job) -> dict[str, Any]:
    """The result of a job. It runs in a worker process, which keeps its models."""
    start = time.monotonic()
    if job.model not in _LOADED:
        _LOADED[job.model] = MODELS[job.model]()
        folded(_LOADED[job.model].module)
    loaded = _LOADED[job.model]
    by_name = {each.name: each for each in labelled()}
    pictures = [by_name[name] for name in job.names]
    try:
        if job.kind == "mosaic":
            rows, seconds = scoring.of_mosaic(loaded, pictures), {}
        else:
            methods = list(scoring.EXPENSIVE) if job.kind == "expensive" else scoring.CHEAP
            rows, seconds = scoring.of_picture(loaded, pictures[0], methods)
    except Exception as error:  # the other photographs are scored; too few of them are an error
        return {"failed": f"{type(error).__name__}: {error}"}
    numbers = [[each.method, each.metric, each.value, each.random, each.centre] for each in rows]
    return {"rows": numbers, "method_seconds": seconds, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    sys.exit(main())
