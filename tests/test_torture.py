"""A sample of the attempts to break torchpeek, of three minutes; make torture makes thousands."""

from __future__ import annotations

import pytest

from paths import ROOT
from torture.attempts import FAMILIES
from torture.summary import BEGIN, END, counts, markdown
from worker_processes import Result, in_processes

SEED = 1
SAMPLES = 12  # of this many attempts each
ATTEMPTS = 100


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_no_attempt_fails(sample: int) -> None:
    # In a process of its own: a failed attempt may leave its process as no other test can use it.
    tasks = [SEED * 10**9 + number for number in range(sample * ATTEMPTS, (sample + 1) * ATTEMPTS)]
    results = list(in_processes("torture", tasks, jobs=1, limit=100))
    assert len(results) == ATTEMPTS
    failed = [each.task for each in results if each.row is None or each.row["failed"]]
    # Alone once more, because a busy machine may delay a signal or a thread: `make torture` counts these, too.
    again = [result for task in failed for result in in_processes("torture", [task], jobs=1, limit=100)]
    assert [_failure(each) for each in again if each.row is None or each.row["failed"]] == []


def _failure(result: Result) -> str:
    if result.row is None:
        return f"attempt {result.task}: {result.problem}"
    return f"attempt {result.task}: {result.row['family']}: {result.row['details']}: {result.row['failed']}"


def test_the_counts() -> None:
    rows = [
        {"family": "fork", "details": "one", "late": [], "failed": []},
        {"family": "fork", "details": "two", "late": [], "failed": ["the child waited | for ever"]},
        {"family": "threads", "details": "three", "late": ["a mode"], "failed": []},
    ]
    assert counts(rows) == {"fork": (2, 1, 0), "threads": (1, 0, 1), "all": (3, 1, 1)}
    page = markdown(rows, 5, {"torch": "2"})
    assert "| 2 | 1 | 1 | 0 |" in page
    assert "- fork: two: the child waited &#124; for ever" in page


def test_the_page_has_every_family() -> None:
    table = (ROOT / "docs" / "reliability.md").read_text().partition(BEGIN)[2].partition(END)[0]
    listed = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert {*FAMILIES, "all"} <= set(listed)
