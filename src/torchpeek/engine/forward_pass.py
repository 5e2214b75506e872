"""One clean pass: run the model once, keep what was requested, and bind the target to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attention.recorder import Attention, AttentionRecorder
from torchpeek.engine.capture import Capture, CaptureRecorder, CaptureRequest
from torchpeek.engine.fixed_batch import WITHOUT_BATCH_AXIS, fixed_batch_size
from torchpeek.engine.forward import run, why_not_finite
from torchpeek.engine.input_mismatch import unbatched_hooks
from torchpeek.engine.layout_inference.candidates import LayoutUndecided
from torchpeek.engine.layout_inference.dry_run import dry_run, layout_of
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.preserve import preserved
from torchpeek.engine.replay.prefix import PrefixRecording
from torchpeek.engine.replay.validation import overwritten_outputs
from torchpeek.engine.targets.question import Bound, Question, Target
from torchpeek.errors import AmbiguousCall, InputError, NotFinite, listed_names, notify
from torchpeek.hooks import attached, containers, replaced, select
from torchpeek.interrupts import uninterrupted


@dataclass(frozen=True)
class Origin:
    """Where a pass comes from, in words, for the provenance of heatmaps made from it.

    Args:
        model: The model's spec, or its class name.
        weights: "random" where they were not trained, the name or file of others, or "".
        preprocess: How pictures became tensors.
        layer_reason: Why these layers were chosen.
        class_names: The names of the model's classes, by index.
    """

    model: str
    weights: str = ""
    preprocess: str = ""
    layer_reason: str = "asked for"
    class_names: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one clean pass left behind. Further passes are functions that take it.

    Nothing in it changes except `prefixes`, which is filled when a replay first needs it.

    Args:
        model: The model, which was left as found.
        call: What it was called with.
        layers: Name -> module of the captured layers.
        captures: Name -> what that layer returned, in the same order.
        output: What the model returned, with the graph behind it where one was kept.
        question: The target, bound to this output.
        origin: Where the pass comes from, in words.
        autocast: The dtype of autocast in the pass; further passes use it, too. None where autocast was off.
        attentions: The attention weights of each attention layer; None where they were not kept.
        prefixes: Layer -> what ran before it, for replays; filled when it is first needed.
    """

    model: nn.Module
    call: ModelCall
    layers: Mapping[str, nn.Module]
    captures: Mapping[str, Capture]
    output: Any
    question: Question
    origin: Origin
    autocast: torch.dtype | None = None
    attentions: Sequence[Attention] | None = None
    prefixes: dict[str, PrefixRecording] = field(default_factory=dict)

    @property
    def inputs(self) -> Tensor:
        """(N, C, *grid): the pictures."""
        return self.call.picture

    @cached_property
    def scores_with_graph(self) -> Tensor:
        """(N, K): the scores, connected to the graph behind the output."""
        # The caller may be inside no_grad or inference_mode, where no graph would be made.
        with uninterrupted(), torch.inference_mode(False), torch.enable_grad():
            return self.question(self.output, torch.arange(len(self.call)))

    @cached_property
    def scores(self) -> Tensor:
        """(N, K): the scores, detached."""
        return self.scores_with_graph.detach()

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
        NotFired: When a layer was not called.
        AmbiguousCall: When a layer was called more than once.
        NoSpatialLayer: When a layer's output has no grid, or more than one possible layout.
        NotFinite: When a layer's output or the scores have NaN or infinity.
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
        return _one_pass(model, call, request, target, origin, autocast)

    with preserved(model):
        try:
            forward_pass = one_pass(request)
        except LayoutUndecided:
            dry_run(model, call)
            forward_pass = one_pass(request)
        if not isinstance(target, Bound):  # another pass of the same call has been checked
            _check_samples_are_independent(forward_pass)
        if request.gradients and not forward_pass.scores_with_graph.requires_grad:
            # A part of the model leaves a no_grad block of its own, and gradients that the hook turned on end with it.
            notify("the model turns gradients off in a part of itself; one more pass keeps the graph from the start")
            with torch.enable_grad():
                again = one_pass(replace(request, prefix=False))
            forward_pass = replace(again, prefixes=forward_pass.prefixes)
        if not torch.isfinite(forward_pass.scores).all():
            why = why_not_finite(call.picture, forward_pass.scores)
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
    attention = AttentionRecorder(request.gradients, model) if request.attention else None
    prefix: PrefixRecording | None = None
    with ExitStack() as stack:
        if request.prefix and len(request.layers) == 1:
            [(name, layer)] = request.layers.items()
            prefix = PrefixRecording(len(call), overwritten_outputs(model, name, call))
            stack.enter_context(replaced(prefix.recording_forwards(model)))
            hooks.append((layer, prefix.stop))
        stack.enter_context(attached(hooks, called=unbatched_hooks(model, call)))
        if attention is not None:
            stack.enter_context(attention)
        output = run(model, call.for_one_pass())
    question = target.bind(output)
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
        request.layers,
        recorder.captures(),
        output,
        question,
        origin,
        autocast,
        attentions,
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
        [(full_name, module)] = selected.items()
        observed[name] = module, layout_of(model, call, full_name)
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
    cause: Exception | None = None
    try:
        with forward_pass.autocast_context():
            size = fixed_batch_size(forward_pass.model, call)
            alone = run(forward_pass.model, call.one_sample(size, last).for_one_pass())
        ours, theirs = dict(containers.leaves(alone)), dict(containers.leaves(forward_pass.output))
        batched = {path: tensor for path, tensor in theirs.items() if tensor.ndim and len(tensor) == last + 1}
        same = all(
            len(ours[path]) == (size or 1) and close(ours[path][:1], tensor[last:], ours[path].dtype)
            for path, tensor in batched.items()
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        same, cause = False, error
    if not same:
        named = ", ".join(sorted(repr(path.partition(".")[2]) for path in call.sample_paths))
        raise InputError(
            f"the model gives another result for sample {last} alone than in its batch of {last + 1}. Perhaps one of "
            f"the arguments {named} is the same for all samples, or the samples influence each other. Next: name such "
            "arguments in tp.Arguments(..., shared=[...]), or explain the samples one by one"
        ) from cause
