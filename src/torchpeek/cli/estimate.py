"""How long `torchpeek evaluate` will take: the number of passes, and their time on the first picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torchpeek.cam import METHODS
from torchpeek.cli.explainer import Explainer
from torchpeek.cli.terminal import print_progress
from torchpeek.evaluation.cases import RANDOM
from torchpeek.explanation import trace
from torchpeek.metrics import METRICS

_TIMED = 8  # passes
_BASELINES = RANDOM + 1  # the heatmaps that are measured beside those of the methods


def passes_per_picture(metrics: Mapping[str, Mapping[str, Any]], methods: int, scores: int = 1) -> int:
    """About how many forward passes the metrics of one picture take.

    Args:
        metrics: Name -> options.
        methods: The number of methods.
        scores: The number of classes, boxes or texts.
    """
    total = 0
    for name, options in metrics.items():
        metric = METRICS[name]
        all_options = {**metric.options, **options}
        heatmaps = 1 if metric.shared else (methods + _BASELINES) * scores
        total += metric.passes(all_options) * heatmaps + 2 * metric.explanations(all_options) * methods
    return total


def print_estimate(explainer: Explainer, passes: int) -> None:
    """Print what will run, and for how long. The time is measured with a few passes of the first picture."""
    if not passes:
        return
    count = len(explainer.files)
    each = f"about {passes:,} forward passes{' each' * (count > 1)}"
    seconds = _seconds_of_a_pass(explainer)
    words = "" if seconds is None else f", {_duration(seconds * passes * count)}{' in all' * (count > 1)}"
    own = [f"{name} {METHODS[name].passes}" for name in explainer.methods if METHODS[name].passes]
    besides = f", besides those of the methods ({'; '.join(own)})" if own else ""
    print_progress(f"evaluating {count} picture{'s' * (count > 1)}: {each}{words}{besides}")


def _seconds_of_a_pass(explainer: Explainer) -> float | None:
    """The time of one of the passes that metrics make, on the first picture that can be explained. None without one."""
    for file in explainer.files:
        try:
            picture = explainer.read(file)
            first = trace(
                explainer.loaded,
                picture,
                layer=explainer.choice.layer,
                layout=explainer.choice.layout,
                target=explainer.target,
                gradients=False,
            )
            first.rescore(lambda inputs, rows, trials: inputs, _TIMED)  # the first passes are slower
            start = time.perf_counter()
            first.rescore(lambda inputs, rows, trials: inputs, _TIMED)
        except Exception:  # it is reported when its turn comes
            continue
        return (time.perf_counter() - start) / _TIMED
    return None


def _duration(seconds: float) -> str:
    if seconds < 2:
        return "about a second"
    if seconds < 100:
        return f"about {seconds:.0f} seconds"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
