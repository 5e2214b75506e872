"""Run only what comes after a layer: what was over before the layer returned, returns again what it returned.

A pass is noted once: for each outermost module that was over before the layer returned, what its `forward` returned,
before any hook. In a replay these modules return that again, expanded to the batch at hand, the layer returns the
activation that is asked about, and everything else runs. Whether that is what whole passes give is checked for each
model and layer, twice, before it is relied on, and for each trace by asking for what it knows already.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.closeness import close
from torchpeek.engine.forward import run
from torchpeek.engine.notes import NotedCall, Notes, version_of
from torchpeek.engine.targets import Question
from torchpeek.errors import TorchpeekError
from torchpeek.hooks import attached, nested
from torchpeek.hooks.attach import ForwardHook
from torchpeek.hooks.forwards import Forward, replaced


class Differs(TorchpeekError):
    """A replay does not give what whole passes give. Its message goes on from "a replay ..."."""


@dataclass(frozen=True)
class _Batched:
    """Where the samples are in a tensor: `multiplicity` entries of `axis` for each, one sample's after the other's."""

    axis: int | None  # None where the tensor is not by sample
    multiplicity: int
    rest: tuple[int, ...]  # its shape without that axis


@dataclass
class _Plan:
    """What is known of the replays of one model at one layer, for inputs of one kind."""

    calls: Sequence[tuple[type[nn.Module], Mapping[str, _Batched]]]  # of each: the module, and its tensors by path
    overwritten: frozenset[int]  # outputs that a pass overwrites: copied when noted
    written: frozenset[int] = frozenset()  # outputs that a replay writes into: handed out as copies
    layer_written: bool = True  # whether the layer's own output is written into
    input_written: bool = True
    checked: int = 0  # up to this batch size


# In the place of a call's number: what else a replay may write into.
_LAYER, _INPUT = -1, -2


@dataclass(eq=False)
class Replay:
    """The suffix of a model after one layer, for the samples of one noted pass over `inputs`."""

    model: nn.Module
    layer: nn.Module
    inputs: Tensor
    notes: Notes
    plan: _Plan
    _handed: list[tuple[int, Tensor, int | None]] = field(default_factory=list)  # and the versions as handed out

    def output(self, changed: Tensor, rows: Tensor, *, copies: bool = False) -> Any:
        """What the model returns when the layer returns `changed` (b, ...), entry i being of sample rows[i].

        `changed` is handed on as it is where nothing writes into the layer's output. With `copies` everything is
        handed on as a copy. Raises Differs where the model fails, or does not call the modules that were noted.
        """
        plan, only = self.plan, _only_one(rows)
        queues: dict[nn.Module, deque[int]] = {}
        for number, call in enumerate(self.notes.calls):
            queues.setdefault(call.module, deque()).append(number)
        self._handed = []
        changed = changed.clone() if copies or plan.layer_written else changed
        given = _of_rows(self.inputs, _Batched(0, 1, ()), len(self.inputs), rows, only)
        # A view of one sample is the very one that is kept; into one that repeats it nearly nothing can write.
        given = given.clone() if copies or plan.input_written or len(rows) == 1 else given
        self._handed += [(_LAYER, changed, version_of(changed)), (_INPUT, given, version_of(given))]
        thread = threading.get_ident()

        def again(queue: deque[int], forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or not queue:
                return forward(*args, **kwargs)
            number = queue.popleft()
            call = self.notes.calls[number]
            if not call.over:
                return forward(*args, **kwargs)
            return nested.mapped(call.output, partial(handed, number))

        def handed(number: int, path: str, tensor: Tensor) -> Tensor:
            where = plan.calls[number][1][path]
            part = _of_rows(tensor, where, self.notes.count, rows, only)
            part = part.clone() if copies or number in plan.written or len(rows) == 1 or where.axis is None else part
            self._handed.append((number, part, version_of(part)))
            return part

        forwards = [(module, partial(again, queue, module.forward)) for module, queue in queues.items()]
        try:
            with replaced(forwards), attached([(self.layer, returning(changed))]):
                output = run(self.model, given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise Differs(_fails(error)) from error
        if any(queues.values()):
            raise Differs("calls other modules than the pass that was noted")
        written = self.written()
        plan.layer_written |= _LAYER in written  # for once it did, and may do so again
        if not copies and len(rows) > 1 and any(self._is_kept(number) for number in written - plan.written):
            plan.written |= written - {_LAYER, _INPUT}
            raise Differs("writes into what was noted, now and then")
        return output

    def _is_kept(self, number: int) -> bool:
        """Whether what was handed out for a call shares memory with what is kept of it, or with the inputs."""
        kept = [self.inputs] if number == _INPUT else []
        if number >= 0:
            kept = [tensor for _, tensor in nested.leaves(self.notes.calls[number].output)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in kept}
        return any(part.untyped_storage().data_ptr() in memory for each, part, _ in self._handed if each == number)

    def written(self) -> frozenset[int]:
        """The numbers of the calls whose outputs the last replay has written into; the layer's and the input's."""
        return frozenset(
            number for number, part, version in self._handed if version is None or version_of(part) != version
        )

    def confirm(self, activation: Tensor, output: Any, question: Question) -> None:
        """Raise Differs unless the layer's own activation gives what the noted pass gave."""
        rows = torch.arange(len(self.inputs))
        again = self.output(activation.clone(), rows)
        _compare(output, again, rows, len(rows), activation.dtype, question, rows)


