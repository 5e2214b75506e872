"""Run a model in eval mode, and restore its state afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchpeek.engine.model_locks import LockHolder
from torchpeek.engine.random_state import SavedRandomState, observing_draws
from torchpeek.engine.saved_modules import SavedModules, all_modules
from torchpeek.errors import InputError, listed_names, type_shown
from torchpeek.hooks import eagerly, grad_mode, nested_in_pass, notice_of_foreign_calls
from torchpeek.interrupts import uninterrupted
from torchpeek.undo import Undo, undone


@dataclass(frozen=True, eq=False)
class _Block:
    """An open `preserved` block."""

    model: nn.Module
    pass_depth: int
    random: SavedRandomState


class _Thread(threading.local):
    """What this thread is doing."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []  # the open blocks, innermost last
        self.pass_depth = 0  # how many passes run: more than one if a hook of a model, or its forward, starts another

    def set(self, blocks: list[_Block], pass_depth: int) -> None:
        self.blocks, self.pass_depth = blocks, pass_depth


_THREAD = _Thread()


@undone
def preserved(undo: Undo, model: nn.Module, *, evaluating: bool = True) -> None:
    """Inside the block: eval mode and no gradients. On every exit the model and torch's random state are as found.

    `SavedModules` says what is restored of the model, and `SavedRandomState` when the random state is.

    One thread at a time runs each model. Ctrl-C and other signals take effect in the `interruptible` parts, that is,
    while the model runs. A hook may turn gradients on for the operations that follow it; that ends with the block.
    Blocks may be nested, and may be inside the caller's `no_grad` and `inference_mode`. A block may also be inside a
    pass of an outer one, if a hook or `forward` explains a model: the hooks of the outer block do not run in the passes
    of the inner.

    Args:
        undo: What restores them.
        model: The model.
        evaluating: Whether the modules are in eval mode inside the block. If not, their modes stay (a training step).

    Raises:
        InputError: When a layer is not initialised yet, and the block is for a pass in eval mode.
    """
    blocks, depth = _THREAD.blocks, _THREAD.pass_depth
    if any(block.model is model and block.pass_depth == depth for block in blocks):
        undo.enter(grad_mode(False))  # an outer block of this thread restores the state
        return
    undo.enter(uninterrupted())
    undo.enter(grad_mode(False))  # it ends last: a `no_grad` in what saves and restores, cut short, leaves nothing
    undo.enter(nested_in_pass(depth > 0))
    modules = all_modules(model)
    if evaluating:
        check_initialised(model, modules)
    _hold(undo, modules)
    undo.enter(eagerly(modules))
    saved = SavedModules(modules)
    if evaluating and saved.hidden:
        check_initialised(model, saved.hidden)
    random = SavedRandomState(saved.devices)
    undo.push(random.close)
    undo.push_local(random.restore)  # in a forked process, the state is that of the thread that forked
    undo.push_local(_notify, saved, sys.exception())
    undo.push(saved.restore)
    undo.push_local(_THREAD.set, blocks, depth)
    _THREAD.set([*blocks, _Block(model, depth, random)], depth)
    if evaluating:
        if saved.any_training:
            undo.enter(notice_of_foreign_calls(model))
        saved.set_eval_mode()


def _notify(saved: SavedModules, before: BaseException | None) -> None:
    """Say what could not be restored, unless the block ends with an exception, which says more."""
    if sys.exception() is before:
        saved.notify_of_changed_parameters()


@undone
def exclusive(undo: Undo, model: nn.Module) -> None:
    """Inside the block: one thread at a time runs the model, as it is, and gradients are on. Nothing is restored.

    This is for a step of the caller's own training: modes, buffers and random numbers are the caller's.

    Args:
        undo: What ends this.
        model: The model.
    """
    undo.enter(uninterrupted())
    undo.enter(nested_in_pass(_THREAD.pass_depth > 0))
    modules = all_modules(model)
    _hold(undo, modules)
    undo.enter(eagerly(modules))
    undo.enter(grad_mode(True))


def _hold(undo: Undo, modules: Sequence[nn.Module]) -> None:
    """Wait until no other thread runs one of these modules. They are given back by the steps."""
    holder = LockHolder(undo)
    undo.push(holder.release)
    holder.acquire(modules)


@undone
def model_restored(undo: Undo, model: nn.Module) -> None:
    """Inside a `preserved` block: what passes in this block change in the model is restored after it.

    This is for a pass between another one and its backward pass, whose graph may hold buffers of the model.

    Args:
        undo: What restores it.
        model: The model.
    """
    undo.push(SavedModules(all_modules(model)).restore)


@contextmanager
def running_pass(model: nn.Module, kind: Callable[[], Hashable]) -> Iterator[None]:
    """Inside the block: a pass of the model, or of a part of it.

    Args:
        model: The model.
        kind: Returns a key. Of passes with the same key, all draw random numbers or none does.
    """
    depth = _THREAD.pass_depth
    try:
        _THREAD.pass_depth = depth + 1
        block = _THREAD.blocks[-1] if _THREAD.blocks else None  # it may run a copy of its model
        if block is None or block.random.is_certain():
            yield
        else:
            with observing_draws(block.random, [each.model for each in _THREAD.blocks], kind):
                yield
    finally:
        _THREAD.pass_depth = depth  # where this is cut short, `preserved` does it


def check_initialised(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> None:
    """Raise InputError where a lazy layer has no weights yet: a pass would make them, and the model would be changed.

    Args:
        model: The model.
        modules: Those that are looked at, such as the ones in a plain list of the model; None for all that it lists.
    """
    modules = all_modules(model) if modules is None else modules
    types: set[type] = {type(each) for module in modules for each in module._parameters.values()}
    types |= {type(each) for module in modules if module._buffers for each in module._buffers.values()}
    if types.isdisjoint(_LAZY) and not any(isinstance(module, LazyModuleMixin) for module in modules):
        return
    names = {module: name for name, module in model.named_modules()}
    lazy = [(names.get(module, ""), module) for module in modules if _is_lazy(module)]
    if not lazy:
        return
    shown = listed_names(name or type(module).__name__ for name, module in lazy)
    raise InputError(
        f"layers of {type(model).__name__} are not initialised yet: {shown}, such as {type_shown(lazy[0][1])}, "
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
