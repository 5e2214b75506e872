"""What the attempts interrupt: every public function, and every method and metric of the registries."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.cam import METHODS
from torchpeek.metrics import METRICS
from torture.networks import Networks

# Small values, so that an attempt takes milliseconds. They apply to every method and metric that has such an option.
_SMALL = {"samples": 2, "steps": 2, "stages": 2, "groups": 2, "cells": 2, "sizes": 2}


@dataclass(frozen=True)
class Subject:
    """One call of torchpeek.

    Args:
        name: Its name in reports.
        run: Makes the call, and returns tensors that are the same each time, or None.
        runs_model: Whether the call runs a model.
    """

    name: str
    run: Callable[[Networks], Any]
    runs_model: bool = True


def subjects() -> dict[str, Subject]:
    """All of them, by name; a new method or metric is there without a further line."""
    listed = [
        *(Subject(f"explain {name}", _explain(name)) for name in METHODS),
        *(Subject(f"evaluate {name}", _evaluate(name)) for name in METRICS),
        *(Subject(name, run) for name, run in _MODEL_CALLS.items()),
        *(Subject(name, run, runs_model=False) for name, run in _OTHERS.items()),
    ]
    return {each.name: each for each in listed}


def _explain(name: str) -> Callable[[Networks], Tensor]:
    options = _small(METHODS[name].options)
    return lambda networks: tp.explain(networks.messy, networks.x, method=name, target=1, **options).values


def _evaluate(name: str) -> Callable[[Networks], Tensor]:
    options = _small(METRICS[name].options)

    def run(networks: Networks) -> Tensor:
        model, x = networks.messy, networks.x
        heatmap = tp.explain(model, x, layer="act", target=1)
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[:, 2:5, 2:5] = True
        return tp.evaluate(model, x, heatmap, metrics={name: options}, masks=masks)[name].values

    return run


def _small(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _SMALL.items() if name in options}


def _compare(networks: Networks) -> list[Tensor]:
    heatmaps = tp.compare(networks.messy, networks.x, methods=["gradcam", "layercam", "scorecam", "rollout"], target=2)
    return [heatmap.values for heatmap in heatmaps.values()]


def _asked_again(networks: Networks) -> list[Tensor]:
    trace = tp.trace(networks.messy, networks.x, layer="act")
    return [tp.explain(trace, target=index, method=name).values for index in (0, 3) for name in ("gradcam", "scorecam")]


def _fused(networks: Networks) -> Tensor:
    return tp.explain(networks.messy, networks.x, layer=["conv", "act"], fuse="mean", target=1).values


def _smoothed(networks: Networks) -> Tensor:
    return tp.explain(networks.messy, networks.x, target=1, smooth=tp.Smoothing()).values


def _several(networks: Networks) -> list[Tensor]:
    return [each.values for each in tp.explain(networks.messy, [networks.x, networks.x[:1, :, :6]], target=1)]


def _recorded(networks: Networks) -> list[Tensor]:
    with tp.record(networks.clean, "*", inputs=True, gradients=True, parameters=True) as tape:
        networks.clean(networks.x)[:, 1].sum()
    return [tape["act"].output.detach()]


def _backward(networks: Networks) -> list[Tensor]:
    x = networks.x.clone().requires_grad_()
    with tp.record(networks.clean, ["act", "features.*"], gradients=True, passes="all") as tape:
        torch.autograd.grad(networks.clean(x)[:, 1].sum(), x)
    return [tape["act"].grad_output]


def _statistics_recorded(networks: Networks) -> None:
    with tp.record(networks.clean, "features.*", keep=tp.keep.Running()):
        networks.clean(networks.x)


def _edited(networks: Networks) -> list[Tensor]:
    with tp.edit(
        networks.clean,
        outputs={"act": lambda out: out * 2},
        inputs={"head": lambda value: value + 1},
        gradients={"features.2": lambda gradient: gradient / 2},
    ):
        x = networks.x.clone().requires_grad_()
        output = networks.clean(x)
        (gradient,) = torch.autograd.grad(output[:, 1].sum(), x)
    return [output.detach(), gradient]


def _gradients_recorded(networks: Networks) -> list[Tensor]:
    x = networks.x.clone().requires_grad_()
    hidden = x * 2
    with tp.record_gradients(x=x, hidden=hidden) as gradients:
        torch.autograd.grad((hidden * hidden).sum(), x)
    return [gradients["hidden"]]


def _gradient_edited(networks: Networks) -> list[Tensor]:
    x = networks.x.clone().requires_grad_()
    with tp.edit_gradient(x, lambda gradient: gradient * 2):
        (gradient,) = torch.autograd.grad((x * x).sum(), x)
    return [gradient]


def _finite(networks: Networks) -> list[Tensor]:
    with tp.check_finite(networks.clean):
        return [networks.clean(networks.x).detach()]


def _watched(networks: Networks) -> None:
    with tp.watch(networks.clean, every=1):
        networks.clean(networks.x)
        torch.optim.SGD(networks.clean.parameters(), lr=0.0).step()


def _nested(networks: Networks) -> list[Tensor]:
    clean = networks.clean
    with (
        tp.record(clean, "act") as outer,
        tp.edit(clean, outputs={"act": lambda out: out + 1}),
        tp.record(clean, "features.*") as inner,
        tp.check_finite(clean),
    ):
        clean(networks.x)
    return [outer["act"].output.detach(), inner["features.0"].output.detach()]


def _saved(networks: Networks) -> Tensor:
    heatmap = _heatmap()
    path = _new_path()
    tp.save(heatmap, path)
    return tp.load(path).values


def _streamed(networks: Networks) -> list[Tensor]:
    stream = tp.TensorStream(_new_path())
    with tp.record(networks.clean, "act", keep=tp.keep.Callback(stream)):
        networks.clean(networks.x)
    return list(stream.read("act"))


# Removed when the process ends, and not in an attempt: what arrives in shutil.rmtree may be lost for another error.
_FOLDER = tempfile.TemporaryDirectory()
_NUMBERS = itertools.count()


def _new_path() -> Path:
    return Path(_FOLDER.name) / str(next(_NUMBERS))


def _drawn(networks: Networks) -> None:
    heatmap = _heatmap()
    tp.render.overlay(torch.zeros(3, 8, 8), heatmap[0, 0])


def _heatmap() -> tp.Heatmap:
    if not _MADE:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        _MADE.append(tp.explain(model, torch.ones(1, 3, 8, 8), layer="1", target=1))
    return replace(_MADE[0])


_MADE: list[tp.Heatmap] = []

_MODEL_CALLS: dict[str, Callable[[Networks], Any]] = {
    "compare": _compare,
    "trace, asked again": _asked_again,
    "explain, fused": _fused,
    "explain, smoothed": _smoothed,
    "explain, several inputs": _several,
    "record": _recorded,
    "record with backward": _backward,
    "record statistics": _statistics_recorded,
    "edit": _edited,
    "check_finite": _finite,
    "watch": _watched,
    "nested blocks": _nested,
    "layers": lambda networks: repr(tp.layers(networks.messy, networks.x)) and None,
    "activations": lambda networks: list(tp.activations(networks.messy, networks.x, ["conv", "act"]).values()),
    "statistics": lambda networks: repr(tp.statistics(networks.messy, [networks.x, networks.x])) and None,
    "gradient_flow": lambda networks: repr(tp.gradient_flow(networks.messy, networks.x)) and None,
    "plan": lambda networks: repr(tp.plan(networks.messy, networks.x)) and None,
    "TensorStream": _streamed,
}

_OTHERS: dict[str, Callable[[Networks], Any]] = {
    "record_gradients": _gradients_recorded,
    "edit_gradient": _gradient_edited,
    "kernels": lambda networks: list(tp.kernels(networks.messy).values()),
    "save and load": _saved,
    "render.overlay": _drawn,
}
