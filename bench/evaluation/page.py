"""Write docs/leaderboard.md: every method by most metrics, with intervals, beside heatmaps that say nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

import torch

from evaluation import scoring
from evaluation.models import MODELS
from evaluation.pictures import Labelled
from torchpeek.cam import METHODS
from torchpeek.metrics import FEWEST, METRICS, Measurement

GROUPS: Mapping[str, Sequence[str]] = {
    "What is left of the score": ["average-drop", "increase", "average-gain", "adcc", "sufficiency"],
    "Removing and putting back": [
        *("deletion", "insertion", "aopc", "selectivity", "monotonicity"),
        *("road-morf", "road-lerf", "road"),
    ],
    "Whether the values predict the score": [
        *("mufidelity", "infidelity", "sensitivity-n", "monotonicity-correlation", "completeness"),
    ],
    "Where the object is": [*scoring.REGION, "auc", "top-k"],
    "Which of four photographs shows the class": [scoring.MOSAIC],
    "Whether the heatmap depends on the model, the class and the picture": [
        *("max-sensitivity", "average-sensitivity", "local-lipschitz"),
        *("relative-input-stability", "relative-output-stability"),
        *("randomisation", "random-class"),
    ],
    "How much of the picture it covers": [*scoring.HEATMAP, "effective-complexity"],
}
"""The place of each metric on the page. A table has those of them that scoring.py measures."""
# A baseline has the best or the worst possible value of these by its nature.
_WITHOUT_BASELINE = [name for title in list(GROUPS)[-2:] for name in GROUPS[title]]
_COMPARED = [name for names in GROUPS.values() for name in names if name not in _WITHOUT_BASELINE]
Tables: TypeAlias = Mapping[str, Mapping[tuple[str, str], Measurement]]
"""Model -> method and metric -> measurement."""
OPTIONS = {**scoring.PASSES, **scoring.REGION, **scoring.HEATMAP, **scoring.RERUN, scoring.MOSAIC: {}}


def page(rows: Sequence[Mapping[str, Any]], photographs: Sequence[Labelled]) -> str:
    """The whole page from these rows, and the list of the photographs in them."""
    photographs = [each for each in photographs if any(each.name in row["names"] for row in rows)]
    tables = {model: _measurements([row for row in rows if row["model"] == model]) for model in MODELS}
    parts = [_head(rows), _overview(tables, rows), _verdict(tables)]
    for model, table in tables.items():
        parts.append(f"## {model}\n")
        parts += [_table(table, title, names) for title, names in GROUPS.items()]
        parts.append(_costs([row for row in rows if row["model"] == model]))
    parts.append(_photographs(photographs))
    return "\n".join(parts)


def _measurements(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Measurement]:
    """By method and metric: a value for each photograph, or the values of its four cells for each mosaic."""
    values: dict[tuple[str, str], list[list[list[float]]]] = {}  # n x K x 3
    for row in rows:
        of_one: dict[tuple[str, str], list[list[float]]] = {}
        for method, metric, *numbers in row.get("rows", []):
            of_one.setdefault((method, metric), []).append(numbers)
        for key, listed in of_one.items():
            values.setdefault(key, []).append(listed)
    found = {}
    for (method, metric), all_numbers in values.items():
        value, random, centre = torch.tensor(all_numbers, dtype=torch.float64).unbind(2)  # (n, K) each
        higher = METRICS[metric].higher_is_better
        found[method, metric] = Measurement(metric, value, higher, {"random": random, "centre": centre})
    for metric in {metric for _, metric in found}:  # the baselines on the grid of gradcam are rows, too
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
        cells = [_cell(table.get((method, name)), method) for name in metrics]
        count = max(table[method, name].interval().samples for name in metrics if (method, name) in table)
        lines.append(f"| {method} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(each: Measurement | None, method: str) -> str:
    if each is None:
        return "–"
    found = each.interval()
    others = () if each.metric in _WITHOUT_BASELINE else [name for name in each.baselines if method != f"({name})"]
    marks = "".join(f" {name[0]}" for name in others if each.verdict(name) is False)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]{marks}"


def _seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Method -> seconds for each photograph."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        for method, each in row.get("method_seconds", {}).items():
            seconds.setdefault(method, []).append(each)
    return seconds


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    seconds = _seconds(rows)
    lines = ["### What a heatmap costs\n", "| method | passes | seconds (median, one thread) |", "|---|---|---|"]
    for method in sorted(seconds, key=_order):
        options = ", ".join(f"{name}={value}" for name, value in scoring.EXPENSIVE.get(method, {}).items())
        cost = METHODS[method].cost + (f" (here with {options})" if options else "")
        lines.append(f"| {method} | {cost} | {statistics.median(seconds[method]):.2f} |")
    return "\n".join(lines) + "\n"


def _head(rows: Sequence[Mapping[str, Any]]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    kinds = ("photograph", "mosaic")
    count, mosaics = (len({tuple(row["names"]) for row in rows if row["kind"] == kind}) for kind in kinds)
    said = {name: options for name, options in OPTIONS.items() if options}
    options = "; ".join(f"{name} " + ", ".join(f"{k}={v}" for k, v in each.items()) for name, each in said.items())
    return f"""# Leaderboard

Every method is scored by {len(OPTIONS)} of the {len(METRICS)} metrics of [metrics.md](metrics.md), on {count} real
photographs and {mosaics} mosaics of four photographs. The target is the class of the label. `make evaluate` writes
this page and takes an hour on two cores. {packages}.

