"""Run a model in eval mode, and restore its state afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.hooks import RemovableHandle

from torchpeek.engine.model_locks import BlockToken, LockHolder
from torchpeek.engine.random_state import SavedRandomState
from torchpeek.engine.saved_modules import SavedModules, all_modules
from torchpeek.errors import InputError, listed_names
from torchpeek.hooks import eagerly, nested_in_pass, notice_of_foreign_calls, remove_hooks_of_other_threads
from torchpeek.interrupts import uninterrupted


class _Thread(threading.local):
    """What this thread is doing."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []  # the open blocks, innermost last
        self.pass_depth = 0  # how many passes run: more than one if a hook of a model, or its forward, starts another


_THREAD = _Thread()

# The open blocks of all threads. Each stays here until it is closed, so that another can close it if it could not.
_OPEN: dict[int, _Block] = {}


@contextmanager
def preserved(model: nn.Module, *, evaluating: bool = True) -> Iterator[None]:
    """Inside the block: eval mode and no gradients. On every exit the model and torch's random state are as found.

    `SavedModules` says what is restored of the model, and `SavedRandomState` when the random state is.

    One thread at a time runs each model. Ctrl-C takes effect in the `interruptible` parts, that is, while the model
    runs. A hook may turn gradients on for the operations that follow it; that ends with the block. Blocks may be
    nested, and may be inside the caller's `no_grad` and `inference_mode`. A block may also be inside a pass of an outer
    one, if a hook or `forward` explains a model: the hooks of the outer block do not run in the passes of the inner.

    Args:
        model: The model.
        evaluating: Whether the modules are in eval mode inside the block. If not, their modes stay (a training step).

    Raises:
        InputError: When a layer is not initialised yet, and the block is for a pass in eval mode.
    """
    depth = _THREAD.pass_depth
    if any(block.model is model and block.pass_depth == depth for block in _THREAD.blocks):
        with torch.inference_mode(False), torch.no_grad():  # an outer block of this thread restores the state
            yield
        return
    with uninterrupted(), nested_in_pass(depth > 0):
        _close_abandoned()
        modules = all_modules(model)
        if evaluating:
            check_initialised(model, modules)
        token = BlockToken()
        block = _Block(model, modules, token)
        try:
            block.open(evaluating)
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            block.close()
        block.notify()


