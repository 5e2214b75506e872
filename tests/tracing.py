"""Traces of a model by the names of its layers, as tests of the engine need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from torchpeek.engine import (
    CaptureRequest,
    Suggestion,
    Target,
    Trace,
    as_model_call,
    inspectable_module,
    suggest_layer,
    trace_model,
    with_observed_layers,
)
from torchpeek.hooks import layer_at


def traced(
    model: nn.Module,
    inputs: object,
    layers: Sequence[str],
    target: Target,
    *,
    layouts: Mapping[str, Any] | None = None,
    **kept: bool,
) -> Trace:
    """One clean pass over `inputs`, kept at `layers`; `kept` are fields of CaptureRequest."""
    module = inspectable_module(model)
    call = with_observed_layers(module, as_model_call(module, inputs).copied(), target)
    selected = {name: layer_at(module, name) for name in layers}
    return trace_model(module, call, CaptureRequest(selected, layouts=layouts or {}, **kept), target)


def suggested_layer(model: nn.Module, inputs: object, **options: bool) -> Suggestion:
    """The default layer for these inputs."""
    return suggest_layer(model, as_model_call(model, inputs), **options)
