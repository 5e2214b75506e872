"""The results of the matrix as text: shares, and the table in docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- matrix: begin, written by make matrix -->", "<!-- matrix: end -->"

CHECKS = {
    "layers": "`layers()` lists every layer and its output",
    "record": "`record()` of every layer leaves the output bit-equal, and records what a plain hook sees",
    "gradient": "`explain()` at the suggested layer: a map, and its gradient matches finite differences in float64",
    "place": "the grid of the map lies on the picture (checked if the output is not (N, C, H, W))",
    "methods": "`explain()` works with five methods",
    "replay": "replays with a changed output of the layer give the scores of whole passes with a plain hook",
    "left as found": "parameters, buffers, modes and hooks are left as they were",
}
EVERYWHERE = ("layers", "record", "left as found")  # the others need a grid

Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> str:
    """The shares, and what does not work, with the reason."""
    return "\n".join([*shares(rows), "", *(exceptions(rows) or ["nothing else"])])


def shares(rows: Sequence[Row]) -> list[str]:
    gridded = [row for row in rows if not row.get("gridless")]
    families = {(row["model"].partition(":")[0], row["family"]) for row in rows}
    lines = [f"{len(rows)} architectures of {len(families)} families, {len(gridded)} with a grid of the picture"]
    for check, what in CHECKS.items():
        of = rows if check in EVERYWHERE else gridded
        lines.append(_share(what, sum(passed(row, check) for row in of), len(of)))
    used = sum(row.get("replay") == "used" for row in gridded)
    lines.append(_share("replays are used, not refused", used, len(gridded)))
    return lines


def exceptions(rows: Sequence[Row]) -> list[str]:
    """What does not work, what is refused, and what is not counted, each with the reason."""
    lines = [f"{row['model']}: {check}: {why}" for row in rows for check, why in row["failed"].items()]
    for row in rows:
        if row.get("replay", "used") != "used":
            lines.append(f"{row['model']}: whole passes in place of replays: a replay {row['replay']}")
        if row.get("gridless"):
            lines.append(f"{row['model']}: not counted: {row['gridless']}")
    return lines


def passed(row: Row, check: str) -> bool:
    return not row["failed"].keys() & {check, "built", "run"}


def _share(what: str, count: int, of: int) -> str:
    return f"{count} of {of} ({count / max(1, of):.1%}): {what}"


def write_page(page: Path, rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """Put it all between the markers of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(rows, versions)}\n\n{END}{after}")


def markdown(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """Shares, exceptions, and a table with a line for each architecture."""
    head, *rest = shares(rows)
    lines = [f"{head}; {', '.join(f'{name} {each}' for name, each in versions.items())}.", ""]
    lines += [f"- {each}" for each in rest]
    if listed := exceptions(rows):
        lines += ["", "What does not work, or is not counted:", "", *(f"- {_escaped(each)}" for each in listed)]
    lines += [
        "",
        "| model | input | suggested layer | read as | gradient off by | goes around | methods | replays |",
        "|" + "---|" * 8,
    ]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    error = row.get("gradient error")
    methods = row.get("methods", {})
    cells = [
        f"`{row['model']}`",
        f"{row['size']} × {row['size']}",
        f"`{row['layer']}`" if "layer" in row else "",
        row.get("layout", ""),
        "" if error is None else f"{error:.0e}",
        f"{row['goes around']:.0%}" if "goes around" in row else "",
        f"{sum(each == 'ok' for each in methods.values())} of {len(methods)}" if methods else "",
        "used" if row.get("replay") == "used" else "refused" if "replay" in row else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
