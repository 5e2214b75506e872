"""record(): what flows through the layers of a network, and back, while the user runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotConnected, closest, notify
from torchpeek.hooks.gradient_tap import hooked
from torchpeek.hooks.process import eagerly
from torchpeek.hooks.recording.call import Calls, describe
from torchpeek.hooks.recording.keep import Keep, layer_keepers
from torchpeek.hooks.recording.layer_recorder import LayerInputHook, LayerRecorder
from torchpeek.hooks.recording.pass_tracker import CallDepthHook, PassEndHook, PassStartHook, PassTracker
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, MemoryBudget, StoredTensor, slot_hook
from torchpeek.hooks.select import Selection, is_sharded, named_layers, select, why_not_fired
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.interrupts import protected, uninterrupted

Snapshot: TypeAlias = Literal["auto", "clone", "alias"]


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
    """Record what the layers return while you run `model` inside the block, as often and in whatever edge you like.

    With `inputs` also what they are given; with `gradients` also the gradients with respect to both, once your own
    `backward()`, or `Recording.grad`, has run; with `parameters` also the layers' parameters, and with both their
    gradients. Neither the model nor what it computes is changed, and training goes on. Recorded are the calls of the
    thread that opened the block, and those of DataParallel's replicas.

    What is stored is what the layer returned, detached. `snapshot="alias"` keeps a reference, and raises StaleCapture
    when it is read after a later operation has written into it; "clone" keeps a copy; "auto" copies outputs and inputs
    where the model has modules that write in place, and anything of inference mode, which cannot tell. `keep` (tp.keep)
    says what else to keep: another type or device, a reduction, running statistics, or what a function of yours makes
    of it, for all layers, or as a dict from a layer selection to what to keep of it.

    `passes="last"` keeps the last call of the model, "all" every one. With `stop` the pass, and with it the block, ends
    when every layer has returned once: nothing that comes later is run or seen, nor are later calls of a layer. When
    the recording is opened again, it does not wait for layers that were not called in a pass that came to its end.
    Where what is stored would take more than `max_bytes` of memory, the rest goes to temporary files, from which it is
    read.

    Raises LayerNotFound at once, GradUnavailable where a layer runs without gradients.
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
        raise InputError("a pass that stops early has no score to take gradients of; choose stop or gradients")
    named = named_layers(model)
    modules = list(named.values())  # walked once: with many small layers, the walks are what a recording costs
    selected = select(model, layers, exclude=exclude, named=named)
    if stop and any(map(is_sharded, modules)):
        raise InputError("a pass of a sharded model (FSDP) cannot stop early: its other ranks would wait; stop=False")
    policies = layer_keepers(model, selected, keep)
    accumulate = len(policies) == len(selected) and all(each for _, each in policies.values())
    tracker = PassTracker(
        inputs=inputs,
        gradients=gradients,
        copy=snapshot == "clone" or (snapshot == "auto" and any(module.__dict__.get("inplace") for module in modules)),
        copy_gradients=snapshot == "clone",
        all_passes=passes == "all" and not accumulate,
    )
    recorders = [
        LayerRecorder(name, module, tracker, *policies.get(name, (None, False))) for name, module in selected.items()
    ]
    return Recording(model, modules, recorders, tracker, parameters=parameters, stop=stop, max_bytes=max_bytes)


