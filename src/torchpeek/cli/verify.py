"""torchpeek verify: every file of a run is as it was written."""

from __future__ import annotations

from dataclasses import asdict

from torchpeek.cli.console import print_json
from torchpeek.cli.options import InputOptions
from torchpeek.cli.run_model import run_model
from torchpeek.cli.run_options import RunModelOptions
from torchpeek.cli.signals import set_consequence, start_running
from torchpeek.cli.terminal import print_text
from torchpeek.runs.run_folder import opened, storage_of
from torchpeek.runs.verify import verified


def run(
    place: str,
    model: RunModelOptions,
    device: str,
    inputs: InputOptions,
    *,
    repair: bool,
    workers: int | None,
    json: bool,
) -> int:
    """Check a run, and repair it on request. Returns the exit status."""
    start_running()
    found = verified(place)
    if repair and found.damaged:
        loaded, _, _ = run_model(model, device, inputs, opened(storage_of(place)).spec)
        set_consequence("the same command goes on where it stopped")
        found = verified(place, repair=True, model=loaded, workers=0 if workers is None else workers)
    left = len(found.damaged) > len(found.repaired)
    if json:
        print_json(asdict(found))
        return 1 if left else 0
    for line in found.damaged:
        print_text(f"damaged: {line}")
    for part in found.repaired:
        print_text(f"repaired: {part}")
    print_text(f"parts: {found.parts:,}, damaged: {len(found.damaged):,}, not computed yet: {found.missing:,}")
    if found.damaged and not repair:
        print_text(f"torchpeek verify {place} --repair computes them again")
    return 1 if left else 0
