"""statistics(): what flows through each layer over a data set, and back, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.anatomy.table import Table
from torchpeek.engine import ModelCall, ModelRunner, preserved, run
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, closest
from torchpeek.hooks import Calls, Selection, containers, keep, record, select
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.interrupts import interruptible
from torchpeek.models import Model, given_to, module_of

Loss: TypeAlias = Callable[..., Tensor]
"""Called as `loss(output)`, or as `loss(output, target)` for batches of a pair (inputs, target); one number."""


@dataclass(frozen=True)
class LayerStatistics:
    """One call of a layer, or one tensor of it where it returns several: what it returned, and what flowed back.

    Its name is the layer's; `relu[1]` is the second call of a pass, `lstm:1.0` what is at that path of the output.
    """

    name: str
    type: str
    output: RunningStatistics | None  # None where there is none, and `remark` says why
    gradient: RunningStatistics | None
    remark: str = ""
    first_not_finite: int | None = None  # the batch, from 0, in which NaN or infinity first came out of it
    first_not_finite_gradient: int | None = None  # and in which it first flowed back to it


@dataclass(frozen=True, repr=False)
class Statistics(Table[LayerStatistics]):
    """Statistics of each layer, in the order in which they ran; `[name]` are those of that name."""

    rows: tuple[LayerStatistics, ...]
    batches: int

    header = ("layer", "type", "of", "mean", "std", "min", "max", "zeros", "dead", "NaN", "inf")

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a number as in a tuple, or a name
        if not isinstance(index, str):
            return self.rows[index]
        matching = [row for row in self.rows if row.name == index]
        if not matching:
            names = [row.name for row in self.rows]
            raise LayerNotFound(f"no statistics of layer {index!r}{closest(index, names)}; there are {len(names)}")
        return matching[0]

    @property
    def first_not_finite(self) -> str | None:
        """The layer that first returned NaN or infinity: in the first batch that had any, the first that ran."""
        return _first(self.rows, lambda row: row.first_not_finite)

    @property
    def first_not_finite_gradient(self) -> str | None:
        """The layer to whose output NaN or infinity first flowed back: the last that ran, in the first such batch."""
        return _first(self.rows[::-1], lambda row: row.first_not_finite_gradient)

    def cells(self) -> list[tuple[str, ...]]:
        """As `Table.cells`."""
        cells = []
        for row in self.rows:
            for what, values in (("output", row.output), ("gradient", row.gradient)):
                if values is not None and values.calls:
                    cells.append((row.name, row.type, what, *_numbers(values)))
            if row.output is None:
                cells.append((row.name, row.type, row.remark, *[""] * 8))
        return cells

    @property
    def footer(self) -> str:
        """How much it was, and what is wrong."""
        parts = [f"{self.batches} batches"]
        if self.first_not_finite is not None:
            parts.append(f"NaN or infinity first came out of {self.first_not_finite}")
        if self.first_not_finite_gradient is not None:
            parts.append(f"NaN or infinity first flowed back to {self.first_not_finite_gradient}")
        return "; ".join(parts)


def statistics(
    model: Model,
    batches: Iterable[Any],
    layers: Selection | None = None,
    *,
    exclude: Selection | None = None,
    loss: Loss | None = None,
    histogram: bool = True,
    channel_axis: int | None = None,
) -> Statistics:
    """Statistics of what these layers, or all that have no layers in them, return over all batches, in eval mode.

    `batches` are what the model takes, or pairs (inputs, target) as a DataLoader gives them; a lone tensor is one
    batch. With a `loss`, such as `torch.nn.functional.cross_entropy`, also of the gradients with respect to what the
    layers return; no `.grad` is touched. Every value counts; the histogram takes in at most 65,536 of a layer and call.
    What is NaN or infinite is counted, and left out of the rest. Memory does not grow with the batches.

    Channels are on axis 1 or the last, whichever has as many as the last layer in it, or before it, that has channels;
    `channel_axis` says otherwise. The model is left exactly as it was found. Raises InputError where there are no
    batches.
    """
    module = ModelRunner(module_of(model)).model
    selected = select(module, _leaves(module) if layers is None else layers, exclude=exclude)
    tape = record(
        module,
        list(selected.values()),
        gradients=loss is not None,
        keep=keep.Running(histogram=histogram, channel_axis=channel_axis),
        # The values are read as the layer returns, before anything could write into them.
        snapshot="alias",
    )
    count = 0
    order: dict[tuple[str, int], int] = {}  # of the calls, as they first came
    not_finite: dict[int, int] = {}  # id of statistics -> the batch in which they first saw NaN or infinity
    with preserved(module), tape:
        for call, target in _calls_and_targets(model, _as_caller(batches)):
            with torch.set_grad_enabled(loss is not None):
                output = run(module, call)
                if loss is not None:
                    tape.grad(one_number(loss(output, *target)), retain_graph=False)
            del output  # with its graph, before the next
            for name in tape:
                for layer_call in tape[name]:
                    order.setdefault((name, layer_call.number), layer_call.order)
                    for leaf in layer_call.kept():
                        value = leaf.read()
                        if isinstance(value, RunningStatistics) and value.first_not_finite is not None:
                            not_finite.setdefault(id(value), count)
            count += 1
    if count == 0:
        raise InputError("there are no batches: the iterable is empty, or was used up before")
    ran = sorted(order, key=order.__getitem__)
    rows = [row for name, number in ran for row in _rows(tape[name], number, type(selected[name]).__name__, not_finite)]
    for name in tape:
        if not len(tape[name]):
            rows.append(LayerStatistics(name, type(selected[name]).__name__, None, None, tape.why_not_called(name)))
    return Statistics(tuple(rows), count)


def _leaves(module: nn.Module) -> Selection:
    """Every layer that has none in it; the module itself if it has none."""
    return (lambda name, layer: not layer._modules) if module._modules else module


def _as_caller(batches: Iterable[Any]) -> Iterator[Any]:
    """The caller's batches, made as the caller would make them: Ctrl-C comes through, and in the grad mode from before.

    The modes of the model are ours meanwhile.
    """
    with torch.enable_grad():
        iterator = iter([batches] if isinstance(batches, Tensor) else batches)
    while True:
        with interruptible(), torch.enable_grad():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _calls_and_targets(model: Model, batches: Iterator[Any]) -> Iterator[tuple[ModelCall, tuple[Any, ...]]]:
    for batch in batches:
        inputs, *target = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch,)
        yield given_to(model, inputs), tuple(target)


def one_number(loss: object) -> Tensor:
    """The loss, if that is what it is."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the loss is {what}; allowed: a tensor of one number, such as the mean over the batch")
    if not loss.requires_grad:
        raise GradUnavailable("the loss does not depend on the output by way of a gradient: was it detached?")
    return loss