class Recording:
    """What record() keeps: `recording[name]` are a layer's calls. Opened with `with`, also again; read ever after."""

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        recorders: list[LayerRecorder],
        tracker: PassTracker,
        *,
        parameters: bool,
        stop: bool,
        max_bytes: int | None,
    ) -> None:
        self._model = model
        self._modules = modules
        self._recorders = {recorder.layer: recorder for recorder in recorders}
        self._tracker = tracker
        self._parameters: dict[str, dict[str, tuple[Leaf, GradientSlot]]] | None = {} if parameters else None
        self._parameter_hooks: list[RemovableHandle] = []
        self._stack: ExitStack | None = None
        self._memory_budget = None if max_bytes is None else MemoryBudget(max_bytes)
        if self._memory_budget is not None:
            tracker.admit = self._memory_budget.admit
        if stop:
            tracker.required_layers = frozenset(self._recorders)
            tracker.pending_layers = set(tracker.required_layers)

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise InputError("this recording is open already; make another with record()")
        self._stack = ExitStack()
        try:
            self._stack.enter_context(protected(Recording.__enter__.__code__, Recording.__exit__.__code__))
            with uninterrupted():
                self._open(self._stack)
            return self
        except BaseException:  # also a Ctrl-C that came while it was opened
            self._close()
            raise

    def _open(self, stack: ExitStack) -> None:
        tracker = self._tracker
        tracker.open_block()
        before: list[tuple[nn.Module, Any]] = [(self._model, PassStartHook(tracker, self._model, self._on_pass_start))]
        if tracker.inputs or tracker.gradients:
            before += [(recorder.module, LayerInputHook(recorder)) for recorder in self._recorders.values()]
        after: list[tuple[nn.Module, Any]] = [(recorder.module, recorder) for recorder in self._recorders.values()]
        after.append((self._model, PassEndHook(tracker)))
        stack.enter_context(eagerly(self._modules, _say_eager))
        stack.callback(self._remove_gradient_hooks)
        self._store_parameters()
        stack.enter_context(attached(after, called=before, ended=[(self._model, CallDepthHook(tracker))]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            with uninterrupted():
                self._close()
        finally:
            self._close()  # if the Ctrl-C came even before that
        return error is not None and error is self._tracker.early_stop

    def _close(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def new_pass(self) -> None:
        """Say that a new pass begins, where what you call is not the model itself but a part or a method of it."""
        self._tracker.start_pass()
        self._on_pass_start()

    def grad(self, score: Tensor, *, retain_graph: bool = True) -> LayerGradients:
        """The gradients of `score`, one number, with respect to what the layers returned in the passes that are stored.

        For a recording with `gradients`, inside of its block or after it. The backward pass goes no further down than
        the first of the layers, and no `.grad` is touched. Each call's `grad_output` is set to it as well. Raises
        NotConnected where the score depends on none of the layers.
        """
        output_edges = list(self._tracker.output_edges)
        if not self._tracker.gradients:
            raise InputError("grad asks a recording with gradients; record(..., gradients=True)")
        if not isinstance(score, Tensor) or score.numel() != 1:
            what = f"has shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"is a {type(score).__name__}"
            raise InputError(f"score {what}; allowed: a tensor of one number, such as output[:, 281].sum()")
        if not score.requires_grad:
            raise GradUnavailable("the score needs no gradient: was it computed under torch.no_grad(), or detached?")
        if not output_edges:
            raise GradUnavailable("no layer has been called in this pass, so there is nothing to take gradients of")
        before = [edge.slot.arrival_count for edge in output_edges]
        graph_edges = [edge.edges for edge in output_edges]
        gradients = iter(
            torch.autograd.grad(
                score, [edge for edges in graph_edges for edge in edges], retain_graph=retain_graph, allow_unused=True
            )
        )
        found = [
            edge.gradient_of([next(gradients) for _ in edges])
            for edge, edges in zip(output_edges, graph_edges, strict=True)
        ]
        if all(gradient is None for gradient in found):
            names = ", ".join(map(repr, dict.fromkeys(edge.layer for edge in output_edges)))
            raise NotConnected(f"the score does not depend on {names} as they were in what is recorded")
        for slot, gradient, arrival_count in zip((edge.slot for edge in output_edges), found, before, strict=True):
            if gradient is None:
                slot.clear()  # that of another score
            elif (
                slot.arrival_count == arrival_count
            ):  # the block is closed, and so the hooks are gone that would have seen it
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
            raise LayerNotFound(
                f"layer {layer!r} is not recorded{closest(layer, self._recorders)}; recorded: {len(self._recorders)}"
            )
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
        """The memory that the recording keeps alive: each storage once, as a whole, also where little of it is seen.

        What was moved to files takes none.
        """
        storages: dict[int, int] = {}
        leaves = [leaf for recorder in self._recorders.values() for call in recorder.calls for leaf in call.stored()]
        leaves += [leaf for each in (self._parameters or {}).values() for pair in each.values() for leaf in pair]
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
            shown = describe(calls[-1].stored_output) if calls and calls[-1].complete else "was not called"
            rows.append((name, str(len(calls)), shown))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def why_not_called(self, layer: str) -> str:
        """The likely reason why the layer, which has no call, has none."""
        tracker = self._tracker
        if tracker.called_in_other_thread:
            return f"layer {layer!r} was called in another thread; open the recording in the thread that runs the model"
        if tracker.early_stop is not None and not tracker.completed:
            return f"the pass was stopped before layer {layer!r} was called; record it with stop=False"
        why = why_not_fired(self._model, layer, self._recorders[layer].module)
        return (
            why if tracker.completed else f"{why}. The last pass did not come to its end: an exception came in between"
        )

    def _on_pass_start(self) -> None:
        for recorder in self._recorders.values():
            recorder.start_pass()
        if self._parameters is not None:
            self._store_parameters()

    def _store_parameters(self) -> None:
        """The parameters as they are now; they may be others than before."""
        if self._parameters is None:
            return
        for handle in self._parameter_hooks:
            handle.remove()
        self._parameter_hooks.clear()
        for name, recorder in self._recorders.items():
            self._parameters[name] = {}
            for parameter, tensor in recorder.module.named_parameters():
                if isinstance(tensor, nn.UninitializedParameter):
                    continue  # of a lazy module, which makes it in its first call
                # A copy: what arrives may become `.grad` itself, into which the next backward pass adds.
                slot = GradientSlot(partial(StoredTensor, copy=True))
                self._parameters[name][parameter] = StoredTensor(tensor, self._tracker.copy_gradients), slot
                if tensor.requires_grad and self._tracker.gradients:
                    self._parameter_hooks.append(hooked(tensor, slot_hook(slot)))

    def _remove_gradient_hooks(self) -> None:
        for handle in self._parameter_hooks:
            handle.remove()
        self._parameter_hooks.clear()
        self._tracker.remove_tensor_hooks()


def _say_eager() -> None:
    notify("the model is compiled, and so ignores hooks; it runs eagerly while it is recorded")


class LayerGradients(Mapping[str, Any]):
    """Gradients by layer, in the containers of the outputs; `[layer, i]` is that of the i-th call."""

    def __init__(self, gradients: dict[str, list[Any]]) -> None:
        self._gradients = gradients

    def __getitem__(self, layer: str | tuple[str, int]) -> Any:
        name, index = layer if isinstance(layer, tuple) else (layer, None)
        if name not in self._gradients:
            raise LayerNotFound(f"no gradient of layer {name!r}{closest(name, self._gradients)}")
        calls = self._gradients[name]
        if index is None and len(calls) > 1:
            raise AmbiguousCall(f"layer {name!r} was called {len(calls)} times; take [{name!r}, 0] and so on")
        return calls[index or 0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)
