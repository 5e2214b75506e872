"""Run a model in eval mode, and restore its state afterwards."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from torchpeek.errors import InputError, listed_names
from torchpeek.hooks import eagerly, grad_mode, shared
from torchpeek.interrupts import let_interrupts_through, uninterrupted
from torchpeek.turns import Turns
from torchpeek.undo import Undo, undone

# One lock for each module, not for each model, because two models may share a module. Not a ModelCache: a lock is no
# result, and must not be dropped while it is held.
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = Turns()

# The models that this thread is running. A nested block for one of them saves nothing a second time.
_LOCAL = threading.local()


@undone
def preserved(undo: Undo, model: nn.Module, *, evaluating: bool = True) -> None:
    """Inside the block: eval mode and no gradients. On every exit the modes, buffers and random state are restored.

    One thread at a time runs each model. Ctrl-C and other signals take effect in the `interruptible` parts, that is,
    while the model runs. A hook may turn gradients on for the operations that follow it; that ends with the block.
    Changes that forward makes to parameters or to plain attributes are not undone. Blocks may be nested, and may be
    inside the caller's `no_grad` and `inference_mode`.

    Args:
        undo: What restores them.
        model: The model.
        evaluating: Whether the modules are in eval mode inside the block. If not, their modes stay (a training step).

    Raises:
        InputError: When a layer is not initialised yet, and the block is for a pass in eval mode.
    """
    running = _models_running()
    if any(each is model for each in running):  # an outer block of this thread restores its state
        undo.enter(grad_mode(False))
        return
    undo.enter(uninterrupted())
    modules = list(model.modules())  # walked once, because on small networks most of the cost is the walks
    if evaluating:
        check_initialised(model, modules)
    _lock(modules, undo)
    undo.push(_no_longer_running, running, model)
    running.append(model)
    # A frozen script has no mode.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    buffers = [_saved_buffers(module) for module in modules if len(module._buffers)]
    without_buffers = [module for module in modules if not len(module._buffers)]
    for device in _devices(modules):
        undo.enter(shared(f"random state of {device}", partial(_random_state, device)))
    undo.enter(eagerly(modules))
    undo.push(_restore_all, buffers, without_buffers)
    undo.push(_set_modes, modes)
    for module, training in modes:
        if training and evaluating:
            # Not .eval(), because a user's own train() may do more than set this attribute.
            module.training = False
    undo.enter(grad_mode(False))


def _no_longer_running(running: list[nn.Module], model: nn.Module) -> None:
    running[:] = [each for each in running if each is not model]


def check_initialised(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> None:
    """Raise InputError where a lazy layer has no weights yet: a pass would make them, and the model would be changed.

    Args:
        model: The model.
        modules: All modules of it, if the caller has walked it already.
    """
    lazy = [
        each
        for each in (model.modules() if modules is None else modules)
        if isinstance(each, LazyModuleMixin) and each.has_uninitialized_params()
    ]
    if lazy:
        names = {id(module): name for name, module in model.named_modules()}
        shown = listed_names(names[id(each)] for each in lazy)
        raise InputError(
            f"layers of {type(model).__name__} are not initialised yet: {shown}, such as a {type(lazy[0]).__name__}, "
            "whose first forward pass makes its weights; allowed: a model with all of its weights. Next: run the model "
            "once on an input; make a layer that it does not call with its sizes, or take it out"
        )


@undone
def exclusive(undo: Undo, model: nn.Module) -> None:
    """Inside the block: one thread at a time runs the model, as it is, and gradients are on. Nothing is restored.

    This is for a step of the caller's own training: modes, buffers and random numbers are the caller's.

    Args:
        undo: What ends this.
        model: The model.
    """
    undo.enter(uninterrupted())
    modules = list(model.modules())
    _lock(modules, undo)
    undo.enter(eagerly(modules))
    undo.enter(grad_mode(True))


def _lock(modules: list[nn.Module], undo: Undo) -> None:
    """Wait for the locks of the modules. The steps release them."""
    acquired: list[threading.RLock] = []
    undo.push(_release, acquired)
    for lock in _locks(modules):
        while not (lock.acquire(blocking=False) or lock.acquire(timeout=0.1)):
            let_interrupts_through()
        acquired.append(lock)


def _release(locks: list[threading.RLock]) -> None:
    while locks:
        locks.pop().release()


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training


class _SavedBuffers:
    """The saved buffers of one module: their names in order, their tensors, and their values."""

    __slots__ = ("_module", "_non_persistent", "_tensors", "_values")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = dict(module._buffers)
        self._non_persistent = set(module._non_persistent_buffers_set)
        self._values = [
            (tensor, tensor.detach().clone())
            for tensor in self._tensors.values()
            if tensor is not None and not is_lazy(tensor)
        ]

    def restore(self) -> None:
        for tensor, value in self._values:
            if needs_restoring(tensor, value):
                restore_value(tensor, value)
        module, current, saved = self._module, self._module._buffers, self._tensors
        if len(current) != len(saved) or any(current.get(name) is not tensor for name, tensor in saved.items()):
            current.clear()
            current.update(saved)
            for name in saved:
                module.__dict__.pop(name, None)  # a plain attribute with which forward replaced the buffer
        if module._non_persistent_buffers_set != self._non_persistent:
            module._non_persistent_buffers_set = self._non_persistent


class _SavedScriptBuffers:
    """The saved buffers of a scripted or traced module, which holds them outside of Python."""

    __slots__ = ("_module", "_values")

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        buffers = module.named_buffers(recurse=False)
        self._values = [(name, tensor, tensor.detach().clone()) for name, tensor in buffers]

    def restore(self) -> None:
        for name, tensor, value in self._values:
            if needs_restoring(tensor, value):
                restore_value(tensor, value)
            if getattr(self._module, name) is not tensor:
                setattr(self._module, name, tensor)


def _saved_buffers(module: nn.Module) -> _SavedBuffers | _SavedScriptBuffers:
    return _SavedScriptBuffers(module) if isinstance(module, torch.jit.ScriptModule) else _SavedBuffers(module)


def _restore_all(buffers: Sequence[_SavedBuffers | _SavedScriptBuffers], without_buffers: list[nn.Module]) -> None:
    """Restore all buffers, and remove those of modules that had none. Then raise the first error."""
    errors: list[Exception] = []
    for each in buffers:
        try:
            each.restore()
        except Exception as error:  # the others are restored first
            errors[:] = errors or [error]
    for module in without_buffers:
        if len(module._buffers):
            module._buffers.clear()
            module._non_persistent_buffers_set.clear()
    if errors:
        raise errors.pop()  # an error that stays in reach of its own traceback keeps the model alive


def needs_restoring(tensor: Tensor, value: Tensor) -> bool:
    """Whether the tensor may differ from the saved value. Except on the CPU, a copy is cheaper than a check."""
    if tensor.is_meta:
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return True
    if tensor.shape != value.shape:
        return True
    # Compared bit by bit, because NaN is not equal to itself.
    return not torch.equal(tensor, value) and not torch.equal(_bits(tensor), _bits(value))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def restore_value(tensor: Tensor, value: Tensor) -> None:
    """Write the saved value into the tensor."""
    with torch.inference_mode(tensor.is_inference()):
        try:
            # Through .data, so that a graph of the user's that holds the buffer does not count this as a change.
            tensor.data.copy_(value)
        except (RuntimeError, NotImplementedError):  # resized, sparse, or with elements that overlap in memory
            tensor.data = value


def _models_running() -> list[nn.Module]:
    """The models that this thread is running."""
    models: list[nn.Module] = _LOCAL.__dict__.setdefault("models", [])
    return models


def _locks(modules: list[nn.Module]) -> list[threading.RLock]:
    """The locks of the modules, always in the same order, so that two threads cannot wait for each other."""
    with _LOCKS_GUARD.turn():
        return [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(modules, key=id)]


def _devices(modules: list[nn.Module]) -> list[torch.device]:
    """The devices whose random state a pass may change: the CPU, and those that the modules have tensors on."""
    stores = (store for module in modules for store in (module._parameters, module._buffers))
    devices = {tensor.device for store in stores for tensor in store.values() if tensor is not None}
    return [torch.device("cpu"), *sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)]


def _random_state(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device.index or 0], device_type=device.type)
