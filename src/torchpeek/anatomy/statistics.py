"""statistics(): running statistics of activations and gradients over a data set, in constant memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.anatomy.batch_entries import Entries, calls_and_targets
from torchpeek.anatomy.dry_pass import DryPass, dry_pass
from torchpeek.anatomy.functional_statistics import FunctionStatistics
from torchpeek.anatomy.table import Table
from torchpeek.engine import inspectable_module, preserved, run, with_known_totals
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, NotFired, closest, listed_names, notify
from torchpeek.hooks import (
    Calls,
    Recording,
    SelectedLayer,
    Selection,
    attached,
    call_name,
    computing_layers,
    containers,
    no_such_call,
    record,
    select,
    select_modules,
)
from torchpeek.hooks.recording.keep import LenientRunning, NoStatistics
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.hooks.recording.storage import Leaf
from torchpeek.interrupts import interruptible
from torchpeek.keywords import checked_keywords
from torchpeek.render.axes_plots import spread_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from torchpeek.models import Model, module_of

Loss: TypeAlias = Callable[..., Tensor]
"""Called as `loss(output)`, or as `loss(output, target)` for batches (inputs, target); returns one number."""


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one call of a layer, or of one tensor of its output if it returns several.

    Args:
        name: Name of the layer. `relu[1]` is the second call in a pass, `lstm:1.0` the tensor at that path of the
            output. `block.relu()[1]` is the second rectifier that `block` calls as a function, such as `F.relu(x)`.
        type: Name of the layer's class; "function" for a function.
        output: Statistics of the output. None if there is none; `remark` says why.
        gradient: Statistics of the gradient with respect to the output, or None.
        remark: Why there is no output, or what is unclear about its channels.
        first_not_finite: Index of the first batch whose output has NaN or infinity, or None.
        first_not_finite_gradient: Index of the first batch whose gradient has NaN or infinity, or None.
    """

    name: str
    type: str
    output: RunningStatistics | None
    gradient: RunningStatistics | None
    remark: str = ""
    first_not_finite: int | None = None
    first_not_finite_gradient: int | None = None


