"""Run the checks on the architectures one by one, each with a time limit, and print what works: `python -m matrix`."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from matrix.architectures import ARCHITECTURES
from matrix.building import Architecture
from matrix.summary import summary, write_page
from worker_processes import answer_tasks, in_processes

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


def examined_in_processes(architectures: list[Architecture], jobs: int, limit: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each architecture as it is done."""
    KEPT.parent.mkdir(exist_ok=True)
    tasks = [ARCHITECTURES.index(each) for each in architectures]
    for result in in_processes("matrix", tasks, jobs, limit):
        architecture = ARCHITECTURES[result.task]
        row = result.row or {
            "model": str(architecture),
            "family": architecture.family,
            "failed": {"run": result.problem},
            "seconds": round(result.seconds, 1),
            "size": architecture.size,
        }
        row |= {"key": key(architecture)}
        with KEPT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield row


def work() -> None:
    """Examine the architectures whose numbers are read."""
    import torch

    from matrix.checks import examined

    torch.set_num_threads(1)
    answer_tasks(lambda number: examined(ARCHITECTURES[number]))


if __name__ == "__main__":
    main()
