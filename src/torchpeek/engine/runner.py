"""Asks a model questions: one clean pass, or many changed ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.engine.guard import as_found
from torchpeek.engine.targets import Target
from torchpeek.engine.trace import Capture, Change, Origin, Trace
from torchpeek.errors import AmbiguousCall, InputError, NoSpatialLayer, NotFinite, NotFired, notify
from torchpeek.hooks import attached, interruptible, select
from torchpeek.hooks.attach import ForwardHook
from torchpeek.hooks.select import why_not_fired


class ModelRunner:
    """Runs one model, in eval mode, and leaves it as found."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model is a {type(model).__name__}; allowed: an nn.Module or a LoadedModel (tp.load_model)"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError("a scripted or traced model takes no hooks; give the nn.Module that it was made from")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError("the model is on the meta device, which has no numbers; load its weights on a real one")
        # torch.compile(model) wraps the model and changes the layers' names; the model inside is run eagerly.
        wrapped = type(model).__name__ == "OptimizedModule"
        self.model: nn.Module = model.get_submodule("_orig_mod") if wrapped else model

    def trace(
        self,
        inputs: Tensor,
        layers: Sequence[str],
        target: Target,
        *,
        gradients: bool = True,
        origin: Origin | None = None,
    ) -> Trace:
        """One pass over `inputs` (N, ...), kept at `layers`, with `target` bound to its output.

        With `gradients` the graph starts at the first of the layers: nothing before it is recorded, and no parameter's
        `.grad` is touched. Raises NotFired, AmbiguousCall, NoSpatialLayer, NotFinite and NotConnected.
        """
        check_inputs(inputs)
        # A copy, without a graph before it: neither the caller nor the model writes into what the trace keeps.
        inputs = inputs.detach().clone()
        if len(inputs) > 1 and (name := _mixes_samples(self.model)):
            notify(
                f"{name!r} normalises with the statistics of the batch at hand, also in eval mode: the samples of a "
                "batch change each other's scores and heatmaps. Give them one by one for results of their own"
            )
        origin = origin or Origin(type(self.model).__name__)
        chosen = {name: select(self.model, name)[name] for name in layers}
        with as_found(self.model):
            captures, output = self._clean_pass(inputs, chosen, gradients)
            trace = Trace(self, inputs, captures, output, target.bind(output), origin)
            if gradients and not trace._scores_with_graph().requires_grad:
                # A part of the model ends a no_grad block of its own, and with it what the hook turned on.
                notify(
                    "the model turns gradients off in a part of itself; one more pass keeps the graph from the start"
                )
                with torch.enable_grad():
                    captures, output = self._clean_pass(inputs, chosen, gradients)
                trace = Trace(self, inputs, captures, output, target.bind(output), origin)
            if not torch.isfinite(trace.scores).all():
                raise NotFinite(f"the model's scores have NaN or infinity{_why_not_finite(inputs, trace.scores)}")
            if gradients:
                _ = trace.gradients_at  # now, while the model is in hand
        return trace

    def score_trials(
        self, trace: Trace, trials: int, batch: int, *, inputs: Change | None = None, output: Change | None = None
    ) -> Tensor:
        """(N, trials, K): scores with the inputs, or the traced layer's output, changed; in whole passes of `batch`."""
        if trials < 1 or batch < 1:
            raise InputError(f"trials is {trials} and batch {batch}; both are at least 1")
        count = len(trace.inputs)
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(trials)).view(-1, 2)
        parts = []
        with as_found(self.model):
            for rows, trial in (chunk.unbind(1) for chunk in torch.split(pairs, batch)):
                given = trace.inputs[rows]
                if inputs is not None:
                    given = inputs(given, rows, trial)
                hooks: list[tuple[nn.Module, ForwardHook]] = []
                if output is not None:
                    changed = output(trace.at[trace.layer].activation.detach()[rows], rows, trial)
                    hooks = [(select(self.model, trace.layer)[trace.layer], _returning(changed))]
                with attached(hooks):
                    answer = run(self.model, given)
                parts.append(trace.question(answer, rows))
        return torch.cat(parts).view(count, trials, -1)

    def _clean_pass(
        self, inputs: Tensor, layers: Mapping[str, nn.Module], gradients: bool
    ) -> tuple[dict[str, Capture], Any]:
        recorder = _Recorder(inputs, layers, gradients)
        with attached(recorder.hooks()):
            output = run(self.model, inputs.clone())
        return recorder.captures(self.model), output


class _Recorder:
    """Keeps what the layers return, and starts the graph at the first of them."""

    def __init__(self, inputs: Tensor, layers: Mapping[str, nn.Module], gradients: bool) -> None:
        self._inputs = inputs
        self._layers = layers
        self._gradients = gradients
        self._kept: dict[str, Capture] = {}
        self._calls = dict.fromkeys(layers, 0)
        self._thread = threading.get_ident()

    def hooks(self) -> Iterable[tuple[nn.Module, ForwardHook]]:
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

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if threading.get_ident() != self._thread:
            return None  # somebody else is running the model
        self._calls[name] += 1
        if self._calls[name] > 1:
            return None
        _check_spatial(name, module, output, self._inputs)
        if not self._gradients:
            self._kept[name] = Capture(name, output.detach().clone(), None)  # what runs next may write in place
            return None
        if output.requires_grad:
            self._kept[name] = Capture(name, output.detach().clone(), get_gradient_edge(output))
            return None
        torch.set_grad_enabled(True)  # for what comes after; as_found ends it
        leaf = output.detach().clone().requires_grad_()
        self._kept[name] = Capture(name, leaf, leaf)
        passed_on: Tensor = leaf.clone()  # not the leaf, nor a view of it: neither may be written into
        return passed_on