@dataclass(frozen=True, repr=False)
class Statistics(Table[LayerStatistics]):
    """The statistics of each layer, in the order in which they ran. `[name]` returns those of one layer.

    Args:
        rows: A row for each call of a layer, and each tensor that it returns.
        batches: The number of batches.
    """

    rows: tuple[LayerStatistics, ...]
    batches: int

    header = ("layer", "type", "of", "mean", "std", "min", "max", "zeros", "dead", "NaN", "inf")

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an index as in a tuple, or a name
        if not isinstance(index, str):
            return self.rows[index]
        matching = [row for row in self.rows if row.name == index]
        if not matching:
            names = [row.name for row in self.rows]
            raise LayerNotFound(f"no statistics of layer {index!r}{closest(index, names)}; there are {len(names)}")
        return matching[0]

    @property
    def left_out(self) -> dict[str, str]:
        """The layers without statistics, by name, with the reason.

        They were not called, or what they return has no statistics, such as class indices.
        """
        return {row.name: row.remark for row in self.rows if row.output is None}

    @property
    def first_not_finite(self) -> str | None:
        """The layer that first returned NaN or infinity: the first that ran, in the first such batch."""
        return _first(self.rows, lambda row: row.first_not_finite)

    @property
    def first_not_finite_gradient(self) -> str | None:
        """The layer whose output gradient first had NaN or infinity: the last that ran, in the first such batch."""
        return _first(self.rows[::-1], lambda row: row.first_not_finite_gradient)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the mean of each output, with one standard deviation above and below it. Needs the extra `plot`.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.

        Returns:
            The matplotlib Axes.

        Raises:
            InputError: When no layer has statistics.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            >>> axes = tp.statistics(model, [torch.rand(2, 3, 8, 8)]).plot()
            >>> [label.get_text() for label in axes.get_xticklabels()]
            ['0', '1']
        """
        summaries = {row.name: row.output.summary() for row in self.rows if row.output is not None and row.output.calls}
        if not summaries:
            raise InputError("no layer has statistics, so there is nothing to plot")
        means, deviations = [each.mean for each in summaries.values()], [each.std for each in summaries.values()]
        return spread_plot(ax, list(summaries), means, deviations)

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
        cells = []
        output = "output" if any(row.gradient is not None for row in self.rows) else ""  # the column is needed for both
        for row in self.rows:
            for what, values in ((output, row.output), ("gradient", row.gradient)):
                if values is not None and values.calls:
                    cells.append((row.name, row.type, what, *_numbers(values)))
            if row.output is None:
                cells.append((row.name, row.type, "left out", *[""] * 8))
        return cells

    @property
    def footer(self) -> str:
        """The number of batches, where NaN or infinity first appeared, and why layers are left out."""
        parts = [f"{self.batches:,} batch{'es' * (self.batches != 1)}"]
        if self.first_not_finite is not None:
            parts.append(f"NaN or infinity first came out of {self.first_not_finite}")
        if self.first_not_finite_gradient is not None:
            parts.append(f"NaN or infinity first flowed back to {self.first_not_finite_gradient}")
        remarks = [f"{row.name}: {row.remark}" for row in self.rows if row.remark]
        return "\n".join(["; ".join(parts), *remarks])


@checked_keywords
def statistics(
    model: Model,
    batches: Iterable[Any],
    layers: Selection | None = None,
    *,
    exclude: Selection | None = None,
    arguments: Entries | None = None,
    target: Entries | None = None,
    loss: Loss | None = None,
    histogram: bool = True,
    channel_axis: int | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Statistics:
    """Return running statistics of the outputs of layers over all batches, in eval mode.

    Every value counts; only the histogram is of at most 65,536 values for each layer and call. NaN and infinity are
    counted, and left out of all other numbers. Memory does not grow with the number of batches. A layer whose output
    has no statistics does not stop the others: `Statistics.left_out` names it with the reason. The model is left
    exactly as it was found, and no `.grad` is touched.

    Args:
        model: An nn.Module or a LoadedModel.
        batches: An iterable of inputs, as in `activations`, or of pairs (inputs, target), as a DataLoader yields them.
            A single tensor is one batch.
        layers: Which layers, selected as in `activations`. None is every layer that computes: the modules without
            others in them, those with parameters of their own, such as a MultiheadAttention or a convolution with a
            parametrised weight, and those that return what none of the layers inside has returned, such as a residual
            sum. With None there are also the outputs of rectifiers that modules call as functions, such as `F.relu(x)`:
            their zeros and dead channels count, too.
        exclude: Layers to leave out, selected in the same ways.
        arguments: What of a batch the model is called with: the position or name of an entry, several of these as its
            positional or keyword arguments, or a function of the batch. For a loader of pairs whose two entries are
            both inputs, give (0, 1). None is the batch itself, or the first of a pair.
        target: What of a batch the loss takes beside the output, in the same forms. None is what `arguments` leaves.
        loss: A function (output, target) -> one number, such as `torch.nn.functional.cross_entropy`, or (output)
            without a target. With it, there are statistics of the gradients with respect to the outputs, too.
        histogram: Whether to keep a histogram.
        channel_axis: The axis of the channels. None infers it: axis 1 or the last axis, by the types and the sizes of
            the layer and its neighbours, and never an axis whose length depends on the batch. Where that leaves both,
            a notice says so once. Where the length of the channel axis varies, all channels count as one.
        reduce: A function of each tensor; the statistics are those of its result. `torch.abs` makes them those of the
            magnitudes of complex numbers.

    Returns:
        Statistics: a row for each call of a layer, in the order in which they ran, with the statistics of the output
        and of the gradient.

    Raises:
        InputError: When there are no batches, the loss is not one number, or a batch does not say what the model is
            called with.
        GradUnavailable: When the loss does not depend on the output.
        LayerNotFound: When the selection matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> table = tp.statistics(model, [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)])
        >>> table.batches, table["1"].output.summary().min >= 0
        (2, True)
    """
    module = inspectable_module(module_of(model))
    selected: Mapping[str, SelectedLayer] = {}
    if layers is not None:
        selected = select(module, layers, exclude=exclude)
    count = 0
    order: dict[tuple[str, int], float] = {}  # (layer, call) -> its order in the first pass
    not_finite: dict[int, int] = {}  # id of statistics -> first batch with NaN or infinity
    with preserved(module):
        calls = calls_and_targets(model, _as_caller(batches), arguments, target)
        first = next(calls, None)
        if first is None:
            raise InputError("there are no batches: the iterable is empty or exhausted")
        # Where both are set, a dry pass has nothing to decide.
        dry = dry_pass(module, first[0]) if layers is None or channel_axis is None else None
        if layers is None:
            selected = select(module, _layers_that_compute(module, dry), exclude=exclude)
        selected = with_known_totals(module, first[0], selected)
        # A call that is counted from the end is recorded by its number: its values are read when the layer returns.
        recorded: dict[str, list[SelectedLayer]] = {}  # "act[1]" and "act[-1]" may be one
        for layer in selected.values():
            recorded.setdefault(_recorded_name(layer), []).append(layer)
        counted = _CountedCalls([layer for layer in selected.values() if layer.counts_from_end])
        policy = LenientRunning(histogram=histogram, channel_axis=channel_axis, reduce=reduce)
        tape = record(
            module,
            list(recorded),
            gradients=loss is not None,
            keep=policy,
            # The values are read when the layer returns, before anything can write into them.
            snapshot="alias",
        )
        functions = FunctionStatistics(module, dry, policy)
        if exclude is not None:
            functions.exclude(select_modules(module, exclude).values())
        calls = chain([first], calls)
        del first  # frees it after its turn
        with ExitStack() as stack:
            stack.enter_context(tape)
            stack.enter_context(attached(counted.hooks()))
            if layers is None:
                stack.enter_context(functions.observed({name: each.module for name, each in selected.items()}))
            for call, targets in calls:
                functions.start_pass()
                with torch.set_grad_enabled(loss is not None):
                    output = run(module, call)
                    if loss is not None:
                        tape.grad(one_number(loss(output, *targets)), retain_graph=False)
                del output  # frees its graph before the next batch
                counted.check(count)
                found, known = functions.leaves(), len(order)
                for name in tape:
                    for layer_call in tape[name]:
                        order.setdefault((name, layer_call.number), layer_call.order)
                        found += [leaf.read() for leaf in layer_call.stored()]
                for value in found:
                    if isinstance(value, RunningStatistics) and value.first_not_finite is not None:
                        not_finite.setdefault(id(value), count)
                if dry is not None and channel_axis is None:
                    functions.settle_channels()
                    if len(order) > known:
                        _settle_channels(tape, recorded, dry)
                count += 1
    rows = [
        (order[name, number], row)
        for name, number in order
        for layer in recorded[name]
        for row in _rows(tape[name], layer, number, not_finite)
    ]
    for name, leaf, after in functions.found():
        place = order.get(after, -1.0) if after is not None else -1.0
        rows.append((place + 0.5, _function_row(name, leaf, not_finite)))
    rows.sort(key=lambda pair: pair[0])
    for name in tape:
        if not len(tape[name]):
            why = tape.why_not_called(name)
            rows += [
                (math.inf, LayerStatistics(layer.name, type(layer.module).__name__, None, None, why))
                for layer in recorded[name]
            ]
    return Statistics(tuple(_with_remarks([row for _, row in rows], channel_axis)), count)


def _layers_that_compute(module: nn.Module, dry: DryPass | None) -> Selection:
    """Select the layers that compute, by their structure and by what a dry pass has shown."""
    shown = DryPass() if dry is None else dry
    found = computing_layers(module, pass_through=shown.pass_through, own_output=shown.own_output)
    chosen = {id(layer) for layer in found}
    # A predicate, of which scripted layers are left out.
    return module if chosen == {id(module)} else lambda name, layer: id(layer) in chosen


def _settle_channels(tape: Recording, recorded: Mapping[str, list[SelectedLayer]], dry: DryPass) -> None:
    """Decide on which axis the channels of each layer are, after the first batch that calls it."""
    for name in tape:
        layer = recorded[name][0]
        for call in tape[name]:
            number = call.number if layer.index is None else layer.index
            for container in (call.output, call.grad_output if call.has_gradients else None):
                for path, statistics in containers.leaves(container, RunningStatistics):
                    dry.settle_channels(statistics, dry.names[id(layer.module)], number, path)


def _with_remarks(rows: Sequence[LayerStatistics], channel_axis: int | None) -> list[LayerStatistics]:
    """The rows, with what is unclear about the channels. Where something is, a notice says so once."""
    found = []
    for row in rows:
        output = row.output
        if output is not None and len(output.first_shape) > 1 and channel_axis is None:
            if output.is_ambiguous:
                where = f"axis {output.channel_axis} of {output.first_shape}"
                row = replace(row, remark=f"{output.channels} channels are taken to be on {where}")
            elif output.channel_axis is None:
                row = replace(row, remark="counted as one channel, because the lengths of its axes vary")
        found.append(row)
    if unclear := [row.name for row in found if row.output is not None and row.output.is_ambiguous]:
        notify(
            f"it is unclear on which axis the channels are in {listed_names(unclear)}; their remarks say which is "
            "taken. channel_axis= sets it"
        )
    if pooled := [row.name for row in found if row.remark.startswith("counted as one")]:
        notify(
            f"all values count as one channel in {listed_names(pooled)}, because the lengths of the axes vary with the "
            "batch. channel_axis= sets the axis of the channels"
        )
    return found


def _recorded_name(layer: SelectedLayer) -> str:
    """The name of the layer or call, counted from the start. Raises NotFired where there are too few calls."""
    if layer.index is not None and layer.index < 0:
        raise NotFired(no_such_call(layer, layer.total or 0))
    return call_name(layer.path, layer.index)


class _CountedCalls:
    """Checks that each batch makes as many calls of these layers as the first: then the last call has one number."""

    def __init__(self, layers: Sequence[SelectedLayer]) -> None:
        self._layers = layers
        self._calls = Counter[str]()

    def hooks(self) -> list[tuple[nn.Module, Callable[..., None]]]:
        """A forward hook for each layer, which counts."""
        return [(layer.module, partial(self._count, layer.name)) for layer in self._layers]

    def check(self, batch: int) -> None:
        """Raise InputError where this batch made another number of calls, and count anew."""
        for layer in self._layers:
            if self._calls[layer.name] != layer.total:
                raise InputError(
                    f"{layer.name!r} is counted from the end, but batch {batch} called {layer.path!r} "
                    f"{self._calls[layer.name]} times and one sample of batch 0 {layer.total} times, so it is not one "
                    f"call. Count from the start, such as {layer.path + '[0]'!r}"
                )
        self._calls.clear()

    def _count(self, name: str, *hook_arguments: Any) -> None:
        self._calls[name] += 1


def _as_caller(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate over the caller's batches as the caller would: with Ctrl-C and gradients enabled.

    The model stays in eval mode meanwhile.
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


def one_number(loss: object) -> Tensor:
    """Return the loss, after checking that it is one number that depends on the output."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the loss is {what}; allowed: a tensor of one number, such as the mean over the batch")
    if not loss.requires_grad:
        raise GradUnavailable("the loss has no gradient with respect to the output; it may be detached")
    return loss


