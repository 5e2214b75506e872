"""Run a model and leave it as it was found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from torchpeek.hooks import eagerly, shared
from torchpeek.interrupts import let_interrupts_through, uninterrupted

# A lock for each module, not each model: two models may share a part.
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()

# The models that this thread is running. The locks let it in again; this saves it from saving everything again.
_LOCAL = threading.local()


@contextmanager
def preserved(model: nn.Module, *, evaluating: bool = True) -> Iterator[None]:
    """Eval mode and no gradients inside; on every exit the modes, buffers and random state are as they were.

    Unless `evaluating`, the modes inside are those of the model, as in a training step.

    One thread at a time for each model; Ctrl-C comes through in `interruptible` parts, that is, while the model runs.
    Works inside the caller's `no_grad` and `inference_mode`. A hook may turn gradients on for what comes after it; that
    ends with the block. What forward changes of a parameter, or of plain attributes, is not undone. May be nested.
    """
    if any(
        held is model for held in _models_running()
    ):  # in this thread's hands already: nothing to save, nothing to put back
        with torch.inference_mode(False), torch.no_grad():
            yield
        return
    with uninterrupted(), ExitStack() as stack:
        modules = list(model.modules())  # walked once: on small networks the walks are what this costs
        held: list[threading.RLock] = []
        stack.callback(_release, held)
        for lock in _locks(modules):
            while not (lock.acquire(blocking=False) or lock.acquire(timeout=0.1)):
                let_interrupts_through()
            held.append(lock)
        _models_running().append(model)
        stack.callback(_models_running().remove, model)
        modes = [(module, module.training) for module in modules]
        buffers = [_SavedBuffers(module) for module in modules if module._buffers]
        bare = [module for module in modules if not module._buffers]
        for device in _devices(modules):
            stack.enter_context(shared(f"random state of {device}", partial(_random_state, device)))
        stack.enter_context(eagerly(modules))
        with ExitStack() as restore:  # every one of these, also where one fails
            restore.callback(_restore_all, buffers, bare)
            restore.callback(_set_modes, modes)
            for module, training in modes:
                if training and evaluating:
                    # Not .eval(): a user's own train() may do more than set this.
                    module.training = False
            with torch.inference_mode(False), torch.no_grad():
                yield


def _release(locks: list[threading.RLock]) -> None:
    for lock in locks:
        lock.release()


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training


class _SavedBuffers:
    """The buffers of one module as they were: which, in what order, and their values."""

    __slots__ = ("_module", "_not_saved", "_tensors", "_values")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = dict(module._buffers)
        self._not_saved = set(module._non_persistent_buffers_set)
        kept = self._tensors.items()
        self._values = [(tensor, tensor.detach().clone()) for _, tensor in kept if tensor is not None]

    def restore(self) -> None:
        for tensor, value in self._values:
            if _needs_restoring(tensor, value):
                _restore(tensor, value)
        module, own, kept = self._module, self._module._buffers, self._tensors
        if len(own) != len(kept) or any(own.get(name) is not tensor for name, tensor in kept.items()):
            own.clear()
            own.update(kept)
            for name in kept:
                module.__dict__.pop(name, None)  # a plain attribute that forward put in its place
        if module._non_persistent_buffers_set != self._not_saved:
            module._non_persistent_buffers_set = self._not_saved


def _restore_all(buffers: list[_SavedBuffers], bare: list[nn.Module]) -> None:
    errors = []
    for each in buffers:
        try:
            each.restore()
        except Exception as error:  # the others are put back first
            errors.append(error)
    for module in bare:
        if module._buffers:
            module._buffers.clear()
            module._non_persistent_buffers_set.clear()
    if errors:
        raise errors[0]


def _needs_restoring(tensor: Tensor, value: Tensor) -> bool:
    """On the CPU, whether it does; elsewhere always, because to copy costs less there than to ask."""
    if tensor.is_meta:
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return True
    if tensor.shape != value.shape:
        return True
    # Bit by bit: NaN is as good as any other value here.
    return not torch.equal(tensor, value) and not torch.equal(_bits(tensor), _bits(value))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def _restore(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):
        try:
            # Through .data: a graph of the user's that holds the buffer does not take this for a change.
            tensor.data.copy_(value)
        except (RuntimeError, NotImplementedError):  # resized, sparse, or laid out over itself
            tensor.data = value


def _models_running() -> list[nn.Module]:
    """The models that this thread is running."""
    held: list[nn.Module] = _LOCAL.__dict__.setdefault("models", [])
    return held


def _locks(modules: list[nn.Module]) -> list[threading.RLock]:
    """Those of all of them, always in the same order, so that nobody waits for somebody who waits for them."""
    with _LOCKS_GUARD:
        return [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(modules, key=id)]


def _devices(modules: list[nn.Module]) -> list[torch.device]:
    """Where the modules have tensors, and the CPU: what has random numbers that a pass may draw."""
    own = (tensors for module in modules for tensors in (module._parameters, module._buffers))
    found = {tensor.device for tensors in own for tensor in tensors.values() if tensor is not None}
    return [torch.device("cpu"), *sorted((d for d in found if d.type not in ("cpu", "meta")), key=str)]


def _random_state(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device.index or 0], device_type=device.type)
