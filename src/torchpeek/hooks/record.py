"""record(): what flows through the layers of a network, and back, while the user runs it."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import (
    GradUnavailable,
    InputError,
    LayerNotFound,
    closest,
    notify,
)
from torchpeek.hooks.attach import attached
from torchpeek.hooks.calls import Call, Calls, Kept, described
from torchpeek.hooks.interrupts import uninterrupted
from torchpeek.hooks.select import Selection, is_compiled, select, why_not_fired
from torchpeek.hooks.tensors import Slot, receive

Snapshot: TypeAlias = Literal["auto", "clone", "alias"]
Passes: TypeAlias = Literal["last", "all"]


def record(
    model: nn.Module,
    layers: Selection,
    *,
    exclude: Selection | None = None,
    inputs: bool = False,
    gradients: bool = False,
    snapshot: Snapshot = "auto",
    passes: Passes = "last",
) -> Recording:
    """Record what the layers return while you run `model` inside the block, as often and in whatever way you like.

    With `inputs` also what they are given; with `gradients` also the gradients with respect to both, once your own
    `backward()`, or `torch.autograd.grad`, has run inside the block. Neither the model nor what it computes is changed,
    and training goes on.

    What is kept is what the layer returned, detached. `snapshot="alias"` keeps a reference, and raises StaleCapture
    when it is read after a later operation has written into it; "clone" keeps a copy; "auto" copies where the model has
    modules that write in place, and for inference tensors, which cannot tell. `passes="last"` keeps the last call of
    the model, "all" every one.

    Raises LayerNotFound at once, GradUnavailable where a layer runs without gradients.
    """
    for name, value, allowed in (
        ("snapshot", snapshot, ("auto", "clone", "alias")),
        ("passes", passes, ("last", "all")),
    ):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    chosen = select(model, layers, exclude=exclude)
    copies = snapshot == "clone" or (snapshot == "auto" and any(getattr(m, "inplace", False) for m in model.modules()))
    return Recording(model, chosen, inputs=inputs, gradients=gradients, copies=copies, every_pass=passes == "all")


class Recording:
    """What record() keeps: `recording[name]` are a layer's calls. Open it with `with`; it can be read ever after."""

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        *,
        inputs: bool,
        gradients: bool,
        copies: bool,
        every_pass: bool,
    ) -> None:
        self._model = model
        self._layers = layers
        self._inputs = inputs
        self._gradients = gradients
        self._copies = copies
        self._every_pass = every_pass
        self._calls: dict[str, list[Call]] = {name: [] for name in layers}
        self._order = 0
        self._stack: ExitStack | None = None
        self._handles: list[RemovableHandle] = []
        self._running = threading.local()  # the calls under way, for each thread its own: DataParallel runs several
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise InputError("this recording is open already; make another with record()")
        # The hooks hold the recording weakly: a graph that outlives the block does not keep it alive.
        this: weakref.ref[Recording] = weakref.ref(self)
        before = [(self._model, partial(_begun, this))]
        if self._inputs or self._gradients:
            before += [(module, partial(_called, this, name)) for name, module in self._layers.items()]
        after = [(module, partial(_returned, this, name)) for name, module in self._layers.items()]
        with ExitStack() as stack:
            if any(map(is_compiled, self._model.modules())):
                notify("the model is compiled, and so ignores hooks; it runs eagerly while it is recorded")
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(attached(after, called=before))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            self._let_go()
            if self._stack is not None:
                stack, self._stack = self._stack, None
                stack.close()

    def __getitem__(self, layer: str) -> Calls:
        if layer not in self._calls:
            raise LayerNotFound(
                f"layer {layer!r} is not recorded{closest(layer, self._calls)}; recorded: {len(self._calls)}"
            )
        why = "" if self._calls[layer] else why_not_fired(self._model, layer, self._layers[layer])
        return Calls(layer, self._calls[layer], why)

    def __iter__(self) -> Iterator[str]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, layer: object) -> bool:
        return layer in self._calls

    @property
    def nbytes(self) -> int:
        """The memory that the recording keeps alive: each storage once, as a whole, also where little of it is seen."""
        storages = {}
        for call in (call for calls in self._calls.values() for call in calls):
            kept = [call.kept_output, call.kept_input, call.kept_grad_output, call.kept_grad_input]
            for leaf in tree_flatten(kept)[0]:
                tensor = leaf.tensor if isinstance(leaf, Kept) else leaf.value if isinstance(leaf, Slot) else None
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def __repr__(self) -> str:
        rows = [("layer", "calls", "output")]
        for name, calls in self._calls.items():
            shown = described(calls[-1].kept_output) if calls and calls[-1].complete else "was not called"
            rows.append((name, str(len(calls)), shown))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _begin_pass(self) -> None:
        if not self._every_pass:
            with self._lock:
                self._calls = {name: [] for name in self._layers}
                self._order = 0
                self._let_go()

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _new_call(self, layer: str) -> Call:
        with self._lock:
            call = Call(layer, self._order)
            self._order += 1
            self._calls[layer].append(call)
        return call

    def _under_way(self) -> dict[str, list[Call]]:
        calls: dict[str, list[Call]] = self._running.__dict__.setdefault("calls", {})
        return calls

    def _call(self, layer: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = self._new_call(layer)
        self._under_way().setdefault(layer, []).append(call)
        if self._inputs:
            call.kept_input = self._kept(args)
        if not self._gradients:
            return None
        call.kept_grad_input, passed_on = self._watched(args, _watch_input)
        return tuple(passed_on) if passed_on is not None else None

    def _return(self, layer: str, output: Any) -> Any:
        under_way = self._under_way().get(layer)
        call = under_way.pop() if under_way else self._new_call(layer)
        call.kept_output = self._kept(output)
        call.complete = True
        if not self._gradients:
            return None
        if not torch.is_grad_enabled():
            raise GradUnavailable(
                f"layer {layer!r} ran under torch.no_grad(); run the model with gradients, or record none"
            )
        call.kept_grad_output, passed_on = self._watched(output, _watch_output)
        return passed_on

    def _kept(self, value: Any) -> Any:
        if isinstance(value, Tensor):  # nearly always, and much faster than to ask what the container is
            return Kept(value, self._copies)
        return tree_map(lambda leaf: Kept(leaf, self._copies) if isinstance(leaf, Tensor) else leaf, _opened(value))

    def _watched(self, value: Any, watch: Watch) -> tuple[Any, Any]:
        """In the shape of the value the slots in which gradients will arrive, and what to pass on if not the value."""
        leaves, shape = tree_flatten(value)
        slots = [Slot() for _ in leaves]
        passed_on = [
            watch(leaf, slot, self._handles) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            for leaf, slot in zip(leaves, slots, strict=True)
        ]
        same = all(new is old for new, old in zip(passed_on, leaves, strict=True))
        return tree_unflatten(slots, shape), None if same else tree_unflatten(passed_on, shape)


Watch: TypeAlias = Callable[[Tensor, Slot, list[RemovableHandle]], Tensor]
"""Has the gradient of a tensor arrive in the slot, and returns what to pass on in its place."""


def _watch_output(tensor: Tensor, slot: Slot, handles: list[RemovableHandle]) -> Tensor:
    if tensor.requires_grad:
        handles.append(receive(tensor, slot))
        return tensor
    # A frozen model, up to here: the graph begins with a leaf, and a copy of it goes on, which may be written into.
    leaf = tensor.detach().requires_grad_()
    handles.append(receive(leaf, slot))
    return leaf.clone()


def _watch_input(tensor: Tensor, slot: Slot, handles: list[RemovableHandle]) -> Tensor:
    if not tensor.requires_grad:
        return tensor
    # A view: what flows back to it comes of this layer alone, wherever else the input is used.
    own = tensor.view_as(tensor)
    handles.append(receive(own, slot))
    return own


def _opened(value: Any) -> Any:
    """Plain dataclasses as dicts, which is what pytree opens."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, dict)):
        return {field.name: _opened(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _recomputing() -> bool:
    """Whether this call is a checkpointed part running once more in the backward pass, which is not a second call."""
    return int(torch._C._current_graph_task_id()) != -1


def _begun(this: weakref.ref[Recording], module: nn.Module, args: Any) -> None:
    recording = this()
    if recording is not None and not _recomputing():
        recording._begin_pass()


def _called(this: weakref.ref[Recording], layer: str, module: nn.Module, args: tuple[Any, ...]) -> Any:
    recording = this()
    return None if recording is None or _recomputing() else recording._call(layer, args)


def _returned(this: weakref.ref[Recording], layer: str, module: nn.Module, args: Any, output: Any) -> Any:
    recording = this()
    return None if recording is None or _recomputing() else recording._return(layer, output)
