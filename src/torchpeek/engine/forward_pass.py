"""One clean pass: run the model once, keep what was requested, and bind the target to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchpeek.cached import cached_property
from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.attention.recorder import Attention, AttentionRecorder
from torchpeek.engine.capture import CallsMiscounted, Capture, CaptureRecorder, CaptureRequest
from torchpeek.engine.fixed_batch import WITHOUT_BATCH_AXIS, fixed_batch_size
from torchpeek.engine.forward import run, why_not_finite
from torchpeek.engine.input_mismatch import unbatched_hooks
from torchpeek.engine.layout_inference.candidates import LayoutUndecided
from torchpeek.engine.layout_inference.dry_run import dry_run, layout_of, with_known_totals
from torchpeek.engine.layout_inference.input_dependence import (
    connected_layers,
    known_unaffected,
    unaffected_layers,
    unconnected_layers,
    with_changed_picture,
)
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import all_finite, close
from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.preserve import exclusive, model_restored, preserved
from torchpeek.engine.replay.prefix import PrefixRecording
from torchpeek.engine.replay.validation import overwritten_outputs
from torchpeek.engine.targets.question import Bound, Question, Target, bind_target, scores_of
from torchpeek.errors import AmbiguousCall, InputError, NotConnected, NotFinite, listed_names, notify
from torchpeek.hooks import SelectedLayer, attached, call_name, containers, grad_mode, replaced, select, shared


@dataclass(frozen=True)
class Origin:
    """Where a pass comes from, in words, for the provenance of heatmaps made from it.

    Args:
        model: The model's spec, or its class name.
        weights: "random" where they were not trained, the name or file of others, or "".
        preprocess: How pictures became tensors.
        layer_reason: Why these layers were chosen.
        class_names: The names of the model's classes, by index.
        pictures: The Picture of each sample, for the heatmaps. Nothing in the engine reads them.
    """

    model: str
    weights: str = ""
    preprocess: str = ""
    layer_reason: str = "asked for"
    class_names: Sequence[str] | None = None
    pictures: Sequence[object] = ()


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one clean pass left behind. Further passes are functions that take it.

    Nothing in it changes except `prefixes`, which is filled when a replay first needs it.

    Args:
        model: The model, which was left as found.
        call: What it was called with.
        layers: Name -> each captured layer, or call of one.
        captures: Name -> what that layer returned, in the same order.
        output: What the model returned, with the graph behind it where one was kept.
        question: The target, bound to this output.
        origin: Where the pass comes from, in words.
        autocast: The dtype of autocast in the pass; further passes use it, too. None where autocast was off.
        attentions: The attention weights of each attention layer; None where they were not kept.
        create_graph: Whether captures and scores are connected to the graph of the whole pass, for a training loss.
        prefixes: Layer -> what ran before it, for replays; filled when it is first needed.
    """

    model: nn.Module
    call: ModelCall
    layers: Mapping[str, SelectedLayer]
    captures: Mapping[str, Capture]
    output: Any
    question: Question
    origin: Origin
    autocast: torch.dtype | None = None
    attentions: Sequence[Attention] | None = None
    create_graph: bool = False
    prefixes: dict[str, PrefixRecording] = field(default_factory=dict)

    @property
    def inputs(self) -> Tensor:
        """(N, C, *grid): the pictures."""
        return self.call.picture

    @cached_property
    def scores_with_graph(self) -> Tensor:
        """(N, K): the scores, connected to the graph behind the output."""
        # The caller may be inside no_grad or inference_mode, where no graph would be made.
        with grad_mode(True, delays_signals=True):
            return scores_of(self.question, self.output, torch.arange(len(self.call)))

    @cached_property
    def scores(self) -> Tensor:
        """(N, K): the scores, detached unless `create_graph`."""
        return self.scores_with_graph if self.create_graph else self.scores_with_graph.detach()

    def autocast_context(self, dtype: torch.dtype | None = None) -> AbstractContextManager[object]:
        """Autocast as it was in the pass, or to `dtype`, whatever the caller's is."""
        dtype = dtype or self.autocast
        device = self.inputs.device.type
        return torch.autocast(device, dtype) if dtype is not None else torch.autocast(device, enabled=False)