Each cell has the mean over the n photographs, or mosaics, and its 95 % bootstrap interval. ↑: higher is better.
**r**: not better than a random heatmap on the same grid (the mean of ten). **c**: not better than a centred Gaussian.
A method is better if the interval of the difference on the same photographs lies on the better side of zero. Fewer
than {FEWEST} photographs cannot show this, and their cells have no marks. The rows `(random)` and `(centre)` are on the
grid of the last layer. `all-ones` is one everywhere, and `constant` is a half everywhere. None of the four explains
anything: a value that a metric gives to one of them is no evidence for an explanation.

- There are two networks, with real weights from packages. Their batch normalisations are folded into the convolutions.
  They have no attention, so the attention methods are left out. Every method runs without options. The target is the
  logit, even if the paper of a method uses the probability, as polycam's does.
- {count} photographs are few. The intervals are wide, and a difference between two methods within them means
  nothing. The methods of over 2,000 passes were scored on four photographs ({", ".join(scoring.EXPENSIVE)}). The
  metrics that run the method again were measured for the methods of up to 50 passes only.
- Most of these photographs have their object in the middle, so the Gaussian is hard to beat. A method that seldom beats
  it has shown little that the Gaussian does not show. Many metrics measure nearly the same thing: do not count them as
  votes.
- opticam maximises the score of the picture times the heatmap, and average-drop, increase and average-gain measure
  exactly that. polycam and refinecam multiply the maps of several layers. Their heatmaps leave so little of the picture
  that nothing of the score remains.
- Options other than the defaults: {options}.
"""


def _overview(tables: Tables, rows: Sequence[Mapping[str, Any]]) -> str:
    """How often each method is better than the baselines, the best methods first, and its cost."""
    seconds = _seconds(rows)
    found = []
    for method in scoring.ALL:
        judged = [name for name in _COMPARED if all(_judged(table.get((method, name))) for table in tables.values())]
        wins = {
            baseline: [sum(table[method, name].beats(baseline) for name in judged) for table in tables.values()]
            for baseline in ("centre", "random")
        }
        if judged:
            cells = [" / ".join(map(str, each)) for each in wins.values()]
            cost = f"{statistics.median(seconds[method]):.2f}" if method in seconds else "–"
            shares = [sum(each) / len(judged) for each in wins.values()]
            found.append((shares, [method, *cells, str(len(judged)), cost]))
    lines = [
        "## How often a method is better than the baselines\n",
        f"The number of metrics by which a method is better, with {' / '.join(tables)}.\n",
        "| method | better than the centred Gaussian | better than a random heatmap | number of metrics | seconds |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for _, cells in sorted(found, key=lambda each: each[0], reverse=True)),
    ]
    alike = "; ".join(", ".join(names) for names in _alike(tables))
    said = [f"\nWith the heads of these networks, no metric distinguishes these methods: {alike}."] if alike else []
    return "\n".join(lines + said) + "\n"


def _alike(tables: Tables) -> list[list[str]]:
    """Groups of methods that no metric distinguishes on any photograph."""
    groups: list[list[str]] = []

    def same(one: str, other: str) -> bool:
        pairs = [(table.get((one, name)), table.get((other, name))) for table in tables.values() for name in _COMPARED]
        both = [(a.values, b.values) for a, b in pairs if a is not None and b is not None]
        return bool(both) and all(a.shape == b.shape and torch.allclose(a, b, atol=1e-3) for a, b in both)

    for method in scoring.ALL:
        group = next((group for group in groups if same(group[0], method)), None)
        if group is None:
            groups.append([method])
        else:
            group.append(method)
    return [group for group in groups if len(group) > 1]


def _verdict(tables: Tables) -> str:
    """For each metric in words: the methods that beat both baselines with both networks, and those with neither."""
    lines, silent, best = [], [], []
    for metric in _COMPARED:
        methods = [name for name in scoring.ALL if all(_judged(table.get((name, metric))) for table in tables.values())]
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
        if not always:
            silent.append(metric)
        if all(_best_of_all(table, metric, "all-ones") for table in tables.values()):
            best.append(metric)
        said = f"{_named(always, methods)} better than both baselines with both networks"
        lines.append(f"- `{metric}`: {said}; {_named(never, methods)} with neither.")
    head = ["## What this says\n"]
    if silent:
        head.append(
            f"- No method is better than both baselines with both networks by {_listed(silent)}.\n"
            "  With so few photographs, these metrics decide nothing here."
        )
    if best:
        head.append(f"- An all-ones heatmap, which shows nothing, is the best of all by {_listed(best)}.")
    only_compare = [name for name in _WITHOUT_BASELINE if name in OPTIONS]
    lines.append(
        f"- {_listed(only_compare)} only compare methods with each other. A heatmap that never "
        "changes has the best\n"
        "  max-sensitivity and the worst randomisation; a random one has the opposite. A sparse heatmap may still be\n"
        "  wrong."
    )
    return "\n".join(head + lines) + "\n"


def _listed(metrics: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in metrics)


def _best_of_all(table: Mapping[tuple[str, str], Measurement], metric: str, heatmap: str) -> bool:
    """Whether no method has a better mean, to the three digits that the page shows."""
    means = {method: round(each.interval().mean, 3) for (method, name), each in table.items() if name == metric}
    best = (max if METRICS[metric].higher_is_better else min)(means[name] for name in scoring.ALL if name in means)
    mine = means.get(heatmap, math.nan)
    return mine >= best if METRICS[metric].higher_is_better else mine <= best


def _judged(each: Measurement | None) -> bool:
    """Whether it was scored on enough photographs for a verdict."""
    return each is not None and each.verdict("random") is not None


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
    lines = [
        "## The photographs\n",
        "Only those in examples/images are in the repository. The boxes were drawn for this evaluation.\n",
    ]
    lines += ["| photograph | class | source | licence |", "|---|---|---|---|"]
    lines += [f"| {each.name} | {each.label} | {each.source} | {each.licence} |" for each in photographs]
    return "\n".join(lines) + "\n"