def _rows(calls: Calls, layer: SelectedLayer, number: int, not_finite: dict[int, int]) -> Iterator[LayerStatistics]:
    call, kind = calls[number], type(layer.module).__name__
    name = layer.name if len(calls) == 1 else call_name(layer.name, number)
    gradients = dict(containers.leaves(call.grad_output, RunningStatistics)) if call.has_gradients else {}
    outputs = dict(containers.leaves(call.output, Leaf))
    if not outputs:
        yield LayerStatistics(name, kind, None, None, "returned no tensor")
    for path, output in outputs.items():
        part = f"{name}:{path}" if path else name
        if isinstance(output, NoStatistics):
            yield LayerStatistics(part, kind, None, None, output.reason)
            continue
        gradient = gradients.get(path)
        assert isinstance(output, RunningStatistics)
        yield LayerStatistics(
            part,
            kind,
            output,
            gradient,
            first_not_finite=not_finite.get(id(output)),
            first_not_finite_gradient=not_finite.get(id(gradient)),
        )


def _function_row(name: str, leaf: RunningStatistics | NoStatistics, not_finite: dict[int, int]) -> LayerStatistics:
    if isinstance(leaf, NoStatistics):
        return LayerStatistics(name, "function", None, None, leaf.reason)
    return LayerStatistics(name, "function", leaf, None, first_not_finite=not_finite.get(id(leaf)))


def _numbers(statistics: RunningStatistics) -> tuple[str, ...]:
    s = statistics.summary()
    return (
        *(f"{value:.4g}" for value in (s.mean, s.std, s.min, s.max)),
        f"{s.zero_share:.1%}",
        f"{s.dead}/{s.channels}",
        f"{s.nan:,}" if s.nan else "",  # empty, so that a table without any has no such column
        f"{s.inf:,}" if s.inf else "",
    )


def _first(rows: Sequence[LayerStatistics], batch: Callable[[LayerStatistics], int | None]) -> str | None:
    """Return the name of the first row among those with the smallest batch."""
    firsts = [(first, row.name) for row in rows if (first := batch(row)) is not None]
    return min(firsts, key=lambda pair: pair[0])[1] if firsts else None
