"""The cost of watch and of check_finite, in a training step of ResNet-18."""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

import torchpeek as tp
from timing import interleaved, ratios

STEP = "a training step"
CHECKED = "in check_finite"
FORWARD_CHECKED = "in check_finite, backward=False"
EVERY, BATCH = 10, 32
CHECKED_BATCH = 4  # of the multiples with check_finite: nine steps of the whole batch would take minutes
GOAL = "2 %"


def measure_all(rounds: int) -> dict[str, Any]:
    """Seconds of a training step, what watch adds to it on average, and the multiples with check_finite."""
    print("measuring: watch", file=sys.stderr)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = resnet18().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, classes = torch.randn(BATCH, 3, 224, 224), torch.randint(1000, (BATCH,))

    def step(size: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x[:size]), classes[:size]).backward()
        optimizer.step()

    def checked(**options: bool) -> None:
        with tp.check_finite(model, **options):
            step(CHECKED_BATCH)

    def ten_updates() -> None:
        for _ in range(EVERY):
            optimizer.step()

    def ten_watched_updates() -> None:
        with tp.watch(model, every=EVERY):
            ten_updates()

    step(CHECKED_BATCH)
    # One step of the whole batch is long enough. With the rounds below, all takes under two minutes on two busy cores.
    whole = interleaved({STEP: lambda: step(BATCH)}, rounds=1, warm=False)
    steps = interleaved(
        {STEP: lambda: step(CHECKED_BATCH), CHECKED: checked, FORWARD_CHECKED: lambda: checked(backward=False)},
        rounds=max(3, rounds // 5),
        warm=False,
    )
    # All that watch does is in optimizer.step(). Beside a whole step of seconds it would vanish in the noise.
    updates = interleaved({"plain": ten_updates, "watched": ten_watched_updates}, rounds=max(3, rounds // 3))
    pairs = zip(updates["watched"], updates["plain"], strict=True)
    return {
        "step_seconds": statistics.median(whole[STEP]),
        "added_seconds": statistics.median(watched - plain for watched, plain in pairs) / EVERY,
        "multiples": ratios(steps, STEP),
    }


def markdown(results: dict[str, Any]) -> str:
    """The section on training."""
    seconds, added = results["step_seconds"], results["added_seconds"]
    lines = [
        "## Training",
        "",
        f"ResNet-18 with batches of {BATCH} pictures of 224 pixels, SGD with momentum, 2 threads. A step takes",
        f"{seconds:.2f} s. `watch(model, every={EVERY})` adds {1e3 * added:.1f} ms to it on average, which is",
        f"{100 * added / seconds:.2f} % (goal: at most {GOAL}). Measured in `optimizer.step()`, where it is.",
        f"`check_finite` is for finding a mistake. Multiples of a step with batches of {CHECKED_BATCH}:",
        "",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value:.2f} |" for name, value in results["multiples"].items()),
    ]
    return "\n".join([*lines, ""])
