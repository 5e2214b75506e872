"""record(): record what flows through the layers of a network, and back, while the user runs it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.argument_types import NonNegative
from torchpeek.errors import GradUnavailable, InputError, NotConnected, type_shown
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.gradient_tap import TensorHooks
from torchpeek.hooks.model_calls import passes_were_cut
from torchpeek.hooks.process import eagerly, is_sharded
from torchpeek.hooks.recording.keep import Keep, layer_keepers
from torchpeek.hooks.recording.layer_mapping import LayerGradients
from torchpeek.hooks.recording.layer_recorder import LayerInputHook, LayerRecorder
from torchpeek.hooks.recording.pass_tracker import CallEndHook, PassEndHook, PassStartHook, PassTracker
from torchpeek.hooks.recording.recorded_layers import RecordedLayers
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, MemoryBudget, StoredTensor, whole_gradient_hook
from torchpeek.hooks.recording.summary import Cells
from torchpeek.hooks.select import Selection, named_layers, select, why_not_fired
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.hooks.with_block import OpenedByWith
from torchpeek.keywords import checked_keywords
from torchpeek.undo import Block, Undo

Snapshot: TypeAlias = Literal["auto", "clone", "alias"]


@checked_keywords
def record(
    model: nn.Module,
    layers: Selection,
    *,
    exclude: Selection | None = None,
    inputs: bool = False,
    gradients: bool = False,
    parameters: bool = False,
    keep: Keep | Mapping[Any, Keep] | None = None,
    snapshot: Snapshot = "auto",
    passes: Literal["last", "all"] = "last",
    stop: bool = False,
    max_bytes: NonNegative | None = None,
) -> Recording:
    """Record what layers return while you run `model` inside the block.

    You may run the model in any way and several times, also in training. Neither the model nor its results change.
    The recording takes the calls of the thread that opened the block, and those of the replicas of DataParallel. In an
    asyncio task it takes the calls of this task, and of tasks that are started inside the block. If another model has
    some of the layers, too, its calls are left out, unless it runs inside a pass of `model`.

    Args:
        model: The model.
        layers: A name, a glob whose `*` crosses dots, a compiled regular expression, a type, a predicate
            `f(name, module)`, a module, or a list of these, also a slice of an nn.ModuleList. A number in brackets at
            the end of a name or glob records that call of each pass alone: "act[0]" is the first, "act[-1]" the last.
        exclude: A selection of layers to leave out.
        inputs: Also record the inputs of the layers.
        gradients: Also record the gradients with respect to outputs and inputs. They arrive when you run `backward()`
            inside the block, or `Recording.grad`.
        parameters: Also record the parameters of the layers; with `gradients` their gradients, too.
        keep: What to store instead of the tensors themselves, see `tp.keep`: another dtype or device, a reduction,
            running statistics, or the result of a function. It applies to all layers; a dict from layer selections
            gives each selection its own.
        snapshot: "clone" stores copies. "alias" stores references, and reading one raises StaleCapture if a later
            operation has written into it. "auto" stores copies of outputs and inputs if a module of the model writes in
            place, and of inference tensors, which do not count writes.
        passes: "last" records the calls of the last pass of the model, "all" those of every pass.
        stop: End the pass, and with it the block, when every layer has returned once. What comes later does not run.
            If the recording is opened again, it does not wait for layers that a complete pass did not call. A pass
            does not stop early if a call is counted from the end, because only its end shows which call is the last.
        max_bytes: The most memory of the recording, in bytes. What exceeds it is stored in temporary files.

    Returns:
        A Recording, to be opened with `with`. `recording[name]` are the calls of a layer.

    Raises:
        LayerNotFound: When a part of a selection matches no layer.
        InputError: When an option has a value that is not allowed, or options contradict each other.
        GradUnavailable: When a layer runs under `torch.no_grad()` and gradients are recorded. It is raised by the call
            of the model.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> with tp.record(model, ["0", nn.ReLU], gradients=True) as tape:
        ...     model(torch.ones(1, 3, 8, 8))[:, 2].sum().backward()
        >>> tape["0"].output.shape, tape["1"].grad_output.shape
        (torch.Size([1, 4, 6, 6]), torch.Size([1, 4, 6, 6]))
    """
    for name, value, allowed in (
        ("snapshot", snapshot, ("auto", "clone", "alias")),
        ("passes", passes, ("last", "all")),
    ):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    if stop and gradients:
        raise InputError("a pass that stops early has no score and so no gradients; choose stop or gradients")
    named = named_layers(checked_model(model))
    modules = list(named.values())  # walk the model once: with many small layers, the walks take most of the time
    selected = select(model, layers, exclude=exclude, named=named)
    if stop and any(map(is_sharded, modules)):
        raise InputError(
            "a pass of a sharded model (FSDP) cannot stop early, because its other ranks would wait; choose stop=False"
        )
    keepers = layer_keepers(model, selected, keep)
    all_accumulate = len(keepers) == len(selected) and all(accumulates for _, accumulates in keepers.values())
    tracker = PassTracker(
        model,
        inputs=inputs,
        gradients=gradients,
        copy=snapshot == "clone" or (snapshot == "auto" and any(module.__dict__.get("inplace") for module in modules)),
        copy_gradients=snapshot == "clone",
        all_passes=passes == "all" and not all_accumulate,
        admit=None if max_bytes is None else MemoryBudget(int(max_bytes)).admit,
    )
    if stop and not any(layer.counts_from_end for layer in selected.values()):
        tracker.stop_after(selected)
    recorders = {
        name: LayerRecorder(layer, tracker, *keepers.get(name, (None, False))) for name, layer in selected.items()
    }
    return Recording(model, modules, recorders, tracker, parameters=parameters)


class Recording(OpenedByWith, Block["Recording"], RecordedLayers):
    """The recorded calls of layers: a mapping, in which `recording[name]` are those of one layer.

    `record` makes it. A `with` block opens it, several times if you like. It can be read at any time. Printing it gives
    a table. A copy or a pickle of it has what is recorded, without the model, so it can be read and not opened again.

    Args:
        model: The model.
        modules: All modules of the model.
        recorders: The recorder of each layer, by name.
        tracker: The state that the recorders share.
        parameters: Whether to record the parameters of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tp.record(model, "*") as tape:
        ...     output = model(torch.ones(4, 3))
        >>> list(tape)
        ['0', '1']
    """

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        recorders: dict[str, LayerRecorder],
        tracker: PassTracker,
        *,
        parameters: bool,
    ) -> None:
        Block.__init__(self)
        RecordedLayers.__init__(self, recorders, {} if parameters else None, records_gradients=tracker.gradients)
        self._model = model
        self._modules = modules
        self._recorders = recorders
        self._tracker = tracker
        self._parameter_hooks = TensorHooks()
        self._start_pass = partial(_start_pass, self._parameters, recorders, self._parameter_hooks, tracker)
        self.must_be_opened("with tp.record(model, ...) as tape:")

    def _open(self, undo: Undo) -> Recording:
        self.was_opened()
        if self._is_open(but=undo):
            raise InputError("this recording is open already; make another one with record()")
        # Neither the steps nor the hooks refer to the recording itself: it closes where nothing refers to it any more.
        tracker, recorders = self._tracker, self._recorders.values()
        undo.ending = partial(_end_block, tracker)
        undo.push(_remove_gradient_hooks, self._parameter_hooks, tracker)
        tracker.open_block()
        called: list[tuple[nn.Module, Any]] = [(self._model, PassStartHook(tracker, self._model, self._start_pass))]
        if tracker.inputs or tracker.gradients:
            called += [(recorder.module, LayerInputHook(recorder)) for recorder in recorders]
        returned: list[tuple[nn.Module, Any]] = [(recorder.module, recorder) for recorder in recorders]
        returned.append((self._model, PassEndHook(tracker)))
        undo.enter(eagerly(self._modules, "recorded"))
        _store_parameters(self._parameters, self._recorders, self._parameter_hooks, tracker)
        undo.enter(attached(returned, called=called, ended=[(self._model, CallEndHook(tracker))]))
        return self

    def new_pass(self) -> None:
        """Begin a new pass by hand, if you call a part or a method of the model instead of the model itself.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2))
            >>> with tp.record(model, "0") as tape:
            ...     tape.new_pass()
            ...     output = model[0](torch.ones(5, 3))
            >>> tape["0"].output.shape
            torch.Size([5, 2])
        """
        self._tracker.start_pass()
        self._tracker.by_hand = True
        self._start_pass()

    def grad(self, score: Tensor, *, retain_graph: bool = True) -> LayerGradients:
        """Compute the gradients of a score with respect to what the layers returned in the recorded passes.

        This works inside the block and after it. The backward pass goes no further than the first of the layers, and no
        `.grad` is touched. The gradients also become the `grad_output` of the calls.

        Args:
            score: A tensor with one number, computed in a recorded pass.
            retain_graph: Whether to keep the graph, so that you can ask again.

        Returns:
            The gradients by layer, in the containers and shapes of the outputs.

        Raises:
            InputError: When the recording was made without `gradients=True`, or the score has several numbers.
            GradUnavailable: When the score needs no gradient, or no layer was called.
            NotConnected: When the score depends on none of the layers.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
            >>> with tp.record(model, "0", gradients=True) as tape:
            ...     output = model(torch.ones(1, 3, 8, 8))
            >>> tape.grad(output[:, 2].sum())["0"].shape
            torch.Size([1, 4, 6, 6])
        """
        output_edges = list(self._tracker.output_edges)
        if not self._tracker.gradients:
            raise InputError("grad needs a recording with gradients; record(..., gradients=True) makes one")
        if not isinstance(score, Tensor) or score.numel() != 1:
            got = f"has shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"is {type_shown(score)}"
            raise InputError(f"score {got}; allowed: a tensor of one number, such as output[:, 281].sum()")
        if not score.requires_grad:
            raise GradUnavailable(
                "the score needs no gradient: it was computed under torch.no_grad(), or detached; compute it with "
                "gradients enabled"
            )
        if not output_edges:
            raise GradUnavailable(
                "no layer has been called in this pass, so there is nothing to take gradients of; run the model first"
            )
        counts_before = [edge.slot.arrival_count for edge in output_edges]
        graph_edges = [edge.edges for edge in output_edges]
        gradients = iter(
            torch.autograd.grad(
                score, [edge for edges in graph_edges for edge in edges], retain_graph=retain_graph, allow_unused=True
            )
        )
        output_gradients = [
            edge.gradient_of([next(gradients) for _ in edges])
            for edge, edges in zip(output_edges, graph_edges, strict=True)
        ]
        if all(gradient is None for gradient in output_gradients):
            names = ", ".join(map(repr, dict.fromkeys(edge.layer for edge in output_edges)))
            raise NotConnected(f"the score does not depend on the recorded outputs of {names}; choose another score")
        slots = [edge.slot for edge in output_edges]
        for slot, gradient, count_before in zip(slots, output_gradients, counts_before, strict=True):
            if gradient is None:
                slot.clear()  # it may hold the gradient of another score
            elif slot.arrival_count == count_before:  # the block is closed, so no hook has stored the gradient
                slot.arrive(gradient)
        return LayerGradients(
            {
                name: [call.grad_output for call in calls]
                for name, recorder in self._recorders.items()
                if (calls := [call for call in recorder.calls if call.has_gradients])
            }
        )

    def cells(self) -> list[Cells]:
        """What is recorded of each layer, in words; see RecordedLayers."""
        self.was_opened()  # the table shows that no layer was called
        return super().cells()

    def why_not_called(self, layer: str) -> str:
        """Explain why a layer has no call; see RecordedLayers."""
        self.was_opened()  # the text says if it was not
        tracker = self._tracker
        if tracker.called_in_other_thread:
            return f"layer {layer!r} was called in another thread; open the recording in the thread that runs the model"
        if tracker.early_stop is not None and not tracker.completed:
            return f"the pass was stopped before layer {layer!r} was called; record it with stop=False"
        recorder = self._recorders[layer]
        if excluded := tracker.calls.why_excluded(recorder.selected):
            return excluded
        return why_not_fired(self._model, recorder.selected, recorder.call_count, tracker.why_not_called())

    def about_several_calls(self, layer: str) -> str:
        """Say what to do where one call of a layer is read, and it has several; see RecordedLayers."""
        return self._tracker.about_several_calls(layer)


_Parameters: TypeAlias = dict[str, dict[str, tuple[Leaf, GradientSlot]]] | None


def _start_pass(
    parameters: _Parameters, recorders: Mapping[str, LayerRecorder], hooks: TensorHooks, tracker: PassTracker
) -> None:
    for recorder in recorders.values():
        recorder.start_pass()
    _store_parameters(parameters, recorders, hooks, tracker)


def _store_parameters(
    parameters: _Parameters, recorders: Mapping[str, LayerRecorder], hooks: TensorHooks, tracker: PassTracker
) -> None:
    """Store the parameters again at the start of each pass, because a module may have got other ones."""
    if parameters is None:
        return
    hooks.remove()
    for name, recorder in recorders.items():
        parameters[name] = {}
        for parameter, tensor in recorder.module.named_parameters():
            if isinstance(tensor, nn.UninitializedParameter):
                continue  # a lazy module initialises it in its first call
            # A copy, because torch may make the gradient that arrives `.grad`, to which later gradients are added.
            slot = GradientSlot(partial(StoredTensor, copy=True))
            parameters[name][parameter] = StoredTensor(tensor, tracker.copy_gradients), slot
            if tensor.requires_grad and tracker.gradients:
                hooks.add(tensor, whole_gradient_hook(slot))


def _remove_gradient_hooks(hooks: TensorHooks, tracker: PassTracker) -> None:
    hooks.remove()
    tracker.close_block()


def _end_block(
    tracker: PassTracker, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> bool:
    stopped = error is not None and error is tracker.early_stop
    if error is not None and stopped:
        error.__traceback__ = None  # its frames would keep this recording and the model alive
        passes_were_cut()
    return stopped
