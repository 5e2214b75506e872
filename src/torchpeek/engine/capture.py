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
from torchpeek.engine.layout import Layout, LayoutSpec
from torchpeek.engine.layout_inference.candidates import LayoutUndecided, resolve_layout, unambiguous_layout
from torchpeek.engine.layout_inference.dry_run import known_evidence
from torchpeek.engine.layout_inference.evidence import static_evidence
from torchpeek.engine.layout_text import described
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import all_finite
from torchpeek.errors import AmbiguousCall, InputError, NotFinite, NotFired, TorchpeekError
from torchpeek.hooks import ForwardHook, SelectedLayer, call_name, containers, several_calls, why_not_fired
from torchpeek.tensor_formats import why_without_values


@dataclass(frozen=True, eq=False)
class Capture:
    """What one layer returned in one pass.

    Args:
        layer: The layer's name.
        returned: (N, ...), samples first, as `Layout.samples_first` returns it: a copy, made before the next operation
            can write into the tensor. With `create_graph` it is connected to the graph.
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
        """(N, C, *grid), a view; (N, C, views, *grid) where the batch axis holds views and none of them is chosen."""
        return self.layout.to_grid(self.returned)

    def as_returned(self, values: Tensor) -> Tensor:
        """(N, C, *grid) -> in the axis order of the layer's tensor, with zeros at the tokens outside the grid."""
        others = torch.zeros_like(self.returned)
        return self.layout.in_layer_order(self.layout.from_grid(values, others))

    def to_grid(self, gradient: Tensor) -> Tensor:
        """(K, *shape of the layer's tensor) -> (N, K, C, *grid)."""
        return self.layout.to_grid(self.layout.samples_first(gradient, lead=1), lead=2)


@dataclass(frozen=True, eq=False)
class CaptureRequest:
    """What a pass keeps.

    Args:
        layers: Name -> each layer, or call of one, to capture.
        gradients: Whether the graph is kept from the first of the layers on.
        prefix: Whether the pass records what replays from the one layer need.
        attention: Whether the attention weights are kept.
        create_graph: Whether everything stays connected to the graph of the whole pass, for a training loss.
        layouts: Layer name -> its layout, or what the user said of it; None where nothing is known.
    """

    layers: Mapping[str, SelectedLayer]
    gradients: bool = True
    prefix: bool = False
    attention: bool = False
    create_graph: bool = False
    layouts: Mapping[str, Layout | LayoutSpec | None] = field(default_factory=lambda: MappingProxyType({}))


class CallsMiscounted(Exception):
    """A call was counted from the end, and the pass made another number of calls. Never seen by users.

    Args:
        totals: Name of each layer that is called -> how often the pass called it.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        super().__init__(f"calls in the pass: {dict(totals)}")
        self.totals = totals


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
        self._errors: list[TorchpeekError] = []  # about calls that may turn out not to be the selected ones

    def hooks(self) -> list[tuple[nn.Module, ForwardHook]]:
        """One forward hook for each layer."""
        return [(layer.module, partial(self._returned, layer)) for layer in self._request.layers.values()]

    def captures(self) -> dict[str, Capture]:
        """The captures, in the order of the request.

        Raises:
            NotFired: When a layer, or the selected call, was not called.
            AmbiguousCall: When a layer was called more than once, and no call is selected.
            CallsMiscounted: When a call is counted from the end, and the pass made more or fewer calls than expected.
        """
        layers = self._request.layers
        if any(layer.total not in (None, self._calls[name]) for name, layer in layers.items()):
            raise CallsMiscounted({layer.path: self._calls[name] for name, layer in layers.items()})
        if self._errors:
            raise self._errors.pop(0)  # an error that stays in reach of its own traceback keeps the model alive
        for name, layer in layers.items():
            if layer.call is None and self._calls[name] > 1:
                raise AmbiguousCall(several_calls(name, self._calls[name]))
            if name not in self._captures:
                raise NotFired(why_not_fired(self._model, layer, self._calls[name]))
        return {name: self._captures[name] for name in layers}

    def layers(self) -> dict[str, SelectedLayer]:
        """The requested layers, with the number of calls that the pass made of each."""
        return {
            name: SelectedLayer(layer.path, layer.module, layer.call, self._calls[name])
            for name, layer in self._request.layers.items()
        }

    def _returned(self, layer: SelectedLayer, module: nn.Module, args: Any, output: Any) -> Any:
        number = self._calls[layer.name]
        self._calls[layer.name] += 1
        if number != (layer.index or 0):
            return None
        try:
            return self._keep(layer, module, output)
        except TorchpeekError as error:
            if not layer.counts_from_end:
                raise
            self._errors.append(error)
            return None

    def _keep(self, layer: SelectedLayer, module: nn.Module, output: Any) -> Any:
        name = layer.name
        layout = self._layout(layer, module, output)
        tensor = containers.at(output, layout.part)
        if problem := why_without_values(tensor):
            raise InputError(f"layer {name!r} returned {problem}")
        with torch.inference_mode(False):  # a tensor of inference mode takes no part in autograd
            copy = tensor.clone() if self._request.create_graph else tensor.detach().clone()
        # The copy is made now, because the next operation may write into the tensor.
        returned = layout.samples_first(copy)
        if not all_finite(returned):
            raise NotFinite(f"layer {name!r} returned NaN or infinity{why_not_finite(self._call.picture, returned)}")
        handle, continued = start_graph(tensor, copy) if self._request.gradients else (None, tensor)
        self._captures[name] = Capture(name, returned, handle, layout)
        return None if continued is tensor else containers.with_part(output, layout.part, continued)

    def _layout(self, layer: SelectedLayer, module: nn.Module, output: Any) -> Layout:
        known = self._request.layouts.get(layer.name)
        name = call_name(layer.path, layer.index)
        if isinstance(known, Layout) and known.fits(output, len(self._call)):
            return known
        if known is None and (layout := unambiguous_layout(module, output, self._static_evidence)) is not None:
            return layout
        if self._evidence is None and isinstance(known, LayoutSpec) and (known.grid or known.axes):
            return resolve_layout(name, module, output, self._static_evidence, known)  # nothing is left to infer
        if self._evidence is None:
            raise LayoutUndecided(
                f"layer {name!r} returned {described(output, len(self._call))}; a dry run has to show its layout"
            )
        return resolve_layout(name, module, output, self._evidence, known if isinstance(known, LayoutSpec) else None)
