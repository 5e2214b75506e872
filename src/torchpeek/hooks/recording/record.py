"""record(): record what flows through the layers of a network, and back, while the user runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotConnected, closest, notify
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.gradient_tap import TensorHook, hooked
from torchpeek.hooks.process import eagerly, is_sharded
from torchpeek.hooks.recording.call import Calls, describe
from torchpeek.hooks.recording.keep import Keep, layer_keepers
from torchpeek.hooks.recording.layer_recorder import LayerInputHook, LayerRecorder
from torchpeek.hooks.recording.pass_tracker import CallDepthHook, PassEndHook, PassStartHook, PassTracker
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, MemoryBudget, SlotHook, StoredTensor
from torchpeek.hooks.select import Selection, named_layers, select, why_not_fired
from torchpeek.hooks.selected_layer import split_call
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.interrupts import protected, uninterrupted
from torchpeek.keywords import checked_keywords

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
    max_bytes: int | None = None,
) -> Recording:
    """Record what layers return while you run `model` inside the block.

    You may run the model in any way and several times, also in training. Neither the model nor its results change.
    The recording takes the calls of the thread that opened the block, and those of the replicas of DataParallel.

    Args:
        model: The model.
        layers: A name, a glob whose `*` crosses dots, a compiled regular expression, a type, a predicate
            `f(name, module)`, a module, or a list of these. A number in brackets at the end of a name or glob records
            that call of each pass alone: "act[0]" is the first, "act[-1]" the last.
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
    if max_bytes is not None and max_bytes < 0:
        raise InputError(f"max_bytes is {max_bytes}; allowed: 0 or more, or None for no bound")
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
        inputs=inputs,
        gradients=gradients,
        copy=snapshot == "clone" or (snapshot == "auto" and any(module.__dict__.get("inplace") for module in modules)),
        copy_gradients=snapshot == "clone",
        all_passes=passes == "all" and not all_accumulate,
        admit=None if max_bytes is None else MemoryBudget(max_bytes).admit,
    )
    if stop and not any(layer.counts_from_end for layer in selected.values()):
        tracker.stop_after(selected)
    recorders = {
        name: LayerRecorder(layer, tracker, *keepers.get(name, (None, False))) for name, layer in selected.items()
    }
    return Recording(model, modules, recorders, tracker, parameters=parameters)


