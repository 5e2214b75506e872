"""What every layer returns, by one dry pass, and which layer to look at."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import check_inputs, run
from torchpeek.engine.guard import as_found
from torchpeek.engine.layouts import has_grid, is_channels_last
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


# A model is surveyed once; forgotten with the model.
_STAGES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], list[str]]] = weakref.WeakKeyDictionary()
_SUGGESTED: weakref.WeakKeyDictionary[nn.Module, Suggestion] = weakref.WeakKeyDictionary()


def survey(model: nn.Module, inputs: Tensor | None) -> tuple[list[LayerCall], Suggestion | None]:
    """Every layer, in the order of `named_modules`, and the one to look at.

    With `inputs`, what a pass over the first sample returns; without, neither shapes nor a suggestion. No suggestion
    either where no layer has a grid.
    """
    seen = _dry_pass(model, inputs) if inputs is not None else _Seen(torch.empty(0))
    calls = [
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
    return calls, seen.suggestion()


def suggest_layer(model: nn.Module, inputs: Tensor, *, anew: bool = False) -> Suggestion:
    """The last layer with a spatial grid before the head; found by one dry pass, and remembered unless `anew`.

    Where several modules return that very tensor, as a block and its last part do, it is the outermost that is not the
    feature extractor as a whole (a module that takes the model's own input); of several outermost the last, so that it
    is the activation rather than the normalisation that it overwrites, but never one that only passes on. Raises
    NoSpatialLayer where no layer has a grid, or where the model goes on in another layout after the last one that has.
    """
    known = _SUGGESTED.get(model)
    if known is not None and not anew and known.layer in dict(model.named_modules()):
        return known
    seen = _dry_pass(model, inputs)
    found = seen.suggestion()
    if found is not None:
        _SUGGESTED[model] = found
        return found
    if seen.candidates and seen.layout_after:
        raise NoSpatialLayer(
            f"after {seen.candidates[-1][-1]!r} {type(model).__name__} goes on in another layout ({seen.layout_after}: "
            "tokens, or channels last), so no layer near the end has a grid (N, C, h, w). Name one that has with "
            "layer= (--layer); torchpeek layers shows what they return"
        )
    raise NoSpatialLayer(
        f"no layer of {type(model).__name__} returns a grid (N, C, *grid) for an input of {tuple(inputs.shape)}, so "
        "there is nothing to lay over the picture; torchpeek layers shows what they return"
    )


def suggest_stages(model: nn.Module, inputs: Tensor, most: int) -> Sequence[Suggestion]:
    """The layers to look at together: the last outermost one of each of the `most` coarsest sizes of grid.

    Found by a dry pass. Raises NoSpatialLayer where there is no layer to suggest at all.
    """
    suggest_layer(model, inputs)  # raises where there is nothing to suggest
    known = _STAGES.setdefault(model, {})
    shape = tuple(inputs.shape[1:])
    if shape not in known or any(name not in dict(model.named_modules()) for name in known[shape]):
        known[shape] = _dry_pass(model, inputs).last_of_each_grid()
    layers = known[shape][-most:]
    return [Suggestion(layer, f"the last layers of the {len(layers)} coarsest sizes of grid") for layer in layers]


class _Seen:
    """What the hooks of a dry pass note."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.calls: dict[str, int] = {}
        self.outputs: dict[str, str] = {}
        self.take_input: set[str] = set()
        self.candidates: list[list[str]] = []  # for each tensor with a grid those that returned it, innermost first
        self.positions: list[int] = []  # and how many its grid has
        self.layout_after = ""  # of what came after the last of them, if it had another layout
        self._last = inputs  # the last tensor with a grid, and how often it had been written into
        self._last_version = 0

    def returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        self.outputs[name] = described(output)
        if any(given is self.inputs for given in args):
            self.take_input.add(name)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if output is self._last:
            passes_on = any(given is output for given in args) and output._version == self._last_version
            if self.candidates and not passes_on:
                self.candidates[-1].append(name)
        elif isinstance(module, (nn.Softmax, nn.Dropout)):
            return  # of attention: rows and columns are no picture
        elif has_grid(module, output, self.inputs):
            self._last, self.layout_after = output, ""
            self.candidates.append([name])
            self.positions.append(output.shape[2:].numel())
        elif is_channels_last(module, output, self.inputs) or (
            output.ndim == 3 < self.inputs.ndim and output.shape[1] > 1
        ):
            self.layout_after = described(output)
        self._last_version = self._last._version

    def suggestion(self) -> Suggestion | None:
        if self.layout_after:
            return None
        for names in reversed(self.candidates):
            if layer := self._best(names):
                return Suggestion(layer, "the last layer with a grid before the head")
        return None

    def last_of_each_grid(self) -> list[str]:
        """For each size of grid, from the finest on, the last of the outermost layers that have it."""
        found: dict[int, str] = {}
        for names, positions in zip(self.candidates, self.positions, strict=True):
            layer = self._best(names)
            if layer and layer.count(".") <= found.get(positions, layer).count("."):
                found[positions] = layer
        return [found[positions] for positions in sorted(found, reverse=True)]

    def _best(self, names: list[str]) -> str | None:
        once = [name for name in names if self.calls[name] == 1]
        inner = [name for name in once if name not in self.take_input] or once
        return min(reversed(inner), key=lambda name: name.count(".")) if inner else None


def _dry_pass(model: nn.Module, inputs: Tensor) -> _Seen:
    check_inputs(inputs)
    first = inputs[:1].detach().clone()  # a copy, so that being given the model's input is told from being given a view
    seen = _Seen(first)
    hooks = ((module, partial(seen.returned, name)) for name, module in model.named_modules() if name)
    with as_found(model), attached(hooks):
        run(model, first)
    return seen


def described(output: Any) -> str:
    """The shape of what a layer returned, starting with N, or what else it is."""
    if isinstance(output, Tensor):
        return "(" + ", ".join(["N", *map(str, output.shape[1:])]) + ")" if output.ndim else "()"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of " + ", ".join(described(each) for each in output)
    if isinstance(output, dict):
        return "dict of " + ", ".join(f"{key} {described(each)}" for key, each in output.items())
    return type(output).__name__
