"""What is known of replays: for each model and layer how they go, or why not; found out by whole passes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.replay.prefix import PrefixRecording, RecordedCall
from torchpeek.engine.replay.suffix import (
    INPUT,
    LAYER,
    Batched,
    Plan,
    Replay,
    ReplayMismatch,
    Suffix,
    compare,
    fails,
    of_rows,
    part_of,
    returning,
)
from torchpeek.engine.targets import Question
from torchpeek.hooks import attached, containers
from torchpeek.hooks.patched_forward import replaced

# For each model, by layer and kind of inputs: the plan, or why there is none. Forgotten with the model.
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan | str]] = weakref.WeakKeyDictionary()


def copied(model: nn.Module, layer: str, given: ModelCall) -> frozenset[int] | None:
    """Which outputs have to be copied when a pass is noted; None where that is not known yet."""
    plan = _PLANS.get(model, {}).get(_key(layer, given))
    return plan.overwritten if isinstance(plan, Plan) else None


def refuse(model: nn.Module, layer: str, given: ModelCall, why: str) -> None:
    """Replays are not to be tried there again."""
    _PLANS.setdefault(model, {})[_key(layer, given)] = why


def refused(model: nn.Module, layer: str, given: ModelCall) -> str | None:
    """Why replays are known to be wrong there, if they are."""
    plan = _PLANS.get(model, {}).get(_key(layer, given))
    return plan if isinstance(plan, str) else None


def checked(suffix: Suffix, question: Question, batch: int) -> Replay:
    """A replay that is known to be right for up to `batch` at once; compared with whole passes if it is not yet.

    Raises Differs, which says why, where a replay is not right.
    """
    plans, key = _PLANS.setdefault(suffix.model, {}), _key(suffix.name, suffix.given)
    plan = plans.get(key)
    if isinstance(plan, str):
        raise ReplayMismatch(plan)
    if plan is None or plan.checked < batch or not _fits(plan, suffix.notes):
        if any(isinstance(each, nn.DataParallel) and len(each.device_ids) > 1 for each in suffix.model.modules()):
            raise ReplayMismatch("is not possible: the model runs as replicas on several devices")
        try:
            plan = plans[key] = _learned(suffix, question, batch)
        except (ReplayMismatch, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the whole passes will show whether it is the model's own
            raise ReplayMismatch(fails(error)) from error
    return Replay(suffix, plan)


def _key(layer: str, given: ModelCall) -> tuple[Any, ...]:
    picture = given.picture
    autocast = torch.is_autocast_enabled(picture.device.type)
    return layer, tuple(picture.shape[1:]), picture.dtype, picture.device, autocast


def _learned(suffix: Suffix, question: Question, batch: int) -> Plan:
    """Two whole passes of a few samples against two replays of `batch`, in which the layer says something else.

    The whole passes are of another number of samples than the noted one: which axis of an output is the batch is read
    from the difference, and that its samples are where that says is compared. What a replay writes into is learned from
    one of the few samples, with copies. The others hand out copies no more than later ones will, and as a replay that
    writes into what is kept corrupts only those after it, there are two.
    """
    model, layer, given, notes, activation = suffix.model, suffix.layer, suffix.given, suffix.notes, suffix.activation
    count = len(given)
    rows = torch.arange(batch) * count // batch  # of all samples, in order, as evenly as can be
    picked = torch.tensor([batch - 1, 0] if count != 2 else [batch - 1, 0, batch // 2])
    few = given.of(rows[picked])
    plan: Plan | None = None
    for trial in range(2):
        changed = _something_else(of_rows(activation, rows), trial)
        seen = PrefixRecording(len(picked))
        hooks = [(layer, returning(changed[picked].clone(), suffix.layout)), (layer, seen.closing)]
        with replaced(seen.forwards(model)), attached(hooks):
            true = run(model, few.handed())
        if plan is None:
            plan = Plan(_calls(notes, seen, rows[picked]), notes.overwritten)
            _disturb(model, few)
            _learn_what_is_written(Replay(suffix, plan), changed[picked], rows[picked], true, question)
        again = Replay(suffix, plan).output(changed, rows)
        compare(true, again, picked, batch, activation.dtype, question, rows)
    assert plan is not None
    # What one picture for which much is the same cannot show is not remembered for others.
    plan.checked = 0 if bool(given.picture.amin() == given.picture.amax()) or _ambiguous(plan, notes) else batch
    return plan


def _learn_what_is_written(replay: Replay, changed: Tensor, rows: Tensor, true: Any, question: Question) -> None:
    """A replay of a few samples, with copies of everything: which of them does the model write into?"""
    again = replay.output(changed, rows, copies=True)
    written, plan = replay.written(), replay.plan
    plan.written = written - {LAYER, INPUT}
    plan.layer_written, plan.input_written = LAYER in written, INPUT in written
    compare(true, again, torch.arange(len(rows)), len(rows), changed.dtype, question, rows)


def _disturb(model: nn.Module, given: ModelCall) -> None:
    """A pass over something else: what a pass leaves behind, past what its modules return, is not of these inputs now.

    A replay that needs it then shows.
    """
    other = given.picture.flip(0, -1)
    try:
        run(model, given.handed(other * 0.5 + 0.1 if other.is_floating_point() else other))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model takes no such input
        return


def _something_else(activation: Tensor, trial: int) -> Tensor:
    """As large as the activation, but other channels, and different in each entry of the batch; never constant."""
    size, device = activation[0].numel(), activation.device
    factors = torch.linspace(0.5, 1.5, len(activation), device=device).view(-1, *(1 for _ in activation.shape[1:]))
    pattern = torch.cos(torch.arange(size, device=device) * (1.0 + trial)).view(activation.shape[1:])
    changed = activation.roll(1 + trial, dims=1).flip(-1) + 0.1 * activation.abs().mean().clamp(min=0.1) * pattern
    return (changed * factors).to(activation.dtype)


def _ambiguous(plan: Plan, notes: PrefixRecording) -> bool:
    """Whether in some output that has several entries for each sample these are all alike, in whatever order."""
    for (_, tensors), call in zip(plan.calls, notes.calls, strict=True):
        for path, tensor in containers.leaves(call.output):
            where = tensors[path]
            if where.axis is not None and where.multiplicity > 1:
                entries = tensor.movedim(where.axis, 0)
                of_samples = entries.reshape(notes.count, where.multiplicity, -1)
                if bool((of_samples == of_samples[:, :1]).all()):
                    return True
    return False


def _calls(
    notes: PrefixRecording, seen: PrefixRecording, rows: Tensor
) -> list[tuple[type[nn.Module], Mapping[str, Batched]]]:
    """What was noted, told apart into samples: `seen` is the same of the samples `rows`. Raises Differs."""
    if [(call.module, call.over) for call in notes.calls] != [(call.module, call.over) for call in seen.calls]:
        raise ReplayMismatch("calls other modules for another number of samples")
    return [
        (type(one.module), dict(_batched(one, other, notes.count, rows)))
        for one, other in zip(notes.calls, seen.calls, strict=True)
    ]


def _batched(one: RecordedCall, other: RecordedCall, count: int, rows: Tensor) -> Iterator[tuple[str, Batched]]:
    name = type(one.module).__name__
    ours, theirs = dict(containers.leaves(one.output)), dict(containers.leaves(other.output))
    # Whatever is no tensor is handed out as it is: numbers that hang on the batch, or unknown objects, cannot be.
    if ours.keys() != theirs.keys() or _without_tensors(one.output) != _without_tensors(other.output):
        raise ReplayMismatch(f"is not possible: {name} returns something that is not by sample")
    for path, tensor in ours.items():
        where = _batch_axis(tensor.shape, theirs[path].shape, count, len(rows), name)
        part = part_of(tensor, where, count, rows, None)
        if not close(part, theirs[path], tensor.dtype):
            raise ReplayMismatch(f"is not possible: {name} returns something that is not by sample")
        yield path, where


def _without_tensors(value: Any) -> Any:
    return containers.mapped(value, lambda path, tensor: None)


def _batch_axis(one: torch.Size, other: torch.Size, count: int, other_count: int, name: str) -> Batched:
    differing = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    if not differing:
        return Batched(None, 1, tuple(one))
    axis = differing[0]
    if len(differing) > 1 or one[axis] * other_count != other[axis] * count or one[axis] % count:
        raise ReplayMismatch(
            f"is not possible: {name} returns {tuple(one)} for {count} samples and {tuple(other)} for {other_count}"
        )
    return Batched(axis, one[axis] // count, (*one[:axis], *one[axis + 1 :]))


def _fits(plan: Plan, notes: PrefixRecording) -> bool:
    """Whether these notes are of the calls that the plan was made for."""
    if len(plan.calls) != len(notes.calls):
        return False
    for (kind, expected), call in zip(plan.calls, notes.calls, strict=True):
        tensors = dict(containers.leaves(call.output))
        if type(call.module) is not kind or tensors.keys() != expected.keys():
            return False
        for path, where in expected.items():
            shape = tuple(tensors[path].shape)
            if where.axis is not None:
                if where.axis >= len(shape) or shape[where.axis] != where.multiplicity * notes.count:
                    return False
                shape = (*shape[: where.axis], *shape[where.axis + 1 :])
            if shape != where.rest:
                return False
    return True