def run(model: nn.Module, inputs: Tensor) -> Any:
    """Call the model; where it fails, its own exception says what it was given. The only call of a model."""
    try:
        with interruptible():
            return model(inputs)
    except Exception as error:
        first = next(model.parameters(), None)
        own = "" if first is None else f"; its parameters are {first.dtype} on {first.device}"
        shape = tuple(inputs.shape)
        error.add_note(f"{type(model).__name__} was given {inputs.dtype} of shape {shape} on {inputs.device}{own}")
        raise


def check_inputs(inputs: object) -> None:
    """Raise InputError unless `inputs` is a batch of at least one sample."""
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs is a {type(inputs).__name__}; a model is given a tensor (N, C, *grid). With a LoadedModel, a "
            "Picture, a path or a PIL image works, too"
        )
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}; allowed: (N, C, *grid) with at least one sample")


def _returning(value: Tensor) -> ForwardHook:
    def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
        return value

    return hook


def _check_spatial(name: str, module: nn.Module, output: Any, inputs: Tensor) -> None:
    if not isinstance(output, Tensor):
        raise NoSpatialLayer(
            f"layer {name!r} returned a {type(output).__name__}; a heatmap is read from one tensor (N, C, *grid). "
            "Choose a layer inside or after it (torchpeek layers shows the shapes)"
        )
    if not output.is_floating_point():
        raise NoSpatialLayer(
            f"layer {name!r} returned {output.dtype}; a heatmap is read from floating-point activations"
        )
    if is_channels_last(module, output, inputs):
        raise NoSpatialLayer(
            f"layer {name!r} returned shape {tuple(output.shape)}, which is channels last, (N, *grid, C); a heatmap "
            "is read from (N, C, *grid). Choose a layer that returns that, as torchpeek layers shows them"
        )
    if not has_grid(module, output, inputs):
        raise NoSpatialLayer(
            f"layer {name!r} returned shape {tuple(output.shape)} for an input of {tuple(inputs.shape)}; allowed: (N, "
            "C, *grid) with as many grid axes as the input, more than one position, and no more than the input has. "
            "torchpeek layers shows the shapes; layer=None takes a suggested layer"
        )
    if not torch.isfinite(output).all():
        raise NotFinite(f"layer {name!r} returned NaN or infinity{_why_not_finite(inputs, output)}")


def has_grid(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether `output` is (N, C, *grid) with a grid of more than one position that fits the input's axes."""
    return (
        output.ndim == inputs.ndim >= 3
        and output.shape[0] == inputs.shape[0]
        and math.prod(output.shape[2:]) > 1
        and all(size <= given for size, given in zip(output.shape[2:], inputs.shape[2:], strict=True))
        and not is_channels_last(module, output, inputs)
    )


def is_channels_last(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether only (N, *grid, C) makes sense: read so all axes shrank alike, and read as (N, C, *grid) they did not.

    Not where the last part of the module is one that works on (N, C, *grid), such as a convolution: a stride may differ
    from axis to axis.
    """
    return (
        output.ndim == inputs.ndim >= 4
        and _shrank_alike(output.shape[1:-1], inputs.shape[2:])
        and not _shrank_alike(output.shape[2:], inputs.shape[2:])
        and not _ends_channels_first(module)
    )


def _ends_channels_first(module: nn.Module) -> bool:
    for part in reversed(list(module.modules())):
        if isinstance(part, (nn.LayerNorm, nn.Linear)):
            return False
        if isinstance(part, _CHANNELS_FIRST):
            return True
    return False


_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def _shrank_alike(grid: Sequence[int], given: Sequence[int]) -> bool:
    """Whether one stride gives all sizes of the grid, each up to one position, as padding and rounding may add."""
    least = max(have / (size + 1) for size, have in zip(grid, given, strict=True))
    most = min(have / (size - 1) if size > 1 else math.inf for size, have in zip(grid, given, strict=True))
    return least <= most


def _mixes_samples(model: nn.Module) -> str:
    """The name of a layer that lets the samples of a batch see each other in eval mode, or nothing."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return ""


def _why_not_finite(inputs: Tensor, found: Tensor) -> str:
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        return "; the input has them already"
    samples = (~torch.isfinite(found)).flatten(1).any(1).nonzero().flatten().tolist()
    half = " Half precision overflows above 65504; try float32." if found.dtype == torch.float16 else ""
    where = ", ".join(map(str, samples[:8]))
    return f" in sample {where}; the input has none. Check the weights and the input's range.{half}"
