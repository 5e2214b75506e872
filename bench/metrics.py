"""The cost of metrics beyond the forward passes that they need, and ROAD's imputation beside grad-cam's."""

from __future__ import annotations

import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.models import resnet18

import torchpeek as tp
from timing import interleaved, ratios
from torchpeek.metrics.imputation import imputed

_CHUNK = 16  # the size of a chunk of passes, as torchpeek chooses it on a CPU
_STEPS = 50
_MAPS = 1 + 10 + 1  # the heatmap, and the baselines that are always scored with it
PERCENT = range(10, 100, 10)


def measure_all(rounds: int) -> dict[str, Any]:
    """Both tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("measuring: deletion and insertion", file=sys.stderr)
    curves = curves_and_passes()
    seconds = interleaved(curves, rounds=max(2, rounds // 5))
    print("measuring: ROAD's imputation", file=sys.stderr)
    imputation = interleaved(imputations(), rounds=max(2, rounds // 5))
    return {
        "curves": {
            "passes": _passes(),
            "bare_seconds": statistics.median(seconds["bare passes"]),
            "multiple": round(ratios(seconds, "bare passes")["deletion and insertion"], 3),
        },
        "imputation": {
            name: {"seconds": statistics.median(each), "multiple": round(ratios(imputation, "grad-cam")[name], 3)}
            for name, each in imputation.items()
        },
    }


def _passes() -> int:
    """The clean pass, and for each curve the inner steps of every map and one end point."""
    return 1 + 2 * ((_STEPS - 1) * _MAPS + 1)


def curves_and_passes() -> dict[str, Callable[[], object]]:
    """Deletion and insertion of one picture with 50 steps each, and as many bare passes in the same chunks."""
    model, x = resnet18().eval(), torch.randn(1, 3, 224, 224)
    heatmap = tp.explain(model, x, layer="layer4")
    several = torch.randn(_CHUNK, 3, 224, 224).to(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, _passes(), _CHUNK):
                model(several[: min(_CHUNK, _passes() - start)])

    def both() -> None:
        tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": _STEPS}, "insertion": {"steps": _STEPS}})

    return {"bare passes": bare, "deletion and insertion": both}


def imputations() -> dict[str, Callable[[], object]]:
    """The 18 linear systems of one 7 x 7 heatmap on a 224 x 224 picture: three channels each, without noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    picture = torch.rand(3, 224, 224)
    heat = torch.nn.functional.interpolate(torch.rand(1, 1, 7, 7), size=(224, 224), mode="bilinear").flatten()
    order = heat.argsort(descending=True)
    holes = torch.stack([hole for percent in PERCENT for hole in _holes(order, percent)])
    theirs = NoisyLinearImputer(noise=0)

    def grad_cam() -> None:
        for hole in holes:
            theirs(picture, (~hole).float())

    def ours() -> None:
        imputed(picture.expand(len(holes), -1, -1, -1), holes)

    return {"grad-cam": grad_cam, "torchpeek": ours}


def _holes(order: Tensor, percent: int) -> tuple[Tensor, Tensor]:
    """Two masks (224, 224), bool: the highest positions, and the lowest."""
    count, holes = round(percent * len(order) / 100), []
    for positions in (order[:count], order[-count:]):
        hole = torch.zeros(len(order), dtype=torch.bool)
        hole[positions] = True
        holes.append(hole.view(224, 224))
    return holes[0], holes[1]


def markdown(results: dict[str, Any]) -> str:
    """The section of the page."""
    curves, imputation = results["curves"], results["imputation"]
    return f"""## Metrics

ResNet-18, one picture, one thread. Deletion and insertion with {_STEPS} steps each, for a heatmap and its baselines,
take {curves["passes"]} forward passes. Run bare in chunks of {_CHUNK}, these took {curves["bare_seconds"]:.1f} s.
ROAD's imputation solves the 18 linear systems of one heatmap, three channels each.

| | multiple of | | goal |
|---|---|---|---|
| deletion and insertion | the bare passes | {curves["multiple"]:.2f} | 1.1 |
| ROAD's imputation | grad-cam's | {imputation["torchpeek"]["multiple"]:.2f} | 0.5 |
"""
