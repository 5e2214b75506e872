"""The counts of the attempts as text, and the table in docs/reliability.md."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- torture: begin, written by make torture -->", "<!-- torture: end -->"

Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> str:
    """The counts of each family."""
    return "\n".join(
        f"{family}: {tried} tried, {tried - failed} held, {failed} failed" + (f"; {late} late" if late else "")
        for family, (tried, failed, late) in counts(rows).items()
    )


def counts(rows: Sequence[Row]) -> dict[str, tuple[int, int, int]]:
    """For each family, and for all of them: how many were tried, failed, and were as found only after the next call."""
    families = sorted({row["family"] for row in rows})
    found = {family: _counted([row for row in rows if row["family"] == family]) for family in families}
    return {**found, "all": _counted(rows)}


def _counted(rows: Sequence[Row]) -> tuple[int, int, int]:
    return len(rows), sum(bool(row["failed"]) for row in rows), sum(bool(row["late"]) for row in rows)


def write_page(page: Path, rows: Sequence[Row], seed: int, versions: Mapping[str, str]) -> None:
    """Put the table between the markers of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(rows, seed, versions)}\n\n{END}{after}")


def markdown(rows: Sequence[Row], seed: int, versions: Mapping[str, str]) -> str:
    """A table with a line for each family, and what failed."""
    from torture.attempts import FAMILIES

    packages = ", ".join(f"{name} {each}" for name, each in versions.items())
    lines = [
        f"{len(rows):,} attempts with seed {seed}; {packages}.",
        "",
        "| attempt | what happens | tried | held | failed | finished by the next call |",
        "|---|---|---|---|---|---|",
    ]
    for family, (tried, failed, late) in counts(rows).items():
        text = " ".join((FAMILIES[family][0].__doc__ or "").split()) if family in FAMILIES else ""
        lines.append(f"| {family} | {text} | {tried:,} | {tried - failed:,} | {failed:,} | {late:,} |")
    if listed := [row for row in rows if row["failed"]]:
        reasons = Counter(row["failed"][0] for row in listed)
        firsts = {row["failed"][0]: row for row in reversed(listed)}
        lines += ["", "What failed:", "", *(_item(firsts[reason], count) for reason, count in reasons.most_common())]
    return "\n".join(lines)


def _item(first: Row, count: int) -> str:
    """Attempts that failed for the same reason, as an item of a list, in lines of 120 characters."""
    text = ": ".join(filter(None, (first["family"], first["details"], first["failed"][0])))
    text += f" (and {count - 1:,} more)" if count > 1 else ""
    return textwrap.fill(text.replace("|", "&#124;"), 120, initial_indent="- ", subsequent_indent="  ")
