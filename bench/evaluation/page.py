"""docs/leaderboard.md: method by metric, with intervals, beside what says nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from evaluation import scoring
from evaluation.models import MODELS
from evaluation.pictures import Labelled
from torchpeek.cam import METHODS
from torchpeek.metrics import METRICS, Measurement

GROUPS: Mapping[str, Sequence[str]] = {
    "What is left of the score": ["average-drop", "increase", "average-gain", "adcc"],
    "Removing and putting back": ["deletion", "insertion", "aopc", "road-morf", "road-lerf", "road"],
    "Whether the numbers add up": ["mufidelity", "infidelity"],
    "Where the object is": [*scoring.REGION, scoring.MOSAIC],
    "Whether the method looks at the model, the class and the picture": [
        "max-sensitivity",
        "randomisation",
        "random-class",
    ],
    "How much of the picture it takes": list(scoring.HEATMAP),
}
# Of which a baseline has the best or the worst possible by its nature.
_BESIDE_EACH_OTHER = ("max-sensitivity", "randomisation", "random-class", *scoring.HEATMAP)
OPTIONS = {**scoring.PASSES, **scoring.REGION, **scoring.HEATMAP, **scoring.ASKED, scoring.MOSAIC: {}}


def page(rows: Sequence[Mapping[str, Any]], photographs: Sequence[Labelled]) -> str:
    """The whole page."""
    tables = {model: _measurements([row for row in rows if row["model"] == model]) for model in MODELS}
    parts = [_head(photographs, rows), _verdict(tables)]
    for model, table in tables.items():
        parts.append(f"## {model}\n")
        parts += [_table(table, title, names) for title, names in GROUPS.items()]
        parts.append(_costs([row for row in rows if row["model"] == model]))
    parts.append(_photographs(photographs))
    return "\n".join(parts)


def _measurements(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Measurement]:
    """By method and metric: a value for each photograph, or for each cell of the mosaics."""
    values: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        for method, metric, *numbers in row.get("rows", []):
            values.setdefault((method, metric), []).append(tuple(numbers))
    found = {}
    for (method, metric), numbers in values.items():
        value, random, centre = torch.tensor(numbers, dtype=torch.float64).T.unsqueeze(2)  # (n, 1) each
        higher = METRICS[metric].higher_is_better
        found[method, metric] = Measurement(metric, value, higher, {"random": random, "centre": centre})
    for metric in {metric for _, metric in found}:  # the baselines on the usual grid are rows as well
        like = found.get(("gradcam", metric))
        if like is not None:
            for name, each in like.baselines.items():
                found[f"({name})", metric] = Measurement(metric, each, like.higher_is_better, like.baselines)
    return found


def _order(method: str) -> tuple[int, int]:
    beside = ["(random)", "(centre)", *scoring.TRIVIAL]
    return (1, beside.index(method)) if method in beside else (0, list(METHODS).index(method))


def _table(table: Mapping[tuple[str, str], Measurement], title: str, metrics: Sequence[str]) -> str:
    metrics = [name for name in metrics if any(metric == name for _, metric in table)]
    methods = sorted({method for method, metric in table if metric in metrics}, key=_order)
    arrows = [f"`{name}` {'↑' if METRICS[name].higher_is_better else '↓'}" for name in metrics]
    lines = [f"### {title}\n", "| method | n | " + " | ".join(arrows) + " |", "|---|---|" + "---|" * len(metrics)]
    for method in methods:
        cells = [_cell(table.get((method, name))) for name in metrics]
        count = max(table[method, name].interval().samples for name in metrics if (method, name) in table)
        lines.append(f"| {method} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(each: Measurement | None) -> str:
    if each is None:
        return "–"
    found = each.interval()
    marks = ("" if each.beats("random") else " r") + ("" if each.beats("centre") else " c")
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]{marks}"


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    seconds: dict[str, list[float]] = {}
    for row in rows:
        for method, each in row.get("method_seconds", {}).items():
            seconds.setdefault(method, []).append(each)
    lines = ["### What a heatmap costs\n", "| method | passes | seconds (median, one thread) |", "|---|---|---|"]
    for method in sorted(seconds, key=_order):
        options = ", ".join(f"{name}={value}" for name, value in scoring.DEAR.get(method, {}).items())
        cost = METHODS[method].cost + (f" (here with {options})" if options else "")
        lines.append(f"| {method} | {cost} | {statistics.median(seconds[method]):.2f} |")
    return "\n".join(lines) + "\n"


def _head(photographs: Sequence[Labelled], rows: Sequence[Mapping[str, Any]]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    mosaics = sum(row["kind"] == "mosaic" for row in rows) // len(MODELS)
    said = {name: options for name, options in OPTIONS.items() if options}
    options = "; ".join(f"{name} " + ", ".join(f"{k}={v}" for k, v in each.items()) for name, each in said.items())
    return f"""# Leaderboard

