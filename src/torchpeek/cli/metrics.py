"""torchpeek metrics: the metrics that there are."""

from __future__ import annotations

from torchpeek.cli.console import print_json, print_table
from torchpeek.cli.loading import Flag
from torchpeek.metrics import METRICS


def metrics(*, json: Flag = False, debug: Flag = False) -> int:
    """List the metrics: what each says of a heatmap, what it needs, what it costs.

    What a metric needs besides the picture: "heatmap" nothing; "region" where the object is; "passes" the model;
    "explanations" heatmaps of other inputs, for which the method is asked again.

    Parameters
    ----------
    json
        Print JSON, for machines, with the options of each.
    debug
        Show the traceback of an error.
    """
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
        )
    return 0
