"""statistics(): running statistics of activations and gradients over a data set, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.anatomy.batch_entries import Entries, calls_and_targets
from torchpeek.anatomy.dry_pass import DryPass, dry_pass
from torchpeek.anatomy.functional_statistics import FunctionStatistics
from torchpeek.anatomy.statistics_table import LayerStatistics, Statistics
from torchpeek.argument_types import Allowed
from torchpeek.engine import ModelCall, inspectable_module, preserved, run, with_known_totals
from torchpeek.errors import GradUnavailable, InputError, NotFired, listed_names, notify, type_shown
from torchpeek.hooks import (
    Call,
    Calls,
    Leaf,
    LenientRunning,
    NoStatistics,
    RunningStatistics,
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
from torchpeek.interrupts import interruptible
from torchpeek.keywords import checked_keywords
from torchpeek.models import Model, module_of

Loss: TypeAlias = Callable[..., Tensor]
"""Called as `loss(output)`, or as `loss(output, target)` for batches (inputs, target); returns one number."""


@checked_keywords
def statistics(
    model: Model,
    batches: Annotated[Iterable[Any], Allowed("batches of inputs, such as a DataLoader")],
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
    has no statistics does not stop the others: `Statistics.left_out` names it with the reason. Two or three copies of
    the first sample run before the first batch, to find the layers that compute and their channels. Your hooks do not
    run then, unless the model cannot run without them. The model is left exactly as it was found, and no `.grad` is
    touched.

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
        policy = LenientRunning(histogram=histogram, channel_axis=channel_axis, reduce=reduce)
        functions = None
        if layers is None:
            excluded = [] if exclude is None else select_modules(module, exclude).values()
            functions = FunctionStatistics(module, dry, policy, excluded)
        calls = chain([first], calls)
        del first  # frees it after its turn
        run_of_batches = _StatisticsRun(
            module, selected, functions, policy, loss, dry if channel_axis is None else None
        )
        with run_of_batches.observing():
            for call, targets in calls:
                run_of_batches.batch(call, targets)
    rows = _with_remarks(run_of_batches.rows(), channel_axis)
    return Statistics(tuple(rows), run_of_batches.batches)


class _StatisticsRun:
    """The statistics of the layers and functions, over the batches so far.

    Args:
        module: The model.
        selected: The layers.
        functions: The statistics of functions; None for those of layers alone.
        policy: How the statistics of the layers are kept.
        loss: The loss whose gradients count, too; None without.
        dry: What decides on which axes the channels are; None where nothing does.
    """

    def __init__(
        self,
        module: nn.Module,
        selected: Mapping[str, SelectedLayer],
        functions: FunctionStatistics | None,
        policy: LenientRunning,
        loss: Loss | None,
        dry: DryPass | None,
    ) -> None:
        self.batches = 0
        self._module = module
        self._functions = functions
        self._loss = loss
        self._dry = dry
        # A call that is counted from the end is recorded by its number: its values are read when the layer returns.
        self._layers: dict[str, list[SelectedLayer]] = {}  # "act[1]" and "act[-1]" may be one
        for layer in selected.values():
            self._layers.setdefault(_recorded_name(layer), []).append(layer)
        self._counted = _CountedCalls([layer for layer in selected.values() if layer.counts_from_end])
        self._tape = record(
            module,
            list(self._layers),
            gradients=loss is not None,
            keep=policy,
            # The values are read when the layer returns, before anything can write into them.
            snapshot="alias",
        )
        self._places: dict[tuple[str, int], float] = {}  # (layer, call) -> its order in the first pass that made it
        self._settled: set[int] = set()  # ids of statistics whose channels are decided
        self._not_finite: dict[int, int] = {}  # id of statistics -> the first batch with NaN or infinity

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Record the layers and functions inside the block."""
        with ExitStack() as stack:
            stack.enter_context(self._tape)
            stack.enter_context(attached(self._counted.hooks()))
            if self._functions is not None:
                modules = {layer.name: layer.module for layers in self._layers.values() for layer in layers}
                stack.enter_context(self._functions.observed(modules))
            yield

    def batch(self, call: ModelCall, targets: Sequence[Any]) -> None:
        """Run the model on a batch, and add what it returned."""
        if self._functions is not None:
            self._functions.start_pass()
        with torch.set_grad_enabled(self._loss is not None):
            output = run(self._module, call)
            if self._loss is not None:
                self._tape.grad(one_number(self._loss(output, *targets)), retain_graph=False)
        del output  # frees its graph
        self._counted.check(self.batches)
        statistics_of_batch: list[RunningStatistics] = []
        for name in self._tape:
            for recorded in self._tape[name]:
                self._places.setdefault((name, recorded.number), recorded.order)
                found = [each for leaf in recorded.stored() if isinstance(each := leaf.read(), RunningStatistics)]
                if not self._settled.issuperset(map(id, found)):
                    for key, statistics in self._keys_of(name, recorded):
                        self._settle(key, statistics)
                statistics_of_batch += found
        if self._functions is not None:
            for key, statistics in self._functions.statistics():
                self._settle(key, statistics)
                statistics_of_batch.append(statistics)
        for statistics in statistics_of_batch:
            if statistics.first_not_finite is not None:
                self._not_finite.setdefault(id(statistics), self.batches)
        self.batches += 1

    def rows(self) -> list[LayerStatistics]:
        """The rows of all layers and functions, in the order in which they ran; those that did not run come last."""
        placed = [
            (place, row)
            for (name, number), place in self._places.items()
            for layer in self._layers[name]
            for row in _rows(self._tape[name], layer, number, self._not_finite)
        ]
        for name, leaf, after in () if self._functions is None else self._functions.found():
            place = -1.0 if after is None else self._places.get(after, -1.0)
            placed.append((place + 0.5, _function_row(name, leaf, self._not_finite)))
        placed.sort(key=lambda pair: pair[0])
        not_called = [
            LayerStatistics(layer.name, type(layer.module).__name__, None, None, self._tape.why_not_called(name))
            for name in self._tape
            if not len(self._tape[name])
            for layer in self._layers[name]
        ]
        return [row for _, row in placed] + not_called

    def _settle(self, key: tuple[str, int, str], statistics: RunningStatistics) -> None:
        """Decide on which axis the channels are, once, after the first batch with these statistics."""
        if id(statistics) not in self._settled:
            self._settled.add(id(statistics))
            if self._dry is not None:
                self._dry.settle_channels(statistics, key)

    def _keys_of(self, name: str, recorded: Call) -> Iterator[tuple[tuple[str, int, str], RunningStatistics]]:
        """The statistics of a call of a layer, of outputs and gradients, each with its key in a dry pass."""
        layer = self._layers[name][0]
        number = recorded.number if layer.index is None else layer.index
        own_name = "" if self._dry is None else self._dry.names[id(layer.module)]
        for container in (recorded.output, recorded.grad_output if recorded.has_gradients else None):
            for path, statistics in containers.leaves(container, RunningStatistics):
                yield (own_name, number, path), statistics


def _layers_that_compute(module: nn.Module, dry: DryPass | None) -> Selection:
    """Select the layers that compute, by their structure and by what a dry pass has shown."""
    shown = DryPass() if dry is None else dry
    found = computing_layers(module, pass_through=shown.pass_through, own_output=shown.own_output)
    chosen = {id(layer) for layer in found}
    # A predicate, of which scripted layers are left out.
    return module if chosen == {id(module)} else lambda name, layer: id(layer) in chosen


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
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type_shown(loss)
        raise InputError(f"the loss is {what}; allowed: a tensor of one number, such as the mean over the batch")
    if loss.is_complex():
        raise InputError("the loss is a complex number; allowed: a real one, such as loss.abs()")
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
