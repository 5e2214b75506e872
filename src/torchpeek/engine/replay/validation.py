"""Which replays are safe: each is compared with whole passes before it is used, and the result remembered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import attempted
from torchpeek.engine.batching import sample_rows
from torchpeek.engine.forward import run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.replay.prefix import PrefixRecording, RecordedCall
from torchpeek.engine.replay.suffix import (
    INPUT,
    LAYER,
    BatchAxis,
    Replay,
    ReplayMismatch,
    ReplayPlan,
    Suffix,
    check_equal,
    entries_of,
    replayed,
    returning,
)
from torchpeek.engine.targets.question import Question
from torchpeek.engine.wrappers import runs_replicas
from torchpeek.hooks import SelectedLayer, attached, containers, replaced

Key: TypeAlias = tuple[Any, ...]
"""A layer and a kind of input: what a replay plan depends on besides the model."""

_PLANS: ModelCache[Key, ReplayPlan] = ModelCache()
# Why replays are refused.
_REFUSALS: ModelCache[Key, str] = ModelCache()


def overwritten_outputs(model: nn.Module, layer: SelectedLayer, call: ModelCall) -> frozenset[int] | None:
    """The numbers of the calls whose outputs must be copied when they are recorded; None where not known yet."""
    plan = _PLANS.get(model, _key(layer, call))
    return None if plan is None else plan.overwritten


def refuse_replay(model: nn.Module, layer: SelectedLayer, call: ModelCall, reason: str) -> None:
    """Remember that replays from this layer are wrong."""
    _REFUSALS.put(model, _key(layer, call), reason)


def refusal(model: nn.Module, layer: SelectedLayer, call: ModelCall) -> str | None:
    """Why replays from this layer are known to be wrong; None where they are not."""
    return _REFUSALS.get(model, _key(layer, call))


def validated_replay(suffix: Suffix, question: Question, batch: int) -> Replay:
    """A replay that has been compared with whole passes at this batch size or a larger one, now or before.

    Raises:
        ReplayMismatch: When the replay is wrong; the message says why.
    """
    key = _key(suffix.layer, suffix.call)
    plan = _PLANS.get(suffix.model, key)
    if plan is None or plan.largest_batch < batch or not _matches(plan, suffix.prefix):
        if any(map(runs_replicas, suffix.model.modules())):
            raise ReplayMismatch("is not possible: the model runs as replicas on several devices")
        plan = replayed(partial(_validated_plan, suffix, question, batch), suffix.whole_pass)
        _PLANS.put(suffix.model, key, plan)
    return Replay(suffix, plan)


def _key(layer: SelectedLayer, call: ModelCall) -> Key:
    return layer.path, layer.index, *call.kind


def _validated_plan(suffix: Suffix, question: Question, batch: int) -> ReplayPlan:
    """Compare two whole passes over a few samples with two replays of size `batch`, with changed activations.

    1. The whole passes have another number of samples than the recorded pass. Each output's batch axis is the axis
       whose size differs; that its entries are the samples is compared.
    2. A replay of the few samples, with copies of everything, shows which outputs a replay writes into.
    3. The replays of size `batch` return copies no more often than later replays will. A replay that writes into a
       recorded output spoils only the replays after it, so there are two.
    """
    model, layer, prefix, activation = suffix.model, suffix.layer, suffix.prefix, suffix.activation
    count = len(suffix.call)
    rows = torch.arange(batch) * count // batch  # all samples, in order, as evenly as possible
    picked = torch.tensor([batch - 1, 0] if count != 2 else [batch - 1, 0, batch // 2])
    few = suffix.call.select(rows[picked])
    plan: ReplayPlan | None = None
    for trial in range(2):
        changed = _changed_activation(sample_rows(activation, rows), trial)
        recording = PrefixRecording(len(picked))
        hooks = [layer.hooked(returning(changed[picked].clone(), suffix.layout)), layer.hooked(recording.stop)]
        with replaced(recording.recording_forwards(model)), attached(hooks):
            whole = run(model, few.for_one_pass())
        if plan is None:
            plan = ReplayPlan(_batch_axes(prefix, recording, rows[picked]), prefix.overwritten)
            _disturb(model, few)
            _learn_what_is_written(Replay(suffix, plan), changed[picked], rows[picked], whole, question)
        output = Replay(suffix, plan).output(changed, rows)
        check_equal(whole, output, picked, batch, activation.dtype, question, rows)
    assert plan is not None
    # A constant picture, or an output whose entries are all the same, proves little. The next call validates again.
    constant = bool(suffix.call.picture.amin() == suffix.call.picture.amax())
    plan.largest_batch = 0 if constant or _is_ambiguous(plan, prefix) else batch
    return plan


def _learn_what_is_written(replay: Replay, activation: Tensor, rows: Tensor, whole: Any, question: Question) -> None:
    """Replay a few samples with copies of everything, and note in the plan which of them the model writes into."""
    output = replay.output(activation, rows, copies=True)
    written, plan = replay.written(), replay.plan
    plan.written = written - {LAYER, INPUT}
    plan.layer_written, plan.input_written = LAYER in written, INPUT in written
    check_equal(whole, output, torch.arange(len(rows)), len(rows), activation.dtype, question, rows)


def _disturb(model: nn.Module, call: ModelCall) -> None:
    """Run the model on another input, so that state that it keeps outside of module outputs is no longer this input's.

    A replay that depends on such state then differs from the whole pass.
    """
    other = call.picture.flip(0, -1)
    disturbing = call.with_picture(other * 0.5 + 0.1 if other.is_floating_point() else other)
    # The model may take no such input.
    attempted(lambda: run(model, disturbing.for_one_pass()), lambda: run(model, call.for_one_pass()))


def _changed_activation(activation: Tensor, trial: int) -> Tensor:
    """As large as the activation, with other channels, different in each entry of the batch, and never constant."""
    size, device = activation[0].numel(), activation.device
    factors = torch.linspace(0.5, 1.5, len(activation), device=device).view(-1, *(1 for _ in activation.shape[1:]))
    pattern = torch.cos(torch.arange(size, device=device) * (1.0 + trial)).view(activation.shape[1:])
    changed = activation.roll(1 + trial, dims=1).flip(-1) + 0.1 * activation.abs().mean().clamp(min=0.1) * pattern
    return (changed * factors).to(activation.dtype)


def _is_ambiguous(plan: ReplayPlan, prefix: PrefixRecording) -> bool:
    """Whether some output has several entries for each sample that are all equal, so that their order is not tested."""
    for (_, tensors), call in zip(plan.calls, prefix.calls, strict=True):
        for path, tensor in containers.leaves(call.output):
            batch_axis = tensors[path]
            if batch_axis.axis is not None and batch_axis.multiplicity > 1:
                entries = tensor.movedim(batch_axis.axis, 0)
                by_sample = entries.reshape(prefix.count, batch_axis.multiplicity, -1)
                if bool((by_sample == by_sample[:, :1]).all()):
                    return True
    return False


def _batch_axes(
    prefix: PrefixRecording, other: PrefixRecording, rows: Tensor
) -> list[tuple[type[nn.Module], Mapping[str, BatchAxis]]]:
    """The batch axis of each recorded tensor; `other` is a recording of the samples `rows`. Raises ReplayMismatch."""
    ours, theirs = ([(call.module, call.finished) for call in each.calls] for each in (prefix, other))
    if ours != theirs:
        raise ReplayMismatch("calls other modules for another number of samples")
    return [
        (type(one.module), dict(_axes_of_call(one, two, prefix.count, rows)))
        for one, two in zip(prefix.calls, other.calls, strict=True)
    ]


def _axes_of_call(one: RecordedCall, other: RecordedCall, count: int, rows: Tensor) -> Iterator[tuple[str, BatchAxis]]:
    name = type(one.module).__name__
    ours, theirs = dict(containers.leaves(one.output)), dict(containers.leaves(other.output))
    # Values that are no tensors are returned as they are, so they must not depend on the batch.
    if ours.keys() != theirs.keys() or _without_tensors(one.output) != _without_tensors(other.output):
        raise ReplayMismatch(f"is not possible: {name} returns something without one entry for each sample")
    for path, tensor in ours.items():
        batch_axis = _batch_axis(tensor.shape, theirs[path].shape, count, len(rows), name)
        part = entries_of(tensor, batch_axis, count, rows)
        if not close(part, theirs[path], tensor.dtype):
            raise ReplayMismatch(f"is not possible: {name} returns something without one entry for each sample")
        yield path, batch_axis


def _without_tensors(value: Any) -> Any:
    return containers.mapped(value, lambda path, tensor: None)


def _batch_axis(one: torch.Size, other: torch.Size, count: int, other_count: int, name: str) -> BatchAxis:
    differing = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    if not differing:
        return BatchAxis(None, 1, tuple(one))
    axis = differing[0]
    if len(differing) > 1 or one[axis] * other_count != other[axis] * count or one[axis] % count:
        raise ReplayMismatch(
            f"is not possible: {name} returns {tuple(one)} for {count} samples and {tuple(other)} for {other_count}"
        )
    return BatchAxis(axis, one[axis] // count, (*one[:axis], *one[axis + 1 :]))


def _matches(plan: ReplayPlan, prefix: PrefixRecording) -> bool:
    """Whether the recorded calls are those that the plan was made for."""
    if len(plan.calls) != len(prefix.calls):
        return False
    for (module_type, expected), call in zip(plan.calls, prefix.calls, strict=True):
        tensors = dict(containers.leaves(call.output))
        if type(call.module) is not module_type or tensors.keys() != expected.keys():
            return False
        for path, batch_axis in expected.items():
            shape = tuple(tensors[path].shape)
            if batch_axis.axis is not None:
                axis = batch_axis.axis
                if axis >= len(shape) or shape[axis] != batch_axis.multiplicity * prefix.count:
                    return False
                shape = (*shape[:axis], *shape[axis + 1 :])
            if shape != batch_axis.rest:
                return False
    return True
