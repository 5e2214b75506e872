"""The hooks of a recording: what happens each time a recorded layer is called."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import GradUnavailable, InputError
from torchpeek.hooks import nested
from torchpeek.hooks.attach import Inert
from torchpeek.hooks.calls import Call
from torchpeek.hooks.keep import Keeper
from torchpeek.hooks.kept import Kept, Leaf, Slot
from torchpeek.hooks.tensors import Use, arrival, hooked, used_alone

_thread = threading.get_ident
_graph_task: Callable[[], int] = torch._C._current_graph_task_id


class Stopped(BaseException):
    """Ends a pass of which nothing more is wanted. Not an Exception, so that no network catches it."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Where the graph leaves a layer: an edge, and where a gradient goes that arrives there."""

    layer: str
    slot: Slot
    at: GradientEdge | Use  # a use where what comes out may have others, too

    @property
    def edges(self) -> list[GradientEdge]:
        """Where to ask for the gradient now: at the first that is in use."""
        return self.at.edges if isinstance(self.at, Use) else [self.at]


class Passes:
    """What all layers of a recording share: whose pass it is, and which. Taps hold it, and it holds no tap."""

    def __init__(self, *, inputs: bool, gradients: bool, copy: bool, copy_gradients: bool, every: bool) -> None:
        self.inputs = inputs
        self.gradients = gradients
        self.copy = copy
        self.copy_gradients = copy_gradients
        self.every = every
        self.number = 0  # of the pass whose calls are kept
        self.begun = 0  # passes so far, also where all are kept
        self.order = count()
        self.thread = -1
        self.handles: list[RemovableHandle | Use] = []
        self.exits: list[Exit] = []  # of this pass
        self.replicas: dict[int, object] = {}  # thread -> where the replica of the model runs that it runs
        self.elsewhere = False  # whether another thread called the layers, which is none of ours
        self.ended = True  # whether the last pass came to its end
        self.waiting: set[str] | None = None  # for an early stop: the layers that have yet to return
        self.wanted: frozenset[str] = frozenset()  # those that it waits for in every pass
        self.stopped: Stopped | None = None
        self.admit: Callable[[Leaf], None] | None = None  # sees to it that the memory stays within its bound

    def open(self) -> None:
        """The block begins, in this thread."""
        self.thread = _thread()
        self.elsewhere, self.ended, self.stopped = False, True, None

    def begin(self) -> None:
        """A new pass: what it records replaces what the last one did."""
        self.replicas.clear()
        self.exits.clear()
        self.elsewhere = self.ended = False
        self.begun += 1
        if self.waiting is not None:
            self.waiting = set(self.wanted)
        if not self.every:
            self.number += 1
            self.order = count()
            self.let_go()

    def let_go(self) -> None:
        """Take the hooks off the tensors of the graph."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def end(self) -> None:
        """The model returned. An early stop no more waits for layers that such a pass does not call."""
        self.ended = True
        if self.waiting:
            self.wanted = (self.wanted - self.waiting) or self.wanted

    def returned(self, layer: str) -> None:
        """End the pass if this was the last layer that it was for."""
        assert self.waiting is not None
        self.waiting.discard(layer)
        if not self.waiting:
            self.stopped = Stopped()
            raise self.stopped

    def is_ours(self, replica: bool) -> bool:
        """Whether a call that is now under way belongs to the recording.

        Not where a checkpointed part runs once more in the backward pass, which is not a second call; nor where
        somebody else runs the model in another thread. But DataParallel runs replicas of it in threads of its own.
        """
        if _graph_task() != -1:
            return False
        if _thread() == self.thread or replica or _thread() in self.replicas:
            return True
        self.elsewhere = True
        return False


class Begun(Inert):
    """When the model is called, a pass begins."""

    __slots__ = ("_model", "_passes", "_then")

    def __init__(self, passes: Passes, model: nn.Module, then: Callable[[], None]) -> None:
        self._passes = passes
        self._model = model
        self._then = then

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        passes, replica = self._passes, module is not self._model
        if not passes.is_ours(replica):
            return
        if _under_vmap():
            raise InputError(
                "inside of torch.vmap a layer returns wrappers that die with it, so nothing can be recorded; run the "
                "batch as it is, or record outside"
            )
        if replica:
            # The replicas of one call of DataParallel make one pass: it begins when one of them comes again.
            device = next((tensor.device for tensor in module.buffers()), torch.device("cpu"))
            where = id(module) if device.type == "cpu" else device
            if where not in passes.replicas.values():
                passes.replicas[_thread()] = where
                return
        passes.begin()
        self._then()
        if replica:
            passes.replicas[_thread()] = where


class Ended(Inert):
    """When the model returns, the pass is whole."""

    __slots__ = ("_passes",)

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._passes.is_ours(replica=False):
            self._passes.end()


class Called(Inert):
    """When a layer is called: its inputs."""

    __slots__ = ("_tap",)

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        tap, passes = self._tap, self._tap.passes
        if (_thread() != passes.thread or _graph_task() != -1) and not passes.is_ours(module is not tap.module):
            return None
        return tap.called(module, args, kwargs or {})


class Tap(Inert):
    """The calls of one layer, and its forward hook: what it returns."""

    __slots__ = (
        "_accumulates",
        "_begun",
        "_calls",
        "_keeper",
        "_next",
        "_number",
        "_under_way",
        "layer",
        "module",
        "passes",
    )

    def __init__(self, layer: str, module: nn.Module, passes: Passes, keeper: Keeper | None, accumulates: bool) -> None:
        self.layer = layer
        self.module = module
        self.passes = passes
        self._keeper = keeper
        self._accumulates = accumulates
        self._calls: list[Call] = []
        self._number = self._begun = self._next = 0
        self._under_way: dict[int, list[Call]] | None = {} if passes.inputs or passes.gradients else None

    @property
    def calls(self) -> list[Call]:
        """Those of this pass, or of all of them."""
        return self._calls if self._accumulates or self._number == self.passes.number else []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        passes = self.passes
        # Here every tenth of a microsecond counts, so what nearly always holds is asked right here.
        if (_thread() != passes.thread or _graph_task() != -1) and not passes.is_ours(module is not self.module):
            # A checkpointed part has to run again just as it ran.
            return nested.mapped(output, _as_frozen) if passes.gradients and _graph_task() != -1 else None
        call = self._new_call(module) if self._under_way is None else self._finished(module)
        if type(output) is Tensor and self._keeper is None and passes.admit is None:
            call.kept_output = Kept(output, passes.copy)
        else:
            call.kept_output = self._kept("output", call, output)
        call.complete = True
        passed_on = self._watched_output(call, args, output) if passes.gradients else None
        if passes.waiting is not None:
            passes.returned(self.layer)
        return passed_on

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer is called: keep what it is given, and return what it is to be given, if not just that."""
        passes, call = self.passes, self._new_call(module)
        assert self._under_way is not None
        self._under_way.setdefault(_thread(), []).append(call)
        if passes.inputs:
            call.kept_input = self._kept("input", call, args)
            call.kept_kwargs = self._kept("input", call, kwargs) if kwargs else kwargs
        if not passes.gradients:
            return None

        slots: dict[tuple[str, str], Slot] = {}

        def watched(kind: str) -> Callable[[str, Tensor], Tensor]:
            def watch(path: str, tensor: Tensor) -> Tensor:
                slots[kind, path] = slot = self._slot(call, "grad_input", path)
                if not tensor.requires_grad:
                    return tensor
                # What flows back to it comes of this layer alone, wherever else the input is used.
                use, own = used_alone(tensor, arrival(slot), passed_on=False)
                passes.handles.append(use)
                call.uses.append((use, tensor))
                return own

            return watch

        passed_on = nested.mapped(args, watched("args")), nested.mapped(kwargs, watched("kwargs"))
        call.began = torch._C._autograd._get_sequence_nr()
        call.kept_grad_input = nested.mapped(args, lambda path, tensor: slots["args", path], only=True)
        call.kept_grad_kwargs = nested.mapped(kwargs, lambda path, tensor: slots["kwargs", path], only=True)
        return None if passed_on[0] is args and passed_on[1] is kwargs else passed_on

    def _new_call(self, module: nn.Module) -> Call:
        passes = self.passes
        if self._number != passes.number:
            self._number = passes.number
            if self._under_way:
                self._under_way = {}
            if not self._accumulates:
                self._calls = []
        call = Call(self.layer, next(passes.order))
        if module is not self.module or passes.replicas:
            call.replica = True
        if not self._accumulates:
            self._calls.append(call)
            return call
        # The first call of every pass goes with the first of those before, the second with the second.
        if self._begun != passes.begun or not passes.begun:
            self._begun, self._next = passes.begun, 0
        call.number = self._next
        self._next += 1
        self._calls[call.number : call.number + 1] = [call]
        return call

    def _finished(self, module: nn.Module) -> Call:
        assert self._under_way is not None
        under_way = self._under_way.get(_thread())
        return under_way.pop() if under_way else self._new_call(module)

    def _kept(self, part: str, call: Call, value: Any) -> Any:
        keeper, admit, copy = self._keeper, self.passes.admit, self.passes.copy
        if keeper is None and admit is None:
            return nested.mapped(value, lambda path, tensor: Kept(tensor, copy))
        return nested.mapped(
            value, lambda path, tensor: _leaf(keeper, admit, part, path, call.order, call.number, copy, tensor)
        )

    def _slot(self, call: Call, part: str, path: str) -> Slot:
        # Not through this tap, which holds the call, which holds the slot: memory is to go at once, not when Python
        # next looks for cycles.
        keeper, admit, copy = self._keeper, self.passes.admit, self.passes.copy_gradients
        return Slot(partial(_leaf, keeper, admit, part, path, call.order, call.number, copy))

    def _watched_output(self, call: Call, args: Any, output: Any) -> Any:
        passes = self.passes
        if not torch.is_grad_enabled():
            raise GradUnavailable(
                f"layer {self.layer!r} ran under torch.no_grad(); run the model with gradients, or record none. (What "
                "is checkpointed with use_reentrant=True runs so, too: use_reentrant=False)"
            )
        # One tensor, which this very call made: then whatever flows back to it flows back to the layer. Not so for what
        # is passed on, or comes from elsewhere, or where one output may be made from another.
        made_here = (
            isinstance(output, Tensor)
            and output.grad_fn is not None
            and not output._is_view()
            and output.grad_fn._sequence_nr() >= call.began
        )
        for use, given in call.uses:  # of its inputs, which a layer may pass on
            (use.settle if made_here else use.watch_base)(given)
        call.uses = []
        slots: dict[str, Slot] = {}

        def watch(path: str, tensor: Tensor) -> Tensor:
            slots[path] = slot = self._slot(call, "grad_output", path)
            if not tensor.is_floating_point() and not tensor.is_complex():
                return tensor
            if tensor.requires_grad and made_here:
                passes.handles.append(hooked(tensor, arrival(slot)))
                passes.exits.append(Exit(self.layer, slot, get_gradient_edge(tensor)))
                return tensor
            if tensor.requires_grad:
                use, own = used_alone(tensor, arrival(slot), passed_on=True)
                passes.handles.append(use)
                passes.exits.append(Exit(self.layer, slot, use))
                return own
            leaf = _leaf_of(tensor)
            passes.handles.append(hooked(leaf, arrival(slot)))
            passes.exits.append(Exit(self.layer, slot, get_gradient_edge(leaf)))
            return leaf.clone()  # not the leaf itself: what comes next may write into it

        passed_on = nested.mapped(output, watch)
        call.kept_grad_output = nested.mapped(output, lambda path, tensor: slots[path], only=True)
        return None if passed_on is output else passed_on


def _leaf_of(tensor: Tensor) -> Tensor:
    """A frozen model, up to here: the graph begins with this."""
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _as_frozen(path: str, tensor: Tensor) -> Tensor:
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return _leaf_of(tensor).clone() if differentiable and not tensor.requires_grad else tensor


def _leaf(
    keeper: Keeper | None,
    admit: Callable[[Leaf], None] | None,
    part: str,
    path: str,
    order: int,
    number: int,
    copy: bool,
    tensor: Tensor,
) -> Leaf:
    """What to leave in the place of a tensor."""
    if keeper is None:
        leaf: Leaf = Kept(tensor, copy)
    else:
        leaf = keeper(f"{part}.{path}" if path else part, order, number, tensor, copy)
    if admit is not None:
        admit(leaf)
    return leaf


def _under_vmap() -> bool:
    stack = torch._C._functorch.get_interpreter_stack()  # None outside of every transform
    return stack is not None and any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)
