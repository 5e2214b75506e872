"""Run only what comes after a layer: the calls that finished before it return their recorded outputs again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import Other, Refusal, Result, attempted, may_refuse
from torchpeek.engine.batching import sample_rows
from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.replay.prefix import PrefixRecording, version_of
from torchpeek.engine.targets.question import Question, RowCountMismatch
from torchpeek.errors import TorchpeekError
from torchpeek.hooks import Forward, ForwardHook, SelectedLayer, at_call, attached, containers, replaced


class ReplayMismatch(TorchpeekError):
    """A replay does not return what a whole pass returns. Its message continues a sentence: "a replay ..."."""


@dataclass(frozen=True)
class BatchAxis:
    """Where a tensor has its samples: `multiplicity` successive entries of `axis` belong to each sample."""

    axis: int | None  # None where the tensor is the same for all samples
    multiplicity: int
    rest: tuple[int, ...]  # the shape without that axis


@dataclass
class ReplayPlan:
    """What is known about replays of one model from one layer, for one kind of input.

    Calls are numbered as in the PrefixRecording.
    """

    calls: Sequence[tuple[type[nn.Module], Mapping[str, BatchAxis]]]  # of each: its module, and its tensors by path
    overwritten: frozenset[int]  # calls whose outputs a whole pass overwrites: copied when they are recorded
    written: frozenset[int] = frozenset()  # calls whose outputs a replay writes into: returned as copies
    layer_written: bool = True  # whether a replay writes into the layer's output
    input_written: bool = True  # and into the input
    largest_batch: int = 0  # validated up to this batch size


# In place of a call's number: the other tensors that a replay may write into.
LAYER, INPUT = -1, -2


@dataclass(frozen=True, eq=False)
class Suffix:
    """What comes after one layer of a model, with the recording of what came before it in one pass.

    Args:
        model: The model.
        layer: The layer, or the call of it.
        layout: The layout of the layer's output.
        call: The call of the recorded pass, N samples.
        prefix: The recorded calls.
        activation: (N, ...), samples first: what the layer returned in the pass.
    """

    model: nn.Module
    layer: SelectedLayer
    layout: Layout
    call: ModelCall
    prefix: PrefixRecording
    activation: Tensor

    def whole_pass(self) -> Any:
        """What the model returns in the recorded pass, made once more."""
        return run(self.model, self.call.for_one_pass())

    @property
    def call_in_replay(self) -> int | None:
        """Where one call is selected: its number among those calls of the layer that take place in a replay.

        The calls inside recorded modules do not. The selected call is the last of the layer's recorded ones, because
        the recording ends with it.
        """
        if self.layer.call is None:
            return None
        return sum(each.module is self.layer.module for each in self.prefix.calls) - 1


@dataclass(eq=False)
class Replay:
    """Runs a suffix for the samples of the recorded pass, by a plan."""

    suffix: Suffix
    plan: ReplayPlan
    _returned: list[tuple[int, Tensor, int | None]] = field(default_factory=list)  # call, tensor, version when returned

    def output(self, activation: Tensor, rows: Tensor, *, copies: bool = False) -> Any:
        """What the model returns when the layer returns `activation`.

        Args:
            activation: (b, ...), samples first. Used as it is where nothing writes into the layer's output.
            rows: (b,): entry i belongs to sample rows[i].
            copies: Return copies of all recorded outputs.

        Raises:
            ReplayMismatch: When the model does not call the recorded modules, or writes into what was recorded.
            Exception: What the model raises in the replay.
        """
        suffix, plan = self.suffix, self.plan
        queues: dict[nn.Module, deque[int]] = {}
        for number, call in enumerate(suffix.prefix.calls):
            queues.setdefault(call.module, deque()).append(number)
        self._returned = []
        activation = activation.clone() if copies or plan.layer_written else activation
        picture = sample_rows(suffix.call.picture, rows)
        # With one row the picture is a view of the stored tensor, so a write would change it. An expanded view of
        # several rows refuses most writes.
        picture = picture.clone() if copies or plan.input_written or len(rows) == 1 else picture
        self._returned += [(LAYER, activation, version_of(activation)), (INPUT, picture, version_of(picture))]

        def run_or_recorded(queue: deque[int], forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if not queue:
                return forward(*args, **kwargs)
            number = queue.popleft()
            call = suffix.prefix.calls[number]
            if not call.finished:
                return forward(*args, **kwargs)
            return containers.mapped(call.output, partial(recorded, number))

        def recorded(number: int, path: str, tensor: Tensor) -> Tensor:
            batch_axis = plan.calls[number][1][path]
            part = entries_of(tensor, batch_axis, suffix.prefix.count, rows)
            if copies or number in plan.written or len(rows) == 1 or batch_axis.axis is None:
                part = part.clone()
            self._returned.append((number, part, version_of(part)))
            return part

        forwards = [(module, partial(run_or_recorded, queue, module.forward)) for module, queue in queues.items()]
        hook = at_call(returning(activation, suffix.layout), suffix.call_in_replay)
        with replaced(forwards), attached([(suffix.layer.module, hook)]):
            output = run(suffix.model, suffix.call.select(rows, picture).for_one_pass(picture))
        if any(queues.values()):
            raise ReplayMismatch("calls other modules than the recorded pass")
        written = self.written()
        plan.layer_written |= LAYER in written  # what was written into once may be again
        if not copies and len(rows) > 1 and any(self._shares_memory(number) for number in written - plan.written):
            plan.written |= written - {LAYER, INPUT}
            raise ReplayMismatch("sometimes writes into what was recorded")
        return output

    def _shares_memory(self, number: int) -> bool:
        """Whether what a call returned in the replay shares memory with its recorded output, or with the input."""
        stored = [self.suffix.call.picture] if number == INPUT else []
        if number >= 0:
            stored = [tensor for _, tensor in containers.leaves(self.suffix.prefix.calls[number].output)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in stored}
        return any(part.untyped_storage().data_ptr() in memory for each, part, _ in self._returned if each == number)

    def written(self) -> frozenset[int]:
        """The calls whose outputs the last replay has written into; LAYER and INPUT for the layer's and the input."""
        return frozenset(
            number for number, part, version in self._returned if version is None or version_of(part) != version
        )

    def confirm(self, output: Any, question: Question) -> None:
        """Check the replay against the recorded pass: the layer's own activation must give the pass's `output`.

        Raises:
            ReplayMismatch: When it does not.
        """
        rows = torch.arange(len(self.suffix.call))
        ours = replayed(lambda: self.output(self.suffix.activation.clone(), rows), self.suffix.whole_pass)
        check_equal(output, ours, rows, len(rows), self.suffix.activation.dtype, question, rows)