Every method, by every metric of [metrics.md](metrics.md), on {len(photographs)} real photographs and
{mosaics} mosaics of four, asked about the class that they are labelled with. `make evaluate` writes this page, and
takes up to an hour on two cores. {packages}.

Each cell is the mean over the photographs (n of them), and its 95 % bootstrap interval. ↑: higher is better.
**r**: not better than a random heatmap on the same grid (mean of ten), **c**: not better than a centred Gaussian;
"better" is that the interval of the difference on the same photographs leaves out zero. The rows `(random)` and
`(centre)` are these two on the grid of the last layer, `all-ones` is one everywhere, `constant` a half everywhere:
whatever a metric gives them, it does not give for an explanation.

- Two networks that packages ship with real weights, batch normalisations folded into their convolutions. Methods that
  read attention are not for them.
- {len(photographs)} photographs are few: the intervals are wide, and a difference of two methods within them means
  nothing. The methods that take over 2,000 passes were scored on four ({", ".join(scoring.DEAR)}), metrics that ask
  the method again only for those of up to 50 passes.
- Options other than the defaults: {options}.
"""


def _verdict(tables: Mapping[str, Mapping[tuple[str, str], Measurement]]) -> str:
    """In plain words, for each metric: who is better than both baselines with both networks, and who with neither."""
    lines = ["## What this says\n"]
    for metric in (name for names in GROUPS.values() for name in names):
        if metric in _BESIDE_EACH_OTHER:
            continue
        methods = [name for name in scoring.ALL if all((name, metric) in table for table in tables.values())]
        if not methods:
            continue
        wins = {
            name: sum(
                table[name, metric].beats("random") and table[name, metric].beats("centre") for table in tables.values()
            )
            for name in methods
        }
        always = [name for name in methods if wins[name] == len(tables)]
        never = [name for name in methods if not wins[name]]
        said = f"{_named(always, methods)} better than both baselines with both networks"
        lines.append(f"- `{metric}`: {said}; {_named(never, methods)} with neither.")
    named = ", ".join(f"`{name}`" for name in _BESIDE_EACH_OTHER)
    lines.append(
        f"- {named} set methods beside each other only: a heatmap that never changes has the best max-sensitivity and\n"
        "  the worst randomisation, one at random the other way round, and what is sparse may still be wrong."
    )
    return "\n".join(lines) + "\n"


def _named(names: Sequence[str], of: Sequence[str]) -> str:
    if not names:
        return "no method is"
    if len(names) == len(of):
        return f"all {len(of)} methods are"
    if len(names) > len(of) / 2:
        missing = ", ".join(name for name in of if name not in names)
        return f"all but {missing} are"
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _photographs(photographs: Sequence[Labelled]) -> str:
    lines = ["## The photographs\n", "None is in the repository, but those of examples/images; the boxes are ours.\n"]
    lines += ["| photograph | class | from | licence |", "|---|---|---|---|"]
    lines += [f"| {each.name} | {each.label} | {each.source} | {each.licence} |" for each in photographs]
    return "\n".join(lines) + "\n"
