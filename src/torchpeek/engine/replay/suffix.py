"""Run only what comes after a layer: what was over before the layer returned, returns again what it returned.

A pass is noted once: for each outermost module that was over before the layer returned, what its `forward` returned,
before any hook. In a replay these modules return that again, expanded to the batch at hand, the layer returns the
activation that is asked about, and everything else runs. Whether that is what whole passes give is checked for each
model and layer, twice, before it is relied on, and for each trace by asking for what it knows already.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.replay.prefix import PrefixRecording, version_of
from torchpeek.engine.targets import Question
from torchpeek.errors import TorchpeekError
from torchpeek.hooks import attached, containers
from torchpeek.hooks.patched_forward import Forward, replaced
from torchpeek.hooks.temporary_hooks import ForwardHook


class ReplayMismatch(TorchpeekError):
    """A replay does not give what whole passes give. Its message goes on from "a replay ..."."""


@dataclass(frozen=True)
class Batched:
    """Where the samples are in a tensor: `multiplicity` entries of `axis` for each, one sample's after the other's."""

    axis: int | None  # None where the tensor is not by sample
    multiplicity: int
    rest: tuple[int, ...]  # its shape without that axis


@dataclass
class Plan:
    """What is known of the replays of one model at one layer, for inputs of one kind."""

    calls: Sequence[tuple[type[nn.Module], Mapping[str, Batched]]]  # of each: the module, and its tensors by path
    overwritten: frozenset[int]  # outputs that a pass overwrites: copied when noted
    written: frozenset[int] = frozenset()  # outputs that a replay writes into: handed out as copies
    layer_written: bool = True  # whether the layer's own output is written into
    input_written: bool = True
    checked: int = 0  # up to this batch size


# In the place of a call's number: what else a replay may write into.
LAYER, INPUT = -1, -2


@dataclass(frozen=True, eq=False)
class Suffix:
    """What comes after one layer of a model, as one pass over `given` noted it."""

    model: nn.Module
    name: str
    layer: nn.Module
    layout: Layout
    given: ModelCall
    notes: PrefixRecording
    activation: Tensor  # (N, ...): what the layer returned, samples first


@dataclass(eq=False)
class Replay:
    """Runs a suffix, for the samples of the pass that noted it."""

    of: Suffix
    plan: Plan
    _handed: list[tuple[int, Tensor, int | None]] = field(default_factory=list)  # and the versions as handed out

    def output(self, changed: Tensor, rows: Tensor, *, copies: bool = False) -> Any:
        """What the model returns when the layer says `changed` (b, ...), samples first; entry i is of sample rows[i].

        `changed` is handed on as it is where nothing writes into the layer's output. With `copies` everything is
        handed on as a copy. Raises Differs where the model fails, or does not call the modules that were noted.
        """
        plan, only = self.plan, _only_one(rows)
        queues: dict[nn.Module, deque[int]] = {}
        for number, call in enumerate(self.of.notes.calls):
            queues.setdefault(call.module, deque()).append(number)
        self._handed = []
        changed = changed.clone() if copies or plan.layer_written else changed
        picture = part_of(self.of.given.picture, Batched(0, 1, ()), len(self.of.given), rows, only)
        # A view of one sample is the very one that is kept; into one that repeats it nearly nothing can write.
        picture = picture.clone() if copies or plan.input_written or len(rows) == 1 else picture
        self._handed += [(LAYER, changed, version_of(changed)), (INPUT, picture, version_of(picture))]
        thread = threading.get_ident()

        def again(queue: deque[int], forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or not queue:
                return forward(*args, **kwargs)
            number = queue.popleft()
            call = self.of.notes.calls[number]
            if not call.over:
                return forward(*args, **kwargs)
            return containers.mapped(call.output, partial(handed, number))

        def handed(number: int, path: str, tensor: Tensor) -> Tensor:
            where = plan.calls[number][1][path]
            part = part_of(tensor, where, self.of.notes.count, rows, only)
            part = part.clone() if copies or number in plan.written or len(rows) == 1 or where.axis is None else part
            self._handed.append((number, part, version_of(part)))
            return part

        forwards = [(module, partial(again, queue, module.forward)) for module, queue in queues.items()]
        try:
            with replaced(forwards), attached([(self.of.layer, returning(changed, self.of.layout))]):
                output = run(self.of.model, self.of.given.of(rows, picture).handed(picture))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ReplayMismatch(fails(error)) from error
        if any(queues.values()):
            raise ReplayMismatch("calls other modules than the pass that was noted")
        written = self.written()
        plan.layer_written |= LAYER in written  # for once it did, and may do so again
        if not copies and len(rows) > 1 and any(self._is_kept(number) for number in written - plan.written):
            plan.written |= written - {LAYER, INPUT}
            raise ReplayMismatch("writes into what was noted, now and then")
        return output

    def _is_kept(self, number: int) -> bool:
        """Whether what was handed out for a call shares memory with what is kept of it, or with the inputs."""
        kept = [self.of.given.picture] if number == INPUT else []
        if number >= 0:
            kept = [tensor for _, tensor in containers.leaves(self.of.notes.calls[number].output)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in kept}
        return any(part.untyped_storage().data_ptr() in memory for each, part, _ in self._handed if each == number)

    def written(self) -> frozenset[int]:
        """The numbers of the calls whose outputs the last replay has written into; the layer's and the input's."""
        return frozenset(
            number for number, part, version in self._handed if version is None or version_of(part) != version
        )

    def confirm(self, output: Any, question: Question) -> None:
        """Raise Differs unless the layer's own activation gives what the noted pass gave."""
        rows = torch.arange(len(self.of.given))
        again = self.output(self.of.activation.clone(), rows)
        compare(output, again, rows, len(rows), self.of.activation.dtype, question, rows)


def returning(value: Tensor, layout: Layout) -> ForwardHook:
    """A hook that lets its module say `value` (n, ...), samples first, in what it returns, in this thread."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return layout.returned(output, value) if threading.get_ident() == thread else None

    return hook


def of_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """(N, ...) -> (b, ...): the samples `rows` (b,). A view that repeats it, where all are one and the same."""
    return part_of(tensor, Batched(0, 1, ()), len(tensor), rows, _only_one(rows))


def _only_one(rows: Tensor) -> int | None:
    """The sample that all of them are, if they are."""
    first = int(rows[0])
    return first if bool((rows == first).all()) else None


def part_of(tensor: Tensor, where: Batched, count: int, rows: Tensor, only: int | None) -> Tensor:
    """Of a tensor that has `count` samples, those of `rows`; `only` is the sample that all of them are, if they are."""
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


def compare(
    true: Any, again: Any, picked: Tensor, batch: int, dtype: torch.dtype, question: Question, rows: Tensor
) -> None:
    """Raise Differs unless the replay's entries `picked` are the whole pass's: scores, and all that is by sample."""
    pairs = [("the scores", question(again, rows)[picked], question(true, rows[picked]))]
    parts = dict(containers.leaves(true))
    for path, ours in containers.leaves(again):
        theirs = parts.get(path)
        if theirs is None:
            raise ReplayMismatch("returns other parts")
        if theirs.is_floating_point() and theirs.ndim and len(theirs) == len(picked) and len(ours) == batch:
            pairs.append((f"the outputs {path!r}" if path else "the outputs", ours[picked.to(ours.device)], theirs))
    for name, ours, theirs in pairs:
        if not close(ours, theirs, dtype):
            raise ReplayMismatch(f"gives something else: {name} are not those of a whole pass")


def fails(error: Exception) -> str:
    """The message of a Differs where the model raised."""
    return f"fails ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
