"""Make thousands of attempts to break torchpeek, and write what came of them: `python -m torture`."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from torture.summary import summary, write_page
from worker_processes import answer_tasks, in_processes

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "torture.jsonl"
WAITING = ROOT / ".cache" / "torture-waiting.txt"
PAGE = ROOT / "docs" / "reliability.md"
PACKAGES = ("torch",)

# One attempt takes a tenth of a second; a hundred seconds mean that it waits for ever.
LIMIT = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--attempts", type=int, default=21_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the seed of all of them")
    parser.add_argument("--only", type=int, nargs="*", metavar="NUMBER", help="those with these numbers, again")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--page", action="store_true", help="write the table into docs/reliability.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    key = f"{options.seed} {_everything_else()}"
    numbers = range(options.attempts) if options.only is None else options.only
    known = {} if options.again or options.only is not None else done(key)
    rest = [number for number in numbers if number not in known]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(numbers)} attempts, {len(numbers) - len(rest)} of them done before")
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        tasks = [_task(options.seed, number) for number in rest]
        for count, result in enumerate(in_processes("torture", tasks, options.jobs, LIMIT), 1):
            number = result.task % _NUMBERS
            row = result.row or _without_answer(options.seed, number, result.problem)
            known[number] = row
            file.write(json.dumps({**row, "key": key}) + "\n")
            file.flush()
            if row["failed"] or options.only is not None:
                state = "; ".join(row["failed"]) or "held"
                console.print(f"{number}  {row['family']}: {row['details']}: {state}", markup=False)
            elif count % 1000 == 0:
                console.print(f"{count} of {len(rest)} attempts", markup=False)
    rows = [known[number] for number in numbers]
    console.print(summary(rows), markup=False)
    if options.page:
        write_page(PAGE, rows, options.seed, {name: version(name) for name in PACKAGES})
    if any(row["failed"] for row in rows):
        raise SystemExit(1)


# A task is one number, of the seed and of the attempt.
_NUMBERS = 10**9


def _task(seed: int, number: int) -> int:
    return seed * _NUMBERS + number


def done(key: str) -> dict[int, dict[str, Any]]:
    """What is known already, by number; of several the last."""
    if not KEPT.is_file():
        return {}
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    return {row["number"]: row for row in rows if row["key"] == key}


def _everything_else() -> str:
    """Changes with the packages, torchpeek's source and the attempts."""
    files = [*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()
    return " ".join([source[:16], *(f"{name} {version(name)}" for name in PACKAGES)])


def _without_answer(seed: int, number: int, problem: str) -> dict[str, Any]:
    from torture.attempts import family_of

    return {"number": number, "family": family_of(seed, number), "details": "", "late": [], "failed": [problem]}


def work() -> None:
    """Make the attempts whose numbers are read."""
    import torch

    from torture.attempts import attempted
    from torture.session import Session

    torch.set_num_threads(1)
    session = Session()
    WAITING.parent.mkdir(exist_ok=True)
    waiting = WAITING.open("a")

    def answer(task: int) -> dict[str, Any]:
        seed, number = divmod(task, _NUMBERS)
        # Where an attempt waits for ever, this says where.
        faulthandler.dump_traceback_later(0.8 * LIMIT, file=waiting)
        attempt = attempted(session, seed, number)
        faulthandler.cancel_dump_traceback_later()
        return {
            "number": number,
            "family": attempt.family,
            "details": attempt.details,
            "late": attempt.late,
            "failed": attempt.failed,
            "worker ends": bool(attempt.failed),
        }

    answer_tasks(answer)


if __name__ == "__main__":
    main()
