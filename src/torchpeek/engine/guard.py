"""Run a model and leave it as it was found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from torchpeek.hooks import uninterrupted

# A lock for each module, not each model: two models may share a part.
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


_LOCAL = threading.local()


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; on every exit the modes, buffers and random state are as they were.

    One thread at a time for each model; Ctrl-C comes through in `interruptible` parts, that is, while the model runs.
    Works inside the caller's `no_grad` and `inference_mode`. A hook may turn gradients on for what comes after it; that
    ends with the block. What forward changes of a parameter, or of plain attributes, is not undone. May be nested.
    """
    if any(held is model for held in _held()):  # it is in this thread's hands already
        with torch.inference_mode(False), torch.no_grad():
            yield
        return
    with uninterrupted(), ExitStack() as stack:
        modules = list(model.modules())  # walked once: on small networks the walks are what this costs
        for lock in _locks(modules):
            stack.enter_context(lock)
        _held().append(model)
        stack.callback(_held().remove, model)
        training = [module for module in modules if module.training]
        buffers = [_Buffers(module) for module in modules]
        for kind, indices in _accelerators(modules).items():
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        stack.enter_context(torch.random.fork_rng(devices=[]))  # the CPU's
        if any(map(_is_compiled, modules)):
            # A compiled module ignores hooks that come after its first call, so it runs eagerly in here.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module in training:
                # Not .eval(): a user's own train() may do more than set this.
                module.training = False
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True
            for each in buffers:
                each.put_back()


class _Buffers:
    """The buffers of one module as they were: which, in what order, and their values."""

    __slots__ = ("_module", "_not_saved", "_tensors", "_values")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = dict(module._buffers)
        self._not_saved = set(module._non_persistent_buffers_set)
        kept = self._tensors.items()
        self._values = [(tensor, tensor.detach().clone()) for _, tensor in kept if tensor is not None]

    def put_back(self) -> None:
        for tensor, value in self._values:
            if _may_differ(tensor, value):
                # Through .data: a graph of the user's that holds the buffer does not take this for a change.
                with torch.inference_mode(tensor.is_inference()):
                    tensor.data.copy_(value)
        module = self._module
        if not (self._tensors or module._buffers):
            return
        own, kept = module._buffers, self._tensors
        if len(own) != len(kept) or any(own.get(name) is not tensor for name, tensor in kept.items()):
            own.clear()
            own.update(kept)
        if module._non_persistent_buffers_set != self._not_saved:
            module._non_persistent_buffers_set = self._not_saved


def _held() -> list[nn.Module]:
    """The models that this thread is running."""
    held: list[nn.Module] = _LOCAL.__dict__.setdefault("models", [])
    return held


def _may_differ(tensor: Tensor, value: Tensor) -> bool:
    """On the CPU, whether it does; elsewhere always, because to copy costs less there than to ask."""
    if tensor.is_meta:
        return False
    return tensor.device.type != "cpu" or not torch.equal(tensor, value)


def _locks(modules: list[nn.Module]) -> list[threading.RLock]:
    """Those of all of them, always in the same order, so that nobody waits for somebody who waits for them."""
    with _LOCKS_GUARD:
        return [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(modules, key=id)]


def _accelerators(modules: list[nn.Module]) -> dict[str, list[int]]:
    """Kind of device -> the indices at which the modules have tensors; the CPU is none."""
    own = (tensors for module in modules for tensors in (module._parameters, module._buffers))
    devices = {tensor.device for tensors in own for tensor in tensors.values() if tensor is not None}
    found: dict[str, list[int]] = {}
    for device in sorted(devices, key=str):
        if device.type not in ("cpu", "meta"):
            found.setdefault(device.type, []).append(device.index or 0)
    return found


def _is_compiled(module: nn.Module) -> bool:
    # torch.compile(module) wraps it; module.compile() sets the attribute.
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None