def run_clean_pass(
    model: nn.Module, call: ModelCall, request: CaptureRequest, target: Target, origin: Origin
) -> ForwardPass:
    """Run the model once in eval mode, leave it as found, and keep what `request` says.

    With gradients the graph starts at the first of the layers: nothing before it is recorded, and no parameter's
    `.grad` is touched. A model that turns gradients off in a part of itself gets one more pass with the whole graph,
    and a notice.

    Raises:
        NotFired: When a layer, or the selected call of it, was not called.
        AmbiguousCall: When a layer was called more than once, and no call is selected.
        NoSpatialLayer: When a layer's output has no grid, or more than one possible layout.
        NotFinite: When a layer's output or the scores have NaN or infinity.
        NotConnected: When a layer has no connection to the picture.
        MethodNotApplicable: When attention is requested and the model has none that covers all tokens.
        InputError: When the samples of the call depend on each other.
    """
    if len(call) > 1 and (name := batch_statistics_layer(model)):
        notify(
            f"{name!r} normalises with the statistics of the batch at hand, also in eval mode: the samples of a "
            "batch change each other's scores and heatmaps. Give them one by one for results of their own"
        )
    device = call.picture.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def one_pass(request: CaptureRequest) -> ForwardPass:
        try:
            return _one_pass(model, call, request, target, origin, autocast)
        except CallsMiscounted as error:  # the batch makes another number of calls than the dry run of one sample
            layers = {name: layer.with_total(error.totals) for name, layer in request.layers.items()}
        try:
            return _one_pass(model, call, replace(request, layers=layers), target, origin, autocast)
        except CallsMiscounted as error:
            named = listed_names(name for name, layer in layers.items() if layer.counts_from_end)
            raise AmbiguousCall(
                f"{named} is counted from the end, and two passes of the same inputs made different numbers of calls "
                f"({dict(error.totals)}). Count from the start"
            ) from error

    with preserved(model):
        if any(layer.counts_from_end for layer in request.layers.values()):
            request = replace(request, layers=with_known_totals(model, call, request.layers))
        try:
            forward_pass = one_pass(request)
        except LayoutUndecided:
            dry_run(model, call)
            forward_pass = one_pass(request)
        if not isinstance(target, Bound):  # another pass of the same call has been checked
            _check_samples_are_independent(forward_pass)
            _check_layers_depend_on_picture(forward_pass, request)
        if request.gradients and not forward_pass.scores_with_graph.requires_grad:
            # A part of the model leaves a no_grad block of its own, and gradients that the hook turned on end with it.
            notify("the model turns gradients off in a part of itself; one more pass keeps the graph from the start")
            with torch.enable_grad():
                again = one_pass(replace(request, prefix=False))
            forward_pass = replace(again, prefixes=forward_pass.prefixes)
        if not all_finite(forward_pass.scores):
            why = why_not_finite(call.picture, forward_pass.scores)
            raise NotFinite(f"the model's scores have NaN or infinity{why}")
    return forward_pass


def run_training_pass(
    model: nn.Module, call: ModelCall, request: CaptureRequest, target: Target, origin: Origin
) -> ForwardPass:
    """Run the model once as it is, in a step of the caller's own training, with the whole graph.

    This is the one exception to eval mode and to a graph that starts at the layer. The modes stay, running statistics
    are updated as by the caller's own forward pass, and dropout draws from the caller's random state.

    Raises:
        TorchpeekError: As `run_clean_pass` does.
    """
    # Passes of their own, in eval mode, once: one that stops at an undecided layout or layer would count as a step.
    dry_run(model, call)
    unconnected = unconnected_layers(model, call) if request.layers else frozenset()
    if names := [name for name, layer in request.layers.items() if call_name(layer.path, layer.call) in unconnected]:
        raise NotConnected(_not_connected_to_picture(model, call, names))
    device = call.picture.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Fused attention has no second derivative; computed in steps it is the same, and has one.
    attention = shared("attention in steps", partial(sdpa_kernel, SDPBackend.MATH))
    with exclusive(model), attention:
        forward_pass = _one_pass(model, call, request, target, origin, autocast)
        if not all_finite(forward_pass.scores):
            why = why_not_finite(call.picture, forward_pass.scores.detach())
            raise NotFinite(f"the model's scores have NaN or infinity{why}")
    return forward_pass


