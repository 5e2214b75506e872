"""The matrix in words: shares, and a table for docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- matrix: begin (make matrix writes this) -->", "<!-- matrix: end -->"

CHECKS = {
    "layers": "layers() lists every layer",
    "record": "record() of every layer: output bit-equal with and without, each layer's as a plain hook sees it",
    "gradient": "the suggested layer's map: its gradient matches finite differences in float64",
    "place": "the grid lies on the picture",
    "methods": "five methods",
    "replay": "replays, or whole passes where they are refused, give what plain hooks give",
    "left as found": "the model is left as it was found",
}


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Shares, and what does not work, with the reason."""
    gridded = [row for row in rows if not row.get("gridless")]
    lines = [f"{len(rows)} architectures, {len(gridded)} with a spatial grid"]
    for check, what in CHECKS.items():
        of = rows if check in ("layers", "record", "left as found") else gridded
        lines.append(_share(what, sum(_passed(row, check) for row in of), len(of)))
    lines.append(_share("replay used, not refused", sum(row.get("replay") == "used" for row in gridded), len(gridded)))
    for row in rows:
        for check, why in row["failed"].items():
            lines.append(f"  {row['model']}: {check}: {why}")
        if row.get("replay", "used") != "used":
            lines.append(f"  {row['model']}: a replay {row['replay']}")
        if row.get("gridless"):
            lines.append(f"  {row['model']}: not counted: {row['gridless']}")
    return "\n".join(lines)


def _share(what: str, passed: int, count: int) -> str:
    return f"  {passed:4d} of {count} ({passed / max(1, count):6.1%})  {what}"


def _passed(row: Mapping[str, Any], check: str) -> bool:
    return not row["failed"].keys() & {check, "built", "run"}


def write_page(page: Path, rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> None:
    """Put the table between the markers of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(rows, versions)}\n\n{END}{after}")


def table(rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    raise NotImplementedError