class Recording:
    """The recorded calls of layers: `recording[name]` are those of one layer.

    `record` makes it. A `with` block opens it, several times if you like. It can be read at any time. Iterating over it
    gives the names of the layers, and printing it gives a table.

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
        self._model = model
        self._modules = modules
        self._recorders = recorders
        self._tracker = tracker
        self._parameters: dict[str, dict[str, tuple[Leaf, GradientSlot]]] | None = {} if parameters else None
        self._parameter_hooks: list[TensorHook] = []
        self._stack: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise InputError("this recording is open already; make another one with record()")
        self._stack = ExitStack()
        try:
            self._stack.enter_context(protected(Recording.__enter__.__code__, Recording.__exit__.__code__))
            with uninterrupted():
                self._open(self._stack)
            return self
        except BaseException:  # also a Ctrl-C that arrived during `_open`
            self._close()
            raise

    def _open(self, stack: ExitStack) -> None:
        tracker, recorders = self._tracker, self._recorders.values()
        tracker.open_block()
        called: list[tuple[nn.Module, Any]] = [(self._model, PassStartHook(tracker, self._model, self._on_pass_start))]
        if tracker.inputs or tracker.gradients:
            called += [(recorder.module, LayerInputHook(recorder)) for recorder in recorders]
        returned: list[tuple[nn.Module, Any]] = [(recorder.module, recorder) for recorder in recorders]
        returned.append((self._model, PassEndHook(tracker)))
        stack.enter_context(eagerly(self._modules, _notify_compiled))
        stack.callback(self._remove_gradient_hooks)
        self._store_parameters()
        stack.enter_context(attached(returned, called=called, ended=[(self._model, CallDepthHook(tracker))]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            with uninterrupted():
                self._close()
        finally:
            self._close()  # for a Ctrl-C that arrived before `uninterrupted` took effect
        return error is not None and error is self._tracker.early_stop

    def _close(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None

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
        self._on_pass_start()

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
            got = f"has shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"is a {type(score).__name__}"
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

    def __getitem__(self, layer: str) -> Calls:
        if layer not in self._recorders:
            path, call = split_call(layer)
            hint = f"; read that call as [{path!r}][{call}]" if call and path in self._recorders else ""
            hint = hint or closest(layer, self._recorders)
            raise LayerNotFound(f"layer {layer!r} is not recorded{hint}; {len(self._recorders)} layers are")
        calls = self._recorders[layer].calls
        parameters = None if self._parameters is None else self._parameters[layer]
        return Calls(layer, calls, parameters, self.why_not_called)

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorders)

    def __len__(self) -> int:
        return len(self._recorders)

    def __contains__(self, layer: object) -> bool:
        return layer in self._recorders

    @property
    def nbytes(self) -> int:
        """The memory that the recording keeps alive, in bytes.

        Each storage counts once and as a whole, also if only a view of it is recorded. Tensors in files do not count.
        """
        storages: dict[int, int] = {}
        leaves = [leaf for recorder in self._recorders.values() for call in recorder.calls for leaf in call.stored()]
        leaves += [leaf for by_name in (self._parameters or {}).values() for pair in by_name.values() for leaf in pair]
        for leaf in leaves:
            stored = leaf.leaf if isinstance(leaf, GradientSlot) else leaf
            if isinstance(stored, StoredTensor) and stored.original_device is None:
                start, size = stored.storage()
                storages[start] = size
        return sum(storages.values())

    def __repr__(self) -> str:
        rows = [("layer", "calls", "output")]
        for name, recorder in self._recorders.items():
            calls = recorder.calls
            output = describe(calls[-1].stored_output) if calls and calls[-1].complete else "was not called"
            rows.append((name, str(len(calls)), output))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def why_not_called(self, layer: str) -> str:
        """Explain why a layer has no call.

        Args:
            layer: The name of a recorded layer without a call.

        Returns:
            A sentence with the likely reason.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2), nn.ModuleList())
            >>> "a container that is never called" in tp.record(model, "1").why_not_called("1")
            True
        """
        tracker = self._tracker
        if tracker.called_in_other_thread:
            return f"layer {layer!r} was called in another thread; open the recording in the thread that runs the model"
        if tracker.early_stop is not None and not tracker.completed:
            return f"the pass was stopped before layer {layer!r} was called; record it with stop=False"
        recorder = self._recorders[layer]
        why = why_not_fired(self._model, recorder.selected, recorder.call_count)
        return why if tracker.completed else f"{why}. An exception ended the last pass before the model returned"

    def _on_pass_start(self) -> None:
        for recorder in self._recorders.values():
            recorder.start_pass()
        if self._parameters is not None:
            self._store_parameters()

    def _store_parameters(self) -> None:
        """Store the parameters again at the start of each pass, because a module may have got other ones."""
        if self._parameters is None:
            return
        for handle in self._parameter_hooks:
            handle.remove()
        self._parameter_hooks.clear()
        for name, recorder in self._recorders.items():
            self._parameters[name] = {}
            for parameter, tensor in recorder.module.named_parameters():
                if isinstance(tensor, nn.UninitializedParameter):
                    continue  # a lazy module initialises it in its first call
                # A copy, because torch may make the gradient that arrives `.grad`, to which later gradients are added.
                slot = GradientSlot(partial(StoredTensor, copy=True))
                self._parameters[name][parameter] = StoredTensor(tensor, self._tracker.copy_gradients), slot
                if tensor.requires_grad and self._tracker.gradients:
                    self._parameter_hooks.append(hooked(tensor, SlotHook(slot)))

    def _remove_gradient_hooks(self) -> None:
        for handle in self._parameter_hooks:
            handle.remove()
        self._parameter_hooks.clear()
        self._tracker.remove_tensor_hooks()


def _notify_compiled() -> None:
    notify("the model is compiled, and compiled code ignores hooks; it runs eagerly while it is recorded")


class LayerGradients(Mapping[str, Any]):
    """Gradients by layer, in the containers of the outputs: `gradients[name]`, or `gradients[name, i]` for call i.

    Args:
        gradients: For each layer the gradient of each of its calls.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tp.record(model, "*", gradients=True) as tape:
        ...     gradients = tape.grad(model(torch.ones(4, 3)).sum())
        >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
        {'0': (4, 2), '1': (4, 2)}
    """

    def __init__(self, gradients: dict[str, list[Any]]) -> None:
        self._gradients = gradients

    def __getitem__(self, layer: str | tuple[str, int]) -> Any:
        name, index = layer if isinstance(layer, tuple) else (layer, None)
        if name not in self._gradients:
            raise LayerNotFound(f"there is no gradient of layer {name!r}{closest(name, self._gradients)}")
        calls = self._gradients[name]
        if index is None and len(calls) > 1:
            raise AmbiguousCall(f"layer {name!r} was called {len(calls)} times; read [{name!r}, 0] and so on")
        return calls[index or 0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)