def returning(value: Tensor, layout: Layout) -> ForwardHook:
    """A hook that puts `value` (n, ...), samples first, in the place of the tensor that its module returns."""
    return lambda module, args, output: layout.returned(output, value)


def entries_of(tensor: Tensor, batch_axis: BatchAxis, count: int, rows: Tensor) -> Tensor:
    """The entries of the samples `rows` in a tensor with `count` samples."""
    axis, multiplicity = batch_axis.axis, batch_axis.multiplicity
    if axis is None:
        return tensor
    if multiplicity == 1:
        return sample_rows(tensor, rows, axis)
    rows = rows.to(tensor.device)
    folded = tensor.reshape(*tensor.shape[:axis], count, multiplicity, *tensor.shape[axis + 1 :])
    return folded.index_select(axis, rows).flatten(axis, axis + 1)


def check_equal(
    whole: Any, replayed: Any, picked: Tensor, batch: int, dtype: torch.dtype, question: Question, rows: Tensor
) -> None:
    """Check the entries `picked` of a replay's output against the output of a whole pass over these entries alone.

    Compared are the scores, and every floating-point tensor that has one entry for each sample.

    Raises:
        ReplayMismatch: When they differ by more than rounding in `dtype`.
    """
    pairs = [("the scores", question(replayed, rows)[picked], question(whole, rows[picked]))]
    parts = dict(containers.leaves(whole))
    for path, ours in containers.leaves(replayed):
        theirs = parts.get(path)
        if theirs is None:
            raise ReplayMismatch("returns other parts")
        if theirs.is_floating_point() and theirs.ndim and len(theirs) == len(picked) and len(ours) == batch:
            pairs.append((f"the outputs {path!r}" if path else "the outputs", ours[picked.to(ours.device)], theirs))
    for name, ours, theirs in pairs:
        if not close(ours, theirs, dtype):
            raise ReplayMismatch(f"gives something else: {name} are not those of a whole pass")


def replayed(compute: Callable[[], Result], whole_pass: Callable[[], Other]) -> Result:
    """What `compute` returns, which makes replays; `whole_pass` shows whether the model itself fails.

    Raises:
        ReplayMismatch: When the replays fail and the whole pass does not, or as `compute` does.
    """

    def possible(error: Exception) -> bool:
        return may_refuse(error) and not isinstance(error, (ReplayMismatch, RowCountMismatch))

    result = attempted(compute, whole_pass, possible=possible)
    if isinstance(result, Refusal):
        raise ReplayMismatch(f"fails ({result.reason})")
    return result
