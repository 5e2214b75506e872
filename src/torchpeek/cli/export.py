"""torchpeek export: a run in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torchpeek.cli.console import print_json
from torchpeek.cli.signals import start_running
from torchpeek.cli.terminal import print_text
from torchpeek.runs.export import exported
from torchpeek.runs.run import open_run


def run(
    place: str, to: Literal["png", "zarr", "fiftyone", "parquet"], out: Path, *, limit: int | None, json: bool
) -> int:
    """Export a run, and print what was written. Returns the exit status."""
    start_running()
    count = exported(open_run(place), to, out, limit=limit)
    if json:
        print_json({"out": str(out), "to": to, "written": count})
    else:
        print_text(f"written to {out}/: {count:,} {'rows' if to == 'parquet' else 'heatmaps'}")
    return 0