def _one_pass(
    model: nn.Module,
    call: ModelCall,
    request: CaptureRequest,
    target: Target,
    origin: Origin,
    autocast: torch.dtype | None,
) -> ForwardPass:
    recorder = CaptureRecorder(model, call, request)
    hooks = recorder.hooks()
    attention: AttentionRecorder | None = None
    if request.attention:
        others = frozenset[str]() if call.is_single_tensor else unaffected_layers(model, call)
        attention = AttentionRecorder(request.gradients, model, others)
    prefix: PrefixRecording | None = None
    with ExitStack() as stack:
        if request.prefix and len(request.layers) == 1:
            [layer] = request.layers.values()
            prefix = PrefixRecording(len(call), overwritten_outputs(model, layer, call))
            stack.enter_context(replaced(prefix.recording_forwards(model)))
            hooks.append(layer.hooked(prefix.stop))
        stack.enter_context(attached(hooks, called=unbatched_hooks(model, call)))
        if attention is not None:
            stack.enter_context(attention)
        output = run(model, call.for_one_pass())
    question = bind_target(target, output, call.picture.shape)
    if len(question.labels) != len(call):
        raise InputError(
            f"the model returned {len(question.labels)} row(s) of scores for an input {call.user_shape}, whose axis 0 "
            f"has {len(call)} entries; that axis has to be of the samples, and not of frames or steps. Next: give "
            f"inputs (N, C, *grid). {WITHOUT_BATCH_AXIS}"
        )
    complete = None if prefix is None else prefix.complete()
    attentions = None if attention is None else attention.attentions(len(call))
    return ForwardPass(
        model,
        call,
        recorder.layers(),
        recorder.captures(),
        output,
        question,
        origin,
        autocast,
        attentions,
        request.create_graph,
        {} if complete is None else dict.fromkeys(request.layers, complete),
    )


def with_observed_layers(model: nn.Module, call: ModelCall, target: Target) -> ModelCall:
    """The call, with the inner layers observed that the target reads.

    Raises:
        LayerNotFound: When the target names a layer that does not exist.
        AmbiguousCall: When the name selects several layers.
    """
    observed = {}
    for name in layers_of_target(target):
        selected = select(model, name)
        if len(selected) > 1:
            raise AmbiguousCall(
                f"the target reads layer {name!r}, which selects {len(selected)} layers ({listed_names(selected)}); "
                "name one"
            )
        [layer] = selected.values()
        observed[name] = layer, layout_of(model, call, layer)
    return replace(call, observed=observed) if observed else call


