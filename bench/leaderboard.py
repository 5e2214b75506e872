"""make evaluate: the methods by every metric on real photographs; writes docs/leaderboard.md.

Says first how long it will take. Goes on where it was interrupted, and fails where fewer than 20 photographs could be
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
KEPT = ROOT / ".cache" / "leaderboard.jsonl"
PAGE = ROOT / "docs" / "leaderboard.md"
LEAST = 20
_DEAR_ON = 4  # photographs
_PASSES = 6300  # that a photograph takes as long as; with scoring, sorting and imputing
_CELLS = 4  # of a mosaic
# For glibc, which else gives every large tensor's memory back and fetches it again: a tenth of the time. Read when a
# process starts; other systems ignore it.
_MEMORY = {"MALLOC_TOP_PAD_": 2**28, "MALLOC_TRIM_THRESHOLD_": 2**32, "MALLOC_MMAP_THRESHOLD_": 2**32}


@dataclass(frozen=True)
class Job:
    model: str
    kind: str  # "photograph", "dear" or "mosaic"
    names: tuple[str, ...]  # of photographs

    @property
    def weight(self) -> float:
        """How long it takes, about, as a multiple of a photograph with all but the dear methods."""
        return {"photograph": 1.0, "dear": 1.4, "mosaic": 0.3}[self.kind]

    @property
    def key(self) -> str:
        """Changes with what is scored, and with the source that scores it."""
        return hashlib.sha256(f"{self!r} {source()}".encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make evaluate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, of one thread each")
    parser.add_argument("--most", type=int, default=21, help="photographs")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is known")
    given = parser.parse_args()
    there = [each for each in labelled() if not each.doubt]
    photographs = there[: given.most]
    if len(photographs) < LEAST:
        print(f"{len(photographs)} labelled photographs are there, and {LEAST} are needed: tools/fetch_pictures.py")
        return 1
    jobs = list(planned(photographs, there))
    known = {key: row for key, row in kept().items() if key in {job.key for job in jobs}}
    rest = [] if given.page_only else [job for job in jobs if job.key not in known]
    print(f"{len(jobs)} jobs, {len(jobs) - len(rest)} of them done before", flush=True)
    if rest:
        print(f"about {estimated(rest, given.jobs):.0f} minutes, by a few passes", flush=True)
    start, done, whole = time.monotonic(), 0.0, sum(job.weight for job in rest)
    os.environ.update({name: str(size) for name, size in _MEMORY.items()})
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(given.jobs, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending = {pool.submit(scored, job): job for job in rest}
        for future in as_completed(pending):
            job = pending[future]
            row = {"key": job.key, **asdict(job), **future.result()}
            known[job.key] = row
            with KEPT.open("a") as file:  # on a line of its own, also where the last one was cut off
                file.write("\n" + json.dumps(row))
            done += job.weight
            left = (time.monotonic() - start) / done * (whole - done)
            said = row.get("failed") or f"{row['seconds']:.0f} s"
            print(f"{job.model} {job.kind} {', '.join(job.names)}: {said}; {left / 60:.0f} minutes left", flush=True)
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():  # else a job of minutes would be waited for
            worker.terminate()
        print("interrupted; what is done is kept, and make evaluate goes on from there", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    rows = [known[job.key] for job in jobs if job.key in known]
    for model in MODELS:
        count = sum(row["model"] == model and row["kind"] == "photograph" and "failed" not in row for row in rows)
        if count < LEAST:
            print(f"only {count} photographs were scored with {model}; {LEAST} are needed", file=sys.stderr)
            return 1
    PAGE.write_text(page(rows, there))
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def estimated(jobs: list[Job], processes: int) -> float:
    """Minutes: what a pass takes in one thread, times how many a job has, about, with all else as so many more."""
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


def planned(photographs: list[Labelled], for_mosaics: list[Labelled]) -> Iterator[Job]:
    """The dear ones first, as they take longest; then photograph by photograph, both models in turn; then mosaics."""
    names = [each.name for each in photographs]
    for model in MODELS:
        yield from (Job(model, "dear", (name,)) for name in names[:_DEAR_ON])
    for name in names:
        yield from (Job(model, "photograph", (name,)) for model in MODELS)
    for several in mosaics(for_mosaics):
        yield from (Job(model, "mosaic", tuple(each.name for each in several)) for model in MODELS)


def mosaics(photographs: list[Labelled]) -> list[list[Labelled]]:
    """Each photograph in one of them at most; of four classes each, as a class in two cells has no cell of its own."""
    waiting, found = list(photographs), []
    while True:
        chosen: dict[int, Labelled] = {}
        for each in waiting:
            if len(chosen) < _CELLS:
                chosen.setdefault(each.label, each)
        if len(chosen) < _CELLS:
            return found
        found.append([*chosen.values()])
        waiting = [each for each in waiting if each not in found[-1]]


def kept() -> dict[str, dict[str, Any]]:
    """What is known already, by key."""
    if not KEPT.is_file():
        return {}
    rows = []
    for line in KEPT.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # an empty one, or one that was cut off as the program was killed
            rows.append(json.loads(line))
    return {row["key"]: row for row in rows if "failed" not in row}


_SOURCE: list[str] = []
_LOADED: dict[str, Any] = {}


def source() -> str:
    """Of all that a number depends on."""
    if not _SOURCE:
        inside, here = ROOT / "src" / "torchpeek", ROOT / "bench" / "evaluation"
        rooms = ("cam", "engine", "evaluate", "explain", "hooks", "metrics", "models")
        shown = {"measurement.py", "verdicts.py"}  # these read the numbers
        files = [file for room in rooms for file in sorted((inside / room).rglob("*.py")) if file.name not in shown]
        files += [inside / name for name in ("heatmap.py", "picture.py", "store/pictures.py")]
        files += [here / name for name in ("models.py", "pictures.json", "scoring.py")]
        versions = [version(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")]
        text = b"".join([*(file.read_bytes() for file in files), " ".join(versions).encode()])
        _SOURCE.append(hashlib.sha256(text).hexdigest())
    return _SOURCE[0]


def scored(job: Job) -> dict[str, Any]:
    """In a process of its own, which keeps its models."""
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
            methods = list(scoring.DEAR) if job.kind == "dear" else scoring.CHEAP
            rows, seconds = scoring.of_picture(loaded, pictures[0], methods)
    except Exception as error:  # one photograph; the others are scored, and too few are an error
        return {"failed": f"{type(error).__name__}: {error}"}
    found = [[each.method, each.metric, each.value, each.random, each.centre] for each in rows]
    return {"rows": found, "method_seconds": seconds, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    sys.exit(main())
