"""Keeps what the layers asked for return in one pass, and starts the graph at the first of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.engine.capture import Capture
from torchpeek.engine.forward import why_not_finite
from torchpeek.engine.given import Given
from torchpeek.engine.layouts import Layout, Reading, described
from torchpeek.engine.readings import Seen, certain, is_mixed, linear_widths, resolved
from torchpeek.engine.survey import seen_before
from torchpeek.errors import AmbiguousCall, NoSpatialLayer, NotFinite, NotFired
from torchpeek.hooks import nested
from torchpeek.hooks.attach import ForwardHook
from torchpeek.hooks.select import why_not_fired


@dataclass(frozen=True)
class Looks:
    """What is kept of a pass."""

    layers: Mapping[str, nn.Module]
    gradients: bool
    noting: bool
    attention: bool
    layouts: Mapping[str, Layout | Reading | None]


class Recorder:
    """Keeps what the layers return, and starts the graph at the first of them."""

    def __init__(self, model: nn.Module, given: Given, looks: Looks) -> None:
        self._given = given
        self._layers, self._gradients, self._layouts = looks.layers, looks.gradients, looks.layouts
        self._plain = Seen(
            tuple(given.size), len(given), mixed=is_mixed(model), widths=linear_widths(model), scales=given.listed
        )
        self._seen = seen_before(model, given)
        self._kept: dict[str, Capture] = {}
        self._calls = dict.fromkeys(looks.layers, 0)
        self._thread = threading.get_ident()

    def hooks(self) -> list[tuple[nn.Module, ForwardHook]]:
        return [(module, partial(self._returned, name)) for name, module in self._layers.items()]

    def captures(self, model: nn.Module) -> dict[str, Capture]:
        """The layers in the order they were asked for. Raises for those that did not fire just once."""
        for name, calls in self._calls.items():
            if calls == 0:
                raise NotFired(why_not_fired(model, name, self._layers[name]))
            if calls > 1:
                raise AmbiguousCall(
                    f"layer {name!r} was called {calls} times in one pass, so it has no one output. Choose the layer "
                    "around it, or one that is called once (torchpeek layers shows the calls)"
                )
        return {name: self._kept[name] for name in self._layers}

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None  # somebody else is running the model
        self._calls[name] += 1
        if self._calls[name] > 1:
            return None
        layout = self._layout(name, module, output)
        tensor = nested.at(output, layout.part)
        leaf = tensor.detach().clone()  # what runs next may write in place
        returned = leaf.movedim(layout.batch_axis, 0)
        if not torch.isfinite(returned).all():
            raise NotFinite(f"layer {name!r} returned NaN or infinity{why_not_finite(self._given.picture, returned)}")
        if not self._gradients:
            self._kept[name] = Capture(name, returned, None, layout)
            return None
        if tensor.requires_grad:
            self._kept[name] = Capture(name, returned, get_gradient_edge(tensor), layout)
            return None
        torch.set_grad_enabled(True)  # for what comes after; as_found ends it
        self._kept[name] = Capture(name, returned, leaf.requires_grad_(), layout)
        # Not the leaf is passed on, nor a view of it: neither may be written into.
        return nested.with_part(output, layout.part, leaf.clone())

    def _layout(self, name: str, module: nn.Module, output: Any) -> Layout:
        known = self._layouts.get(name)
        if isinstance(known, Layout) and known.fits(output, len(self._given)):
            return known
        if known is None and (found := certain(module, output, self._plain)) is not None:
            return found
        if self._seen is None:
            raise NoSpatialLayer(f"layer {name!r} returned {described(output)}; what its axes are is not known yet")
        return resolved(name, module, output, self._seen, known if isinstance(known, Reading) else None)