class _Block:
    """One open `preserved` block: what it has changed, and how that is undone."""

    def __init__(self, model: nn.Module, modules: list[nn.Module], token: BlockToken) -> None:
        self.model = model
        self.pass_depth = _THREAD.pass_depth
        self.evaluating = True
        self.random: SavedRandomState | None = None
        self.holder = LockHolder(token)
        self._modules = modules
        self._thread = _THREAD.blocks
        self._saved: SavedModules | None = None
        self._foreign_calls: RemovableHandle | None = None
        self._eager = ExitStack()

    def open(self, evaluating: bool) -> None:
        """Wait for the model, and set it to eval mode."""
        self.evaluating = evaluating
        _OPEN[id(self)] = self  # first: from here on the block is closed, by whoever can
        self.holder.acquire(self._modules)
        self._thread.append(self)
        self._saved = SavedModules(self._modules)
        self.random = SavedRandomState(self._saved.devices)
        self._eager.enter_context(eagerly(self._modules))
        if evaluating:
            if self._saved.any_training:
                self._foreign_calls = notice_of_foreign_calls(self.model)
            self._saved.set_eval_mode()

    def close(self) -> None:
        """Undo everything, also where a step fails. Then raise the first error. May be called again."""
        with ExitStack() as steps:  # runs all of them, the last first
            steps.callback(_OPEN.pop, id(self), None)
            steps.callback(self.holder.release)
            if self in self._thread:
                steps.callback(self._thread.remove, self)
            steps.callback(self._eager.close)
            if self.random is not None:
                steps.callback(self.random.restore)
            if self._saved is not None:
                steps.callback(self._saved.restore)
            if self._foreign_calls is not None:
                steps.callback(self._foreign_calls.remove)

    def notify(self) -> None:
        """Say what could not be restored."""
        if self._saved is not None:
            self._saved.notify_of_changed_parameters()

    def close_in_fork(self) -> None:
        """Undo what a thread has done that this process, a fork, does not have."""
        remove_hooks_of_other_threads(self._modules)
        self.random = None  # in the fork the state is that of the thread that forked
        self.close()


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Inside a `preserved` block: what passes in this block change in the model is undone after it.

    This is for a pass between another one and its backward pass, whose graph may hold buffers of the model.
    """
    saved = SavedModules(all_modules(model))
    try:
        yield
    finally:
        with uninterrupted():
            saved.restore()


def _close_abandoned() -> None:
    """Close the blocks that ended without having been closed: an exception from outside came while they were."""
    for block in list(_OPEN.values()):
        if not block.holder.is_alive:
            block.close()


def _close_other_threads() -> None:
    """In a forked process: close the blocks of the threads that are not there."""
    for block in list(_OPEN.values()):
        if block.holder.thread != threading.get_ident():
            block.close_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_other_threads)


@contextmanager
def running_pass(model: nn.Module, kind: Callable[[], Hashable]) -> Iterator[None]:
    """Inside the block: a pass of the model, or of a part of it.

    Args:
        model: The model.
        kind: Returns what tells apart passes that may draw random numbers from passes that may not.
    """
    depth = _THREAD.pass_depth
    _THREAD.pass_depth = depth + 1
    try:
        block = _THREAD.blocks[-1] if _THREAD.blocks else None  # it may run a copy of its model
        if block is None or block.random is None or block.random.is_certain():
            yield
        else:
            with block.random.observing(block.model, kind):
                yield
    finally:
        _THREAD.pass_depth = depth


def check_initialised(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> None:
    """Raise InputError where a lazy layer has no weights yet: a pass would make them, and the model would be changed.

    Args:
        model: The model.
        modules: All modules of it, if the caller has walked it already.
    """
    modules = all_modules(model) if modules is None else modules
    types: set[type] = {type(each) for module in modules for each in module._parameters.values()}
    types |= {type(each) for module in modules if module._buffers for each in module._buffers.values()}
    if types.isdisjoint(_LAZY) and not any(isinstance(module, LazyModuleMixin) for module in modules):
        return
    lazy = [(name, module) for name, module in model.named_modules() if _is_lazy(module)]
    if not lazy:
        return
    shown = listed_names(name or type(module).__name__ for name, module in lazy)
    raise InputError(
        f"layers of {type(model).__name__} are not initialised yet: {shown}, such as a {type(lazy[0][1]).__name__}, "
        "whose first forward pass makes its weights; allowed: a model with all of its weights. Next: run the model "
        "once on an input: with torch.no_grad(): model(inputs); make a layer that it does not call with its sizes, or "
        "take it out"
    )


_LAZY = frozenset({UninitializedParameter, UninitializedBuffer})


def _is_lazy(module: nn.Module) -> bool:
    """Whether the module has a parameter or buffer without a shape."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return True
    types = {*map(type, module._parameters.values()), *map(type, module._buffers.values())}
    return not types.isdisjoint(_LAZY)


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Inside the block: one thread at a time runs the model, as it is, and gradients are on. Nothing is restored.

    This is for a step of the caller's own training: modes, buffers and random numbers are the caller's.

    Args:
        model: The model.
    """
    with uninterrupted(), nested_in_pass(_THREAD.pass_depth > 0), ExitStack() as stack:
        modules = all_modules(model)
        token = BlockToken()
        holder = LockHolder(token)
        stack.callback(holder.release)
        holder.acquire(modules)
        stack.enter_context(eagerly(modules))
        with torch.inference_mode(False), torch.enable_grad():
            yield