# For each model, by layer and kind of inputs: the plan, or why there is none. Forgotten with the model.
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Plan | str]] = weakref.WeakKeyDictionary()


def copied(model: nn.Module, layer: str, inputs: Tensor) -> frozenset[int] | None:
    """Which outputs have to be copied when a pass is noted; None where that is not known yet."""
    plan = _PLANS.get(model, {}).get(_key(layer, inputs))
    return plan.overwritten if isinstance(plan, _Plan) else None


def refuse(model: nn.Module, layer: str, inputs: Tensor, why: str) -> None:
    """Replays are not to be tried there again."""
    _PLANS.setdefault(model, {})[_key(layer, inputs)] = why


def refused(model: nn.Module, layer: str, inputs: Tensor) -> str | None:
    """Why replays are known to be wrong there, if they are."""
    plan = _PLANS.get(model, {}).get(_key(layer, inputs))
    return plan if isinstance(plan, str) else None


def checked(
    model: nn.Module,
    name: str,
    layer: nn.Module,
    inputs: Tensor,
    activation: Tensor,
    notes: Notes,
    question: Question,
    batch: int,
) -> Replay:
    """A replay that is known to be right for up to `batch` at once; compared with whole passes if it is not yet.

    `activation` is what the layer returned of `inputs`. Raises Differs, which says why, where a replay is not right.
    """
    plans, key = _PLANS.setdefault(model, {}), _key(name, inputs)
    plan = plans.get(key)
    if isinstance(plan, str):
        raise Differs(plan)
    if plan is None or plan.checked < batch or not _fits(plan, notes):
        if any(isinstance(each, nn.DataParallel) and len(each.device_ids) > 1 for each in model.modules()):
            raise Differs("is not possible: the model runs as replicas on several devices")
        try:
            plan = plans[key] = _learned(model, layer, inputs, activation, notes, question, batch)
        except (Differs, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the whole passes will show whether it is the model's own
            raise Differs(_fails(error)) from error
    return Replay(model, layer, inputs, notes, plan)


def returning(value: Tensor) -> ForwardHook:
    """A hook that lets its module return `value`, in this thread."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        return value if threading.get_ident() == thread else None

    return hook


def of_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """(N, ...) -> (b, ...): the samples `rows` (b,). A view that repeats it, where all are one and the same."""
    return _of_rows(tensor, _Batched(0, 1, ()), len(tensor), rows, _only_one(rows))


def _only_one(rows: Tensor) -> int | None:
    """The sample that all of them are, if they are."""
    first = int(rows[0])
    return first if bool((rows == first).all()) else None


def _of_rows(tensor: Tensor, where: _Batched, count: int, rows: Tensor, only: int | None) -> Tensor:
    axis, multiplicity = where.axis, where.multiplicity
    if axis is None:
        return tensor
    if multiplicity == 1 and only is not None:
        sizes = [len(rows) if each == axis else -1 for each in range(tensor.ndim)]
        return tensor.narrow(axis, only, 1).expand(sizes)
    rows = rows.to(tensor.device)
    if multiplicity == 1:
        return tensor.index_select(axis, rows)
    folded = tensor.reshape(*tensor.shape[:axis], count, multiplicity, *tensor.shape[axis + 1 :])
    return folded.index_select(axis, rows).flatten(axis, axis + 1)


def _key(layer: str, inputs: Tensor) -> tuple[Any, ...]:
    autocast = torch.is_autocast_enabled(inputs.device.type)
    return layer, tuple(inputs.shape[1:]), inputs.dtype, inputs.device, autocast


def _learned(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    activation: Tensor,
    notes: Notes,
    question: Question,
    batch: int,
) -> _Plan:
    """Two whole passes of a few samples against two replays of `batch`, in which the layer says something else.

    The whole passes are of another number of samples than the noted one: which axis of an output is the batch is read
    from the difference, and that its samples are where that says is compared. What a replay writes into is learned from
    one of the few samples, with copies. The others hand out copies no more than later ones will, and as a replay that
    writes into what is kept corrupts only those after it, there are two.
    """
    count = len(inputs)
    rows = torch.arange(batch) * count // batch  # of all samples, in order, as evenly as can be
    picked = torch.tensor([batch - 1, 0] if count != 2 else [batch - 1, 0, batch // 2])
    few = of_rows(inputs, rows[picked])
    plan: _Plan | None = None
    for trial in range(2):
        changed = _something_else(of_rows(activation, rows), trial)
        seen = Notes(len(picked))
        hooks = [(layer, returning(changed[picked].clone())), (layer, seen.closing)]
        with replaced(seen.forwards(model)), attached(hooks):
            true = run(model, few.clone())
        if plan is None:
            plan = _Plan(_calls(notes, seen, rows[picked]), notes.overwritten)
            _disturb(model, few)
            small = Replay(model, layer, inputs, notes, plan)
            _learn_what_is_written(small, changed[picked], rows[picked], true, question)
        again = Replay(model, layer, inputs, notes, plan).output(changed, rows)
        _compare(true, again, picked, batch, activation.dtype, question, rows)
    assert plan is not None
    # What one picture for which much is the same cannot show is not remembered for others.
    plan.checked = 0 if bool(inputs.amin() == inputs.amax()) or _ambiguous(plan, notes) else batch
    return plan


def _learn_what_is_written(replay: Replay, changed: Tensor, rows: Tensor, true: Any, question: Question) -> None:
    """A replay of a few samples, with copies of everything: which of them does the model write into?"""
    again = replay.output(changed, rows, copies=True)
    written, plan = replay.written(), replay.plan
    plan.written = written - {_LAYER, _INPUT}
    plan.layer_written, plan.input_written = _LAYER in written, _INPUT in written
    _compare(true, again, torch.arange(len(rows)), len(rows), changed.dtype, question, rows)


def _disturb(model: nn.Module, inputs: Tensor) -> None:
    """A pass over something else: what a pass leaves behind, past what its modules return, is not of these inputs now.

    A replay that needs it then shows.
    """
    other = inputs.flip(0, -1)
    try:
        run(model, other * 0.5 + 0.1 if other.is_floating_point() else other)
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


def _ambiguous(plan: _Plan, notes: Notes) -> bool:
    """Whether in some output that has several entries for each sample these are all alike, in whatever order."""
    for (_, tensors), call in zip(plan.calls, notes.calls, strict=True):
        for path, tensor in nested.leaves(call.output):
            where = tensors[path]
            if where.axis is not None and where.multiplicity > 1:
                entries = tensor.movedim(where.axis, 0)
                of_samples = entries.reshape(notes.count, where.multiplicity, -1)
                if bool((of_samples == of_samples[:, :1]).all()):
                    return True
    return False


def _calls(notes: Notes, seen: Notes, rows: Tensor) -> list[tuple[type[nn.Module], Mapping[str, _Batched]]]:
    """What was noted, told apart into samples: `seen` is the same of the samples `rows`. Raises Differs."""
    if [(call.module, call.over) for call in notes.calls] != [(call.module, call.over) for call in seen.calls]:
        raise Differs("calls other modules for another number of samples")
    return [
        (type(one.module), dict(_batched(one, other, notes.count, rows)))
        for one, other in zip(notes.calls, seen.calls, strict=True)
    ]


def _batched(one: NotedCall, other: NotedCall, count: int, rows: Tensor) -> Iterator[tuple[str, _Batched]]:
    name = type(one.module).__name__
    ours, theirs = dict(nested.leaves(one.output)), dict(nested.leaves(other.output))
    # Whatever is no tensor is handed out as it is: numbers that hang on the batch, or unknown objects, cannot be.
    if ours.keys() != theirs.keys() or _without_tensors(one.output) != _without_tensors(other.output):
        raise Differs(f"is not possible: {name} returns something that is not by sample")
    for path, tensor in ours.items():
        where = _batch_axis(tensor.shape, theirs[path].shape, count, len(rows), name)
        part = _of_rows(tensor, where, count, rows, None)
        if not close(part, theirs[path], tensor.dtype):
            raise Differs(f"is not possible: {name} returns something that is not by sample")
        yield path, where


def _without_tensors(value: Any) -> Any:
    return nested.mapped(value, lambda path, tensor: None)


def _batch_axis(one: torch.Size, other: torch.Size, count: int, other_count: int, name: str) -> _Batched:
    differing = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    if not differing:
        return _Batched(None, 1, tuple(one))
    axis = differing[0]
    if len(differing) > 1 or one[axis] * other_count != other[axis] * count or one[axis] % count:
        raise Differs(
            f"is not possible: {name} returns {tuple(one)} for {count} samples and {tuple(other)} for {other_count}"
        )
    return _Batched(axis, one[axis] // count, (*one[:axis], *one[axis + 1 :]))


def _fits(plan: _Plan, notes: Notes) -> bool:
    """Whether these notes are of the calls that the plan was made for."""
    if len(plan.calls) != len(notes.calls):
        return False
    for (kind, expected), call in zip(plan.calls, notes.calls, strict=True):
        tensors = dict(nested.leaves(call.output))
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


def _compare(
    true: Any, again: Any, picked: Tensor, batch: int, dtype: torch.dtype, question: Question, rows: Tensor
) -> None:
    """Raise Differs unless the replay's entries `picked` are the whole pass's: scores, and all that is by sample."""
    pairs = [("the scores", question(again, rows)[picked], question(true, rows[picked]))]
    parts = dict(nested.leaves(true))
    for path, ours in nested.leaves(again):
        theirs = parts.get(path)
        if theirs is None:
            raise Differs("returns other parts")
        if theirs.is_floating_point() and theirs.ndim and len(theirs) == len(picked) and len(ours) == batch:
            pairs.append((f"the outputs {path!r}" if path else "the outputs", ours[picked.to(ours.device)], theirs))
    for name, ours, theirs in pairs:
        if not close(ours, theirs, dtype):
            raise Differs(f"gives something else: {name} are not those of a whole pass")


def _fails(error: Exception) -> str:
    return f"fails ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
