"""What one layer returned in one pass, and the hook that keeps it and starts the graph there."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.forward import why_not_finite
from torchpeek.engine.layout import Layout, LayoutSpec, described
from torchpeek.engine.layout_inference.candidates import (
    LayoutEvidence,
    linear_widths,
    may_have_channels_last,
    resolved,
    unambiguous_layout,
)
from torchpeek.engine.layout_inference.dry_run import known_evidence
from torchpeek.engine.model_call import ModelCall
from torchpeek.errors import AmbiguousCall, NoSpatialLayer, NotFinite, NotFired
from torchpeek.hooks import containers
from torchpeek.hooks.select import why_not_fired
from torchpeek.hooks.temporary_hooks import ForwardHook


@dataclass(frozen=True, eq=False)
class Capture:
    """What one layer returned in one pass.

    `returned` (N, ...), samples first, is a copy of the tensor in it, taken before anything could write into that, and
    `layout` says how it is to be read. `handle` is where the gradient of the tensor is asked for, as the layer returned
    it: the leaf that the graph starts at, or the edge of a graph that began earlier; None where the pass kept no graph.
    """

    layer: str
    returned: Tensor
    handle: Tensor | GradientEdge | None
    layout: Layout

    @property
    def activation(self) -> Tensor:
        """(N, C, *grid), a view."""
        return self.layout.to_grid(self.returned)

    def as_returned(self, values: Tensor) -> Tensor:
        """(N, C, *grid) -> as the layer returned its tensor, zero at the tokens that are not of the grid."""
        others = torch.zeros_like(self.returned)
        return self.layout.from_grid(values, others).movedim(0, self.layout.batch_axis)

    def to_grid(self, gradient: Tensor) -> Tensor:
        """(K, ...) with respect to what the layer returned -> (N, K, C, *grid)."""
        return self.layout.to_grid(gradient.movedim(1 + self.layout.batch_axis, 0), lead=2)


@dataclass(frozen=True)
class Looks:
    """What is kept of a pass."""

    layers: Mapping[str, nn.Module]
    gradients: bool
    noting: bool
    attention: bool
    layouts: Mapping[str, Layout | LayoutSpec | None]


class Recorder:
    """Keeps what the layers return, and starts the graph at the first of them."""

    def __init__(self, model: nn.Module, given: ModelCall, looks: Looks) -> None:
        self._given = given
        self._layers, self._gradients, self._layouts = looks.layers, looks.gradients, looks.layouts
        self._plain = LayoutEvidence(
            tuple(given.size),
            len(given),
            mixed=may_have_channels_last(model),
            widths=linear_widths(model),
            scales=given.listed,
        )
        self._seen = known_evidence(model, given)
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
        tensor = containers.at(output, layout.part)
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
        return containers.with_part(output, layout.part, leaf.clone())

    def _layout(self, name: str, module: nn.Module, output: Any) -> Layout:
        known = self._layouts.get(name)
        if isinstance(known, Layout) and known.fits(output, len(self._given)):
            return known
        if known is None and (found := unambiguous_layout(module, output, self._plain)) is not None:
            return found
        if self._seen is None:
            raise NoSpatialLayer(f"layer {name!r} returned {described(output)}; what its axes are is not known yet")
        return resolved(name, module, output, self._seen, known if isinstance(known, LayoutSpec) else None)
