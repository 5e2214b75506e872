"""statistics(): running statistics of activations and gradients over a data set, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.anatomy.table import Table
from torchpeek.engine import ModelCall, inspectable_module, preserved, run, with_known_totals
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, NotFired, closest
from torchpeek.hooks import (
    Calls,
    SelectedLayer,
    Selection,
    attached,
    call_name,
    containers,
    keep,
    no_such_call,
    record,
    select,
)
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.interrupts import interruptible
from torchpeek.keywords import checked_keywords
from torchpeek.models import Model, model_call_for, module_of
from torchpeek.render.axes_plots import spread_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Loss: TypeAlias = Callable[..., Tensor]
"""Called as `loss(output)`, or as `loss(output, target)` for batches (inputs, target); returns one number."""


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one call of a layer, or of one tensor of its output if it returns several.

    Args:
        name: Name of the layer. `relu[1]` is the second call in a pass, `lstm:1.0` the tensor at that path of the
            output.
        type: Name of the layer's class.
        output: Statistics of the output. None if there is none; `remark` says why.
        gradient: Statistics of the gradient with respect to the output, or None.
        remark: Why there is no output.
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
    """The statistics of each layer, in the order in which they ran. `[name]` returns those of one layer."""

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
        for row in self.rows:
            for what, values in (("output", row.output), ("gradient", row.gradient)):
                if values is not None and values.calls:
                    cells.append((row.name, row.type, what, *_numbers(values)))
            if row.output is None:
                cells.append((row.name, row.type, row.remark, *[""] * 8))
        return cells

    @property
    def footer(self) -> str:
        """The number of batches, and where NaN or infinity first appeared."""
        parts = [f"{self.batches} batches"]
        if self.first_not_finite is not None:
            parts.append(f"NaN or infinity first came out of {self.first_not_finite}")
        if self.first_not_finite_gradient is not None:
            parts.append(f"NaN or infinity first flowed back to {self.first_not_finite_gradient}")
        return "; ".join(parts)


@checked_keywords
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
    """Return running statistics of the outputs of layers over all batches, in eval mode.

    Every value counts; only the histogram is of at most 65,536 values for each layer and call. NaN and infinity are
    counted, and left out of all other numbers. Memory does not grow with the number of batches. The model is left
    exactly as it was found, and no `.grad` is touched.

    Args:
        model: An nn.Module or a LoadedModel.
        batches: An iterable of inputs, as in `activations`, or of pairs (inputs, target), as a DataLoader yields them.
            A single tensor is one batch.
        layers: Which layers, selected as in `activations`. None is every layer without child layers.
        exclude: Layers to leave out, selected in the same ways.
        loss: A function (output, target) -> one number, such as `torch.nn.functional.cross_entropy`, or (output)
            without a target. With it, there are statistics of the gradients with respect to the outputs, too.
        histogram: Whether to keep a histogram.
        channel_axis: The axis of the channels. None is axis 1 or the last: the one whose length is the number of
            channels of the last layer inside this one, or before it, that has channels.

    Returns:
        Statistics: a row for each call of a layer, in the order in which they ran, with the statistics of the output
        and of the gradient.

    Raises:
        InputError: When there are no batches, or the loss is not one number.
        GradUnavailable: When the loss does not depend on the output.
        LayerNotFound: When the selection matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> table = tp.statistics(model, [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)])
        >>> table.batches, table["1"].output.summary().min >= 0
        (2, True)
    """
    module = inspectable_module(module_of(model))
    layers = _leaves(module) if layers is None else layers
    selected: Mapping[str, SelectedLayer] = select(module, layers, exclude=exclude)
    count = 0
    order: dict[tuple[str, int], int] = {}  # (layer, call) -> its order in the first pass
    not_finite: dict[int, int] = {}  # id of statistics -> first batch with NaN or infinity
    with preserved(module):
        calls_and_targets = _calls_and_targets(model, _as_caller(batches))
        first = next(calls_and_targets, None)
        if first is None:
            raise InputError("there are no batches: the iterable is empty or exhausted")
        selected = with_known_totals(module, first[0], selected)
        # A call that is counted from the end is recorded by its number: its values are read when the layer returns.
        recorded: dict[str, list[SelectedLayer]] = {}  # "act[1]" and "act[-1]" may be one
        for layer in selected.values():
            recorded.setdefault(_recorded_name(layer), []).append(layer)
        counted = _CountedCalls([layer for layer in selected.values() if layer.counts_from_end])
        tape = record(
            module,
            list(recorded),
            gradients=loss is not None,
            keep=keep.Running(histogram=histogram, channel_axis=channel_axis),
            # The values are read when the layer returns, before anything can write into them.
            snapshot="alias",
        )
        calls_and_targets = chain([first], calls_and_targets)
        del first  # frees it after its turn
        with tape, attached(counted.hooks()):
            for call, target in calls_and_targets:
                with torch.set_grad_enabled(loss is not None):
                    output = run(module, call)
                    if loss is not None:
                        tape.grad(one_number(loss(output, *target)), retain_graph=False)
                del output  # frees its graph before the next batch
                counted.check(count)
                for name in tape:
                    for layer_call in tape[name]:
                        order.setdefault((name, layer_call.number), layer_call.order)
                        for leaf in layer_call.stored():
                            value = leaf.read()
                            if isinstance(value, RunningStatistics) and value.first_not_finite is not None:
                                not_finite.setdefault(id(value), count)
                count += 1
    ran = sorted(order, key=order.__getitem__)
    rows = [
        row for name, number in ran for layer in recorded[name] for row in _rows(tape[name], layer, number, not_finite)
    ]
    for name in tape:
        if not len(tape[name]):
            why = tape.why_not_called(name)
            rows += [
                LayerStatistics(layer.name, type(layer.module).__name__, None, None, why) for layer in recorded[name]
            ]
    return Statistics(tuple(rows), count)


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


def _leaves(module: nn.Module) -> Selection:
    """Select every layer without child layers; the module itself if it has no children."""
    return (lambda name, layer: not layer._modules) if module._modules else module


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


def _calls_and_targets(model: Model, batches: Iterator[Any]) -> Iterator[tuple[ModelCall, tuple[Any, ...]]]:
    for batch in batches:
        inputs, *target = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch,)
        yield model_call_for(model, inputs), tuple(target)


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
    """Return the name of the first row among those with the smallest batch."""
    firsts = [(first, row.name) for row in rows if (first := batch(row)) is not None]
    return min(firsts, key=lambda pair: pair[0])[1] if firsts else None
