"""What one layer returned in one pass, and the hook that keeps it and starts the graph there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import why_not_finite
from torchpeek.engine.gradients import Handle, start_graph
from torchpeek.engine.layout import Layout, LayoutSpec, described
from torchpeek.engine.layout_inference.candidates import (
    LayoutUndecided,
    resolve_layout,
    static_evidence,
    unambiguous_layout,
)
from torchpeek.engine.layout_inference.dry_run import known_evidence
from torchpeek.engine.model_call import ModelCall
from torchpeek.errors import AmbiguousCall, NotFinite, NotFired
from torchpeek.hooks import ForwardHook, containers, why_not_fired


@dataclass(frozen=True, eq=False)
class Capture:
    """What one layer returned in one pass.

    Args:
        layer: The layer's name.
        returned: (N, ...), samples first: a copy, made before the next operation can write into the tensor.
        handle: Where the gradient of the tensor is read, in the layer's own axis order: the leaf that the graph starts
            at, or the edge of a graph that began earlier. None where the pass kept no graph.
        layout: The layout of the tensor.
    """

    layer: str
    returned: Tensor
    handle: Handle | None
    layout: Layout

    @property
    def activation(self) -> Tensor:
        """(N, C, *grid), a view."""
        return self.layout.to_grid(self.returned)

    def as_returned(self, values: Tensor) -> Tensor:
        """(N, C, *grid) -> in the axis order of the layer's tensor, with zeros at the tokens outside the grid."""
        others = torch.zeros_like(self.returned)
        return self.layout.from_grid(values, others).movedim(0, self.layout.batch_axis)

    def to_grid(self, gradient: Tensor) -> Tensor:
        """(K, *shape of the layer's tensor) -> (N, K, C, *grid)."""
        return self.layout.to_grid(gradient.movedim(1 + self.layout.batch_axis, 0), lead=2)


@dataclass(frozen=True, eq=False)
class CaptureRequest:
    """What a pass keeps.

    Args:
        layers: Name -> module of each layer to capture.
        gradients: Whether the graph is kept from the first of the layers on.
        prefix: Whether the pass records what replays from the one layer need.
        attention: Whether the attention weights are kept.
        layouts: Layer name -> its layout, or what the user said of it; None where nothing is known.
    """

    layers: Mapping[str, nn.Module]
    gradients: bool = True
    prefix: bool = False
    attention: bool = False
    layouts: Mapping[str, Layout | LayoutSpec | None] = field(default_factory=lambda: MappingProxyType({}))


class CaptureRecorder:
    """Keeps what the requested layers return in one pass, and starts the graph at the first of them."""

    def __init__(self, model: nn.Module, call: ModelCall, request: CaptureRequest) -> None:
        self._model = model
        self._call = call
        self._request = request
        # Most layouts follow from what needs no dry run.
        self._static_evidence = static_evidence(model, call)
        self._evidence = known_evidence(model, call)
        self._captures: dict[str, Capture] = {}
        self._calls = dict.fromkeys(request.layers, 0)

    def hooks(self) -> list[tuple[nn.Module, ForwardHook]]:
        """One forward hook for each layer."""
        return [(module, partial(self._keep, name)) for name, module in self._request.layers.items()]

    def captures(self) -> dict[str, Capture]:
        """The captures, in the order of the request.

        Raises:
            NotFired: When a layer was not called.
            AmbiguousCall: When a layer was called more than once.
        """
        for name, calls in self._calls.items():
            if calls == 0:
                raise NotFired(why_not_fired(self._model, name, self._request.layers[name]))
            if calls > 1:
                raise AmbiguousCall(
                    f"layer {name!r} was called {calls} times in one pass, so it has no one output. Choose the layer "
                    "around it, or one that is called once (torchpeek layers shows the calls)"
                )
        return {name: self._captures[name] for name in self._request.layers}

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        self._calls[name] += 1
        if self._calls[name] > 1:
            return None
        layout = self._layout(name, module, output)
        tensor = containers.at(output, layout.part)
        with torch.inference_mode(False):  # a tensor of inference mode takes no part in autograd
            copy = tensor.detach().clone()  # the next operation may write into the tensor
        returned = copy.movedim(layout.batch_axis, 0)
        if not torch.isfinite(returned).all():
            raise NotFinite(f"layer {name!r} returned NaN or infinity{why_not_finite(self._call.picture, returned)}")
        handle, continued = start_graph(tensor, copy) if self._request.gradients else (None, tensor)
        self._captures[name] = Capture(name, returned, handle, layout)
        return None if continued is tensor else containers.with_part(output, layout.part, continued)

    def _layout(self, name: str, module: nn.Module, output: Any) -> Layout:
        known = self._request.layouts.get(name)
        if isinstance(known, Layout) and known.fits(output, len(self._call)):
            return known
        if known is None and (layout := unambiguous_layout(module, output, self._static_evidence)) is not None:
            return layout
        if self._evidence is None:
            raise LayoutUndecided(f"layer {name!r} returned {described(output)}; a dry run has to show its layout")
        return resolve_layout(name, module, output, self._evidence, known if isinstance(known, LayoutSpec) else None)
