"""Run only what comes after a layer: what was over before the layer returned, returns again what it returned.

A pass is noted once: for each outermost module that was over before the layer returned, what its `forward` returned,
before any hook. In a replay these modules return that again, expanded to the batch at hand, the layer returns the
activation that is asked about, and everything else runs. Whether that is what whole passes give is checked for each
model and layer, twice, before it is relied on.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.errors import TorchpeekError
from torchpeek.hooks import attached, nested
from torchpeek.hooks.attach import ForwardHook
from torchpeek.hooks.forwards import Forward, replaceable, replaced

# How far a replay may be off whole passes, relative to the largest number: rounding, as other batch sizes have it.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class Differs(TorchpeekError):
    """A replay does not give what whole passes give. Its message goes on from "a replay ..."."""


@dataclass(eq=False)
class _Call:
    """One call of a module, as noted. It is over, or it holds the layer and has to run again."""

    module: nn.Module
    output: Any = None
    over: bool = False


class Notes:
    """What one pass over `count` samples left behind of the outermost calls that were over before the layer returned.

    Used as `with replaced(notes.forwards(model))` around a pass, with `notes.closing` as the layer's last hook, and
    `notes.checked()` at last. `copied` says of which calls, by number, the outputs are overwritten later on, so that a
    copy has to be taken; None says that this is not known, and takes one of each.
    """

    def __init__(self, count: int, copied: frozenset[int] | None = None) -> None:
        self.count = count
        self.calls: list[_Call] = []
        self.overwritten: frozenset[int] = frozenset()
        self._copied = copied
        self._seen: dict[int, list[tuple[Tensor, int | None]]] = {}  # by call: tensors as returned, and their versions
        self._open = True
        self._thread = threading.get_ident()

    def forwards(self, model: nn.Module) -> Iterable[tuple[nn.Module, Forward]]:
        return [(module, partial(self._noted, module, module.forward)) for module in replaceable(model)]

    def closing(self, *returned: Any) -> None:
        """The layer's hook: it has returned, and what happens from now on is not noted."""
        if threading.get_ident() == self._thread:
            self._open = False

    def checked(self) -> Notes | None:
        """These notes after the pass, or None where one that was not copied has been written into since."""
        changed = {
            number
            for number, tensors in self._seen.items()
            if any(version is None or _version(tensor) != version for tensor, version in tensors)
        }
        self._seen.clear()
        self.overwritten = frozenset(changed)
        return self if self._copied is None or changed <= self._copied else None

    @property
    def nbytes(self) -> int:
        """What they hold."""
        tensors = (tensor for call in self.calls for _, tensor in nested.leaves(call.output))
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def _noted(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if not self._open or threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        number = len(self.calls)
        call = _Call(module)
        self.calls.append(call)
        output = forward(*args, **kwargs)
        if self._open:
            for part in range(number + 1, len(self.calls)):
                self._seen.pop(part, None)
            del self.calls[number + 1 :]  # what it called is part of it
            self._seen[number] = [(tensor, _version(tensor)) for _, tensor in nested.leaves(output)]
            copy = self._copied is None or number in self._copied
            call.output = nested.mapped(output, lambda _, each: each.detach().clone() if copy else each.detach())
            call.over = True
        return output


@dataclass
class _Plan:
    """What is known of the replays of one model at one layer, for inputs of one kind."""

    shapes: Sequence[Any]  # of each call: the module's type, and of each tensor its path, axis, multiplicity and shape
    overwritten: frozenset[int]  # outputs that a pass overwrites: copied when noted
    fresh: frozenset[int] = frozenset()  # outputs that a replay writes into: handed out as copies
    layer_written: bool = True  # whether the layer's own output is written into
    checked: int = 0  # up to this batch size


@dataclass(eq=False)
class Replay:
    """The suffix of a model after one layer, for the samples of one noted pass."""

    model: nn.Module
    layer: nn.Module
    notes: Notes
    plan: _Plan
    _written: set[int] = field(default_factory=set)  # what the last replay wrote into

    def output(self, changed: Tensor, inputs: Tensor, rows: Tensor, *, copies: bool = False) -> Any:
        """What the model returns when the layer returns `changed` (b, ...), entry i being of sample rows[i].

        `changed` is handed on as it is where nothing writes into the layer's output. With `copies` everything is
        handed on as a copy. Raises Differs where the model does not call the same modules as when it was noted.
        """
        queues: dict[nn.Module, deque[int]] = {}
        for number, call in enumerate(self.notes.calls):
            queues.setdefault(call.module, deque()).append(number)
        handed: list[tuple[int, Tensor, int | None]] = []
        if copies or self.plan.layer_written:
            changed = changed.clone()
        before, only = _version(changed), _only_one(rows)
        thread = threading.get_ident()

        def again(queue: deque[int], forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or not queue:
                return forward(*args, **kwargs)
            number = queue.popleft()
            call = self.notes.calls[number]
            if not call.over:
                return forward(*args, **kwargs)
            copy = copies or number in self.plan.fresh

            def expanded(path: str, tensor: Tensor) -> Tensor:
                axis, multiplicity = self.plan.shapes[number][1][path][:2]
                given = _of_rows(tensor, axis, multiplicity, self.notes.count, rows, only)
                given = given.clone() if copy else given
                handed.append((number, given, _version(given)))
                return given

            return nested.mapped(call.output, expanded)

        forwards = [(module, partial(again, queue, module.forward)) for module, queue in queues.items()]
        try:
            with replaced(forwards), attached([(self.layer, returning(changed))]):
                output = run(self.model, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise Differs(f"fails ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})") from error
        if any(queues.values()):
            raise Differs("calls other modules than the pass that was noted")
        self._written = {number for number, given, version in handed if version is None or _version(given) != version}
        if before is None or _version(changed) != before:
            self._written.add(-1)
        return output


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
    model: nn.Module, name: str, layer: nn.Module, inputs: Tensor, activation: Tensor, notes: Notes, batch: int
) -> Replay:
    """A replay that is known to be right for up to `batch` at once; compared with whole passes if it is not yet.

    `activation` is what the layer returned of `inputs`. Raises Differs, which says why, where a replay is not right.
    """
    plans, key = _PLANS.setdefault(model, {}), _key(name, inputs)
    plan = plans.get(key)
    if isinstance(plan, str):
        raise Differs(plan)
    if plan is None or plan.checked < batch or not _fits(plan, notes):
        if any(isinstance(module, nn.DataParallel) for module in model.modules()):
            raise Differs("is not possible: the model runs as replicas on several devices")
        try:
            plan = plans[key] = _learned(model, layer, inputs, activation, notes, batch)
        except (Differs, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the whole passes will show whether it is the model's own
            raise Differs(f"fails ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})") from error
    return Replay(model, layer, notes, plan)


def returning(value: Tensor) -> ForwardHook:
    """A hook that lets its module return `value`."""

    def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
        return value

    return hook


def of_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """(N, ...) -> (b, ...): the samples `rows` (b,). A view that repeats it, where all are one and the same."""
    return _of_rows(tensor, 0, 1, len(tensor), rows, _only_one(rows))


def _only_one(rows: Tensor) -> int | None:
    """The sample that all of them are, if they are."""
    first = int(rows[0])
    return first if bool((rows == first).all()) else None


def _of_rows(tensor: Tensor, axis: int | None, multiplicity: int, count: int, rows: Tensor, only: int | None) -> Tensor:
    if axis is None:  # not by sample
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


def _learned(model: nn.Module, layer: nn.Module, inputs: Tensor, activation: Tensor, notes: Notes, batch: int) -> _Plan:
    """Two whole passes of a few samples against two replays of `batch`, in which the layer says something else.

    The whole passes are of another number of samples than the noted one: which axis of an output is the batch is read
    from the difference. A replay that writes into what it was handed corrupts only later ones, hence the second, which
    hands out copies no more than the third will.
    """
    count = len(inputs)
    sizes = [size for size in (2, 3, 1) if size <= batch and size != count]
    few = sizes[0] if sizes else batch
    rows = torch.arange(batch) * count // batch  # of all samples, in order, as evenly as can be
    picked = torch.linspace(0, batch - 1, few).round().long()
    # What a pass leaves behind, past what its modules return, has to be seen to be missing: not of these inputs.
    disturbing = of_rows(inputs, rows[picked]).flip(0, -1) * 0.5
    plan: _Plan | None = None
    for trial in range(2):
        changed = _something_else(of_rows(activation, rows), trial)
        seen = Notes(few, frozenset())
        hooks = [(layer, returning(changed[picked].clone())), (layer, seen.closing)]
        with replaced(seen.forwards(model)), attached(hooks):
            true = run(model, of_rows(inputs, rows[picked]).clone())
        if plan is None:
            plan = _Plan(_shapes(notes, seen, batch), notes.overwritten)
            run(model, disturbing)
        replay = Replay(model, layer, notes, plan)
        again = replay.output(changed, of_rows(inputs, rows), rows, copies=trial == 0)
        if trial and replay._written - {-1} - plan.fresh:
            raise Differs("writes into an output only now and then")
        plan.fresh |= frozenset(replay._written - {-1})
        plan.layer_written = -1 in replay._written
        _compare(true, again, picked, batch, activation.dtype)
    assert plan is not None
    plan.checked = batch
    return plan


def _something_else(activation: Tensor, trial: int) -> Tensor:
    """As large as the activation, but other channels, and different in each entry of the batch."""
    factors = torch.linspace(0.5, 1.5, len(activation), device=activation.device).to(activation.dtype)
    shape = (-1, *(1 for _ in activation.shape[1:]))
    return activation.roll(1 + trial, dims=1).flip(-1) * (factors + 0.25 * trial).view(shape)


def _shapes(notes: Notes, seen: Notes, batch: int) -> list[Any]:
    """For each call its type and, by path, (batch axis, multiplicity, shape without the batch) of its tensors."""
    if [type(call.module) for call in notes.calls] != [type(call.module) for call in seen.calls] or any(
        ours.module is not theirs.module or ours.over != theirs.over
        for ours, theirs in zip(notes.calls, seen.calls, strict=True)
    ):
        raise Differs("calls other modules for another number of samples")
    found = []
    for ours, theirs in zip(notes.calls, seen.calls, strict=True):
        pairs = zip(nested.leaves(ours.output), nested.leaves(theirs.output), strict=True)
        axes = {}
        for (path, one), (other_path, other) in pairs:
            if path != other_path:
                raise Differs(f"is not possible: {type(ours.module).__name__} returns something else for more samples")
            axes[path] = _batch_axis(one.shape, other.shape, notes.count, seen.count, type(ours.module).__name__)
        found.append((type(ours.module), axes))
    return found


def _batch_axis(
    one: torch.Size, other: torch.Size, count: int, other_count: int, name: str
) -> tuple[int | None, int, tuple[int, ...]]:
    differing = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    if not differing:
        return None, 1, tuple(one)
    axis = differing[0]
    if len(differing) > 1 or one[axis] * other_count != other[axis] * count or one[axis] % count:
        raise Differs(
            f"is not possible: {name} returns {tuple(one)} for {count} samples and {tuple(other)} for {other_count}"
        )
    return axis, one[axis] // count, (*one[:axis], *one[axis + 1 :])


def _fits(plan: _Plan, notes: Notes) -> bool:
    """Whether these notes are of the calls that the plan was made for."""
    if len(plan.shapes) != len(notes.calls):
        return False
    for (kind, axes), call in zip(plan.shapes, notes.calls, strict=True):
        if type(call.module) is not kind:
            return False
        tensors = dict(nested.leaves(call.output))
        if tensors.keys() != axes.keys():
            return False
        for path, (axis, multiplicity, rest) in axes.items():
            shape = tuple(tensors[path].shape)
            if axis is not None:
                if axis >= len(shape) or shape[axis] != multiplicity * notes.count:
                    return False
                shape = (*shape[:axis], *shape[axis + 1 :])
            if shape != rest:
                return False
    return True


def _compare(true: Any, again: Any, picked: Tensor, batch: int, dtype: torch.dtype) -> None:
    """Raise Differs unless the replay's entries `picked` are the whole pass's."""
    compared = 0
    for (path, ours), (_, theirs) in zip(nested.leaves(again), nested.leaves(true), strict=True):
        if not theirs.is_floating_point() or theirs.ndim == 0 or len(theirs) != len(picked) or len(ours) != batch:
            continue
        mine = ours.detach()[picked.to(ours.device)].double()
        wanted = theirs.detach().double()
        off = float((mine - wanted).abs().max()) if mine.shape == wanted.shape else float("inf")
        if not off <= _ROUNDING.get(dtype, 1e-3) * float(wanted.abs().max()):
            raise Differs(f"gives an output{path and f' {path!r}'} that is off by {off:.2g}")
        compared += 1
    if not compared:
        raise Differs("gives nothing that can be compared with them")


def _version(tensor: Tensor) -> int | None:
    """How often it has been written into; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
