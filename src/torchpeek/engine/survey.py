"""What every layer returns, by one dry pass, and which layer to look at."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.guard import as_found
from torchpeek.engine.runner import check_inputs, has_grid, run
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import attached


@dataclass(frozen=True)
class LayerCall:
    """One layer in a dry pass: what it is, and what it returned in its last call."""

    name: str
    type: str
    parameters: int  # with those of the layers in it
    calls: int = 0
    output: str | None = None  # shape, or what else it was; None where it was not called


@dataclass(frozen=True)
class Suggestion:
    """The layer to look at when none is asked for, and why."""

    layer: str
    reason: str


# A model is surveyed once for each input shape; forgotten with the model.
_SUGGESTED: weakref.WeakKeyDictionary[nn.Module, dict[torch.Size, Suggestion]] = weakref.WeakKeyDictionary()


def survey(model: nn.Module, inputs: Tensor | None) -> list[LayerCall]:
    """Every layer, in the order of `named_modules`; with `inputs`, what a pass over the first sample returns."""
    seen = _dry_pass(model, inputs) if inputs is not None else _Seen(torch.empty(0))
    return [
        LayerCall(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters()),
            seen.calls.get(name, 0),
            seen.outputs.get(name),
        )
        for name, module in model.named_modules()
        if name
    ]


def suggest_layer(model: nn.Module, inputs: Tensor) -> Suggestion:
    """The last layer with a spatial grid before the head.

    Where several modules return that very tensor, as a block and its last part do, it is the outermost that is not the
    feature extractor as a whole (a module that takes the model's own input); of several outermost the last, so that it
    is the activation rather than the normalisation that it overwrites, but never one that only passes on. Raises
    NoSpatialLayer where no layer has a grid, or where the model goes on in tokens after the last one that has.
    """
    known = _SUGGESTED.setdefault(model, {})
    key = inputs.shape[1:]
    if key not in known or known[key].layer not in dict(model.named_modules()):
        known[key] = _suggest(model, inputs)
    return known[key]


def _suggest(model: nn.Module, inputs: Tensor) -> Suggestion:
    seen = _dry_pass(model, inputs)
    if not seen.last_names:
        raise NoSpatialLayer(
            f"no layer of {type(model).__name__} returns a grid (N, C, *grid) for an input of "
            f"{tuple(inputs.shape)}, so "
            f"there is nothing to lay over the picture. torchpeek layers shows what they return; name one with layer="
        )
    if seen.tokens_after:
        raise NoSpatialLayer(
            f"after {seen.last_names[-1]!r} {type(model).__name__} goes on in tokens ({seen.tokens_after}), so no "
            "layer near "
            f"the end has a grid (N, C, h, w). Name a layer with a grid, as torchpeek layers shows them, with layer="
        )
    inner = [name for name in seen.last_names if name not in seen.take_input] or seen.last_names
    layer = min(reversed(inner), key=lambda name: name.count("."))
    grid = " x ".join(str(size) for size in seen.last.shape[2:])
    return Suggestion(layer, f"the last layer with a grid ({grid}) before the head")


class _Seen:
    """What the hooks of a dry pass note."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.calls: dict[str, int] = {}
        self.outputs: dict[str, str] = {}
        self.take_input: set[str] = set()
        self.last = inputs  # the last tensor with a grid ...
        self.last_version = 0  # ... how often it had been written into ...
        self.last_names: list[str] = []  # ... and the modules that returned it, innermost first
        self.tokens_after = ""

    def returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        self.outputs[name] = _described(output)
        if any(given is self.inputs for given in (*args, *kwargs.values())):
            self.take_input.add(name)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if output is self.last:
            passes_on = any(given is output for given in args) and output._version == self.last_version
            if not passes_on:
                self.last_names.append(name)
                self.last_version = output._version
        elif has_grid(output, self.inputs) and self.calls[name] == 1:
            self.last, self.last_version, self.last_names, self.tokens_after = output, output._version, [name], ""
        elif output.ndim == 3 < self.inputs.ndim and output.shape[1] > 1:
            self.tokens_after = _described(output)


def _dry_pass(model: nn.Module, inputs: Tensor) -> _Seen:
    check_inputs(inputs)
    first = inputs[:1].detach().clone()  # a copy, so that being given the model's input is told from being given a view
    seen = _Seen(first)
    hooks = ((module, partial(seen.returned, name)) for name, module in model.named_modules() if name)
    with as_found(model), attached(hooks):
        run(model, first)
    return seen


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return "(" + ", ".join(["N", *map(str, output.shape[1:])]) + ")" if output.ndim else "()"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of " + ", ".join(_described(each) for each in output)
    if isinstance(output, dict):
        return "dict of " + ", ".join(f"{key} {_described(each)}" for key, each in output.items())
    return type(output).__name__
