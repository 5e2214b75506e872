"""record(): what flows through the layers of a network, and back, while the user runs it."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import (
    AmbiguousCall,
    GradUnavailable,
    InputError,
    LayerNotFound,
    NotFired,
    StaleCapture,
    closest,
    notify,
)
from torchpeek.hooks.attach import attached
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


class Call:
    """One call of one layer."""

    def __init__(self, layer: str, order: int) -> None:
        self.layer = layer
        self.order = order  # among the calls of all recorded layers, from 0
        self.complete = False  # False where the layer raised, or is still running
        self._output: Any = None
        self._input: tuple[Any, ...] | None = None
        self._grad_output: Any = None
        self._grad_input: tuple[Any, ...] | None = None

    @property
    def output(self) -> Any:
        """What the layer returned, detached, in the container that it came in."""
        if not self.complete:
            raise NotFired(f"layer {self.layer!r} did not return: an exception came in between")
        return _read(self._output)

    @property
    def input(self) -> Any:
        """What the layer was given: its one positional argument, or a tuple of several."""
        if self._input is None:
            raise InputError(f"the inputs of {self.layer!r} were not recorded; record(..., inputs=True) keeps them")
        return _only(_read(self._input))

    @property
    def grad_output(self) -> Any:
        """The gradient with respect to the output, in its container; None where none has arrived."""
        self._check_gradients(self._grad_output)
        return _read(self._grad_output)

    @property
    def grad_input(self) -> Any:
        """The gradient with respect to the input that comes of this layer alone, as torch defines it.

        None for an input that needs none, and where none has arrived.
        """
        self._check_gradients(self._grad_input)
        return _only(_read(self._grad_input))

    def _check_gradients(self, recorded: Any) -> None:
        if recorded is None:
            raise InputError(
                f"the gradients of {self.layer!r} were not recorded; record(..., gradients=True) keeps them"
            )

    def __repr__(self) -> str:
        what = _described(self._output) if self.complete else "did not return"
        return f"Call({self.layer!r}, {what})"


class Calls(Sequence[Call]):
    """The calls of one layer, in order. Where there is just one, its values can be read right here."""

    def __init__(self, layer: str, calls: list[Call], why_none: str) -> None:
        self._layer = layer
        self._calls = calls
        self._why_none = why_none

    def __getitem__(self, index: int) -> Call:  # type: ignore[override]  # one call at a time
        if not self._calls:
            raise NotFired(self._why_none)
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def output(self) -> Any:
        """As `Call.output`."""
        return self._one().output

    @property
    def input(self) -> Any:
        """As `Call.input`."""
        return self._one().input

    @property
    def grad_output(self) -> Any:
        """As `Call.grad_output`."""
        return self._one().grad_output

    @property
    def grad_input(self) -> Any:
        """As `Call.grad_input`."""
        return self._one().grad_input

    def _one(self) -> Call:
        if len(self._calls) > 1:
            raise AmbiguousCall(
                f"layer {self._layer!r} was called {len(self._calls)} times; take one, [0] to [{len(self) - 1}]"
            )
        return self[0]

    def __repr__(self) -> str:
        return f"Calls({self._layer!r}, {len(self._calls)})"


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
            for leaf in tree_flatten([call._output, call._input, call._grad_output, call._grad_input])[0]:
                tensor = leaf.tensor if isinstance(leaf, _Kept) else leaf.value if isinstance(leaf, Slot) else None
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def __repr__(self) -> str:
        rows = [("layer", "calls", "output")]
        for name, calls in self._calls.items():
            shown = _described(calls[-1]._output) if calls and calls[-1].complete else "was not called"
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
            call._input = self._kept(args)
        if not self._gradients:
            return None
        call._grad_input, passed_on = self._watched(args, _watch_input)
        return tuple(passed_on) if passed_on is not None else None

    def _return(self, layer: str, output: Any) -> Any:
        under_way = self._under_way().get(layer)
        call = under_way.pop() if under_way else self._new_call(layer)
        call._output = self._kept(output)
        call.complete = True
        if not self._gradients:
            return None
        if not torch.is_grad_enabled():
            raise GradUnavailable(
                f"layer {layer!r} ran under torch.no_grad(); run the model with gradients, or record none"
            )
        call._grad_output, passed_on = self._watched(output, _watch_output)
        return passed_on

    def _kept(self, value: Any) -> Any:
        return tree_map(lambda leaf: _Kept(leaf, self._copies) if isinstance(leaf, Tensor) else leaf, _opened(value))

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


class _Kept:
    """One tensor as it was: a copy, or a reference that knows when it has been written into."""

    __slots__ = ("_version", "tensor")

    def __init__(self, tensor: Tensor, copy: bool) -> None:
        alias = tensor.detach()
        self.tensor = alias.clone() if copy or alias.is_inference() else alias
        self._version = None if self.tensor.is_inference() else self.tensor._version

    def read(self) -> Tensor:
        if self._version is not None and self.tensor._version != self._version:
            raise StaleCapture(
                f"a later operation wrote into what was recorded (version {self._version} -> {self.tensor._version}); "
                f"record(..., snapshot='clone') keeps a copy"
            )
        return self.tensor


def _read(value: Any) -> Any:
    def one(leaf: Any) -> Any:
        if isinstance(leaf, _Kept):
            return leaf.read()
        return leaf.value if isinstance(leaf, Slot) else leaf

    return tree_map(one, value)


def _opened(value: Any) -> Any:
    """Plain dataclasses as dicts, which is what pytree opens."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, dict)):
        return {field.name: _opened(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _only(values: Any) -> Any:
    return values[0] if len(values) == 1 else values


def _described(value: Any) -> str:
    tensors = [leaf.tensor for leaf in tree_flatten(value)[0] if isinstance(leaf, _Kept)]
    shown = [f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]
    return ", ".join(shown) or "no tensor"


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
