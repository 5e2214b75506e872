"""Time several functions fairly: interleaved, in several rounds, as ratios to one of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(work: Mapping[str, Callable[[], object]], *, rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """The seconds of each function in each round. A round runs each of them once, so that noise affects them alike."""
    for run in work.values() if warm else ():
        run()  # caches, suggested layers, thread pools
    seconds: dict[str, list[float]] = {name: [] for name in work}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            names = list(work) if number % 2 == 0 else list(reversed(work))
            for name in names:
                start = time.perf_counter()
                work[name]()
                seconds[name].append(time.perf_counter() - start)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """For each function, the median over the rounds of its time divided by the base's in the same round."""
    return {
        name: statistics.median(mine / theirs for mine, theirs in zip(each, seconds[base], strict=True))
        for name, each in seconds.items()
    }