def batch_statistics_layer(model: nn.Module) -> str:
    """The name of a layer that lets the samples of a batch change each other in eval mode; "" where there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return ""


def _check_samples_are_independent(forward_pass: ForwardPass) -> None:
    """Raise InputError where the last sample alone gives something else than in its batch.

    Which arguments belong to the samples follows from their shapes alone, and N texts for N pictures look the same
    whether each belongs to one picture or all are compared with all.
    """
    call, last = forward_pass.call, len(forward_pass.call) - 1
    if not call.sample_paths or not last:
        return

    def output(of: ModelCall) -> Any:
        with forward_pass.autocast_context():
            return run(forward_pass.model, of.for_one_pass())

    size = fixed_batch_size(forward_pass.model, call)
    alone = attempted(partial(output, call.one_sample(size, last)), partial(output, call))
    if isinstance(alone, Refusal) or not _is_last_sample(alone, size or 1, forward_pass.output, last):
        fails = f" (it fails: {alone.reason})" if isinstance(alone, Refusal) else ""
        named = ", ".join(sorted(repr(path.partition(".")[2]) for path in call.sample_paths))
        raise InputError(
            f"the model gives another result for sample {last} alone{fails} than in its batch of {last + 1}. Perhaps "
            f"one of the arguments {named} is the same for all samples, or the samples influence each other. Next: "
            "name such arguments in tp.Arguments(..., shared=[...]), or explain the samples one by one"
        )


def _is_last_sample(alone: Any, size: int, output: Any, last: int) -> bool:
    """Whether the output for sample `last` alone, repeated `size` times, is the end of the output for all samples."""
    ours, theirs = dict(containers.leaves(alone)), dict(containers.leaves(output))
    return all(
        path in ours
        and ours[path].ndim == tensor.ndim
        and len(ours[path]) == size
        and close(ours[path][:1], tensor[last:], ours[path].dtype)
        for path, tensor in theirs.items()
        if tensor.ndim and len(tensor) == last + 1
    )


# By the signature of the call and the layer: layers that are known to depend on the picture.
_CONNECTED: ModelCache[tuple[object, str], bool] = ModelCache(capacity=256)


def _check_layers_depend_on_picture(forward_pass: ForwardPass, request: CaptureRequest) -> None:
    """Raise NotConnected where a captured layer returns the same whatever the picture is, once for each layer.

    One more pass, with a changed picture. A layer that returns the same in it, such as one whose ReLU is never
    positive, is refused if no gradient could reach the picture from it, either.
    """
    model, call, captures = forward_pass.model, forward_pass.call, forward_pass.captures
    names = {name: call_name(layer.path, layer.index) for name, layer in forward_pass.layers.items()}
    unaffected = known_unaffected(model, call)
    suspected = []
    for name in captures:
        affected = unaffected is not None and names[name] not in unaffected
        if not affected and _CONNECTED.get(model, (call.signature, names[name])) is None:
            suspected.append(name)
    if not suspected:
        return
    with model_restored(model):
        changed = _captures_of_changed_picture(forward_pass, request)
    same = [name for name in suspected if changed and torch.equal(changed[name].returned, captures[name].returned)]
    if same:
        modules = {forward_pass.layers[name].path: forward_pass.layers[name].module for name in same}
        connected = connected_layers(model, call, modules)
        if unconnected := [name for name in same if names[name] not in connected]:
            raise NotConnected(_not_connected_to_picture(model, call, unconnected))
    for name in suspected:
        _CONNECTED.put(model, (call.signature, names[name]), True)


def _captures_of_changed_picture(forward_pass: ForwardPass, request: CaptureRequest) -> Mapping[str, Capture]:
    """What the layers return for a changed picture; empty where the model cannot take it."""
    layers = forward_pass.layers  # they know how many calls this batch makes
    request = replace(request, layers=layers, prefix=False, attention=False)
    target = Bound(forward_pass.question)
    origin, autocast = forward_pass.origin, forward_pass.autocast

    def captures(call: ModelCall) -> Mapping[str, Capture]:
        with torch.no_grad():  # the pass before it has left gradients on
            return _one_pass(forward_pass.model, call, request, target, origin, autocast).captures

    changed = attempted(
        partial(captures, with_changed_picture(forward_pass.call)), partial(captures, forward_pass.call)
    )
    return {} if isinstance(changed, Refusal) else changed


def _not_connected_to_picture(model: nn.Module, call: ModelCall, layers: Sequence[str]) -> str:
    listed = listed_names(layers)
    others = [
        f"{path.partition('.')[2]!r} {tuple(tensor.shape)}"
        for path, tensor in containers.leaves(call.arguments)
        if tensor.is_floating_point()
    ]
    text = (
        f"layer {listed} of {type(model).__name__} does not depend on the picture: it returns the same for a changed "
        "one, so no heatmap over the picture can be made of it"
    )
    if others:
        picture = call.picture_path.partition(".")[2]
        text += (
            f". The picture is the argument {picture!r}; there are also {', '.join(others)}, and "
            "tp.Arguments(..., picture=...) chooses the one to explain"
        )
    return text + ". Next: name a layer that the picture reaches, or leave layer= out to have one suggested"
