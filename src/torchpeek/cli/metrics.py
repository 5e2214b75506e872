"""torchpeek metrics: the registered metrics."""

from __future__ import annotations

from torchpeek.cli.console import print_json, print_table
from torchpeek.metrics import METRICS


def run(*, json: bool) -> int:
    """List the metrics. Returns the exit status."""
    if json:
        print_json(
            [
                {
                    "name": each.name,
                    "summary": each.summary,
                    "higher_is_better": each.higher_is_better,
                    "needs": each.needs,
                    "cost": each.cost(),
                    "paper": each.paper,
                    "options": dict(each.options),
                }
                for each in METRICS.values()
            ]
        )
    else:
        header = ("metric", "better", "needs", "cost for each heatmap", "paper", "what it says")
        print_table(
            header,
            [
                (
                    each.name,
                    "higher" if each.higher_is_better else "lower",
                    each.needs,
                    each.cost(),
                    each.paper,
                    each.summary,
                )
                for each in METRICS.values()
            ],
            prose=(header[3], header[5]),
        )
    return 0