def _rows(calls: Calls, number: int, kind: str, not_finite: dict[int, int]) -> Iterator[LayerStatistics]:
    call = calls[number]
    name = call.layer if len(calls) == 1 else f"{call.layer}[{number}]"
    gradients = dict(containers.leaves(call.grad_output, RunningStatistics)) if call.has_gradients else {}
    outputs = dict(containers.leaves(call.output, RunningStatistics))
    if not outputs:
        yield LayerStatistics(name, kind, None, None, "returned no tensor")
    for path, output in outputs.items():
        gradient = gradients.get(path)
        yield LayerStatistics(
            f"{name}:{path}" if path else name,
            kind,
            output,
            gradient,
            first_not_finite=not_finite.get(id(output)),
            first_not_finite_gradient=not_finite.get(id(gradient)),
        )


def _numbers(statistics: RunningStatistics) -> tuple[str, ...]:
    s = statistics.summary()
    return (
        *(f"{value:.4g}" for value in (s.mean, s.std, s.min, s.max)),
        f"{s.zero_share:.1%}",
        f"{s.dead}/{s.channels}",
        str(s.nan),
        str(s.inf),
    )


def _first(rows: Sequence[LayerStatistics], batch: Callable[[LayerStatistics], int | None]) -> str | None:
    """The first row among those of the first batch."""
    firsts = [(first, row.name) for row in rows if (first := batch(row)) is not None]
    return min(firsts, key=lambda pair: pair[0])[1] if firsts else None
