"""Run a model and leave it as it was found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from torchpeek.hooks import uninterrupted

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; on every exit the modes, buffers and random state are as they were.

    One thread at a time for each model; Ctrl-C comes through in `interruptible` parts, that is, while the model runs.
    Works inside the caller's `no_grad` and `inference_mode`. A hook may turn gradients on for what comes after it; that
    ends with the block. What forward changes of a parameter, or of plain attributes, is not undone.
    """
    with _lock_of(model), uninterrupted(), ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules()]
        buffers = [_Buffer(owner, name, buffer) for owner, name, buffer in _buffers(model)]
        for kind, indices in _accelerators(model).items():
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        stack.enter_context(torch.random.fork_rng(devices=[]))  # the CPU's
        stack.enter_context(_eager(model))
        try:
            for module, training in modes:
                if training:
                    # Not .eval(): a user's own train() may do more than set this.
                    module.training = False
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            for module, training in modes:
                if module.training != training:
                    module.training = training
            for buffer in buffers:
                buffer.put_back()


class _Buffer:
    """One buffer as it was."""

    def __init__(self, owner: nn.Module, name: str, tensor: Tensor) -> None:
        self._owner, self._name, self._tensor = owner, name, tensor
        self._value = tensor.detach().clone()
        self._version = None if tensor.is_inference() else tensor._version

    def put_back(self) -> None:
        if self._version is None:  # inference tensors do not count how often they were written into
            with torch.inference_mode():
                self._tensor.copy_(self._value)
        elif self._tensor._version != self._version:
            with torch.no_grad():
                self._tensor.copy_(self._value)
        if self._owner._buffers.get(self._name) is not self._tensor:
            self._owner._buffers[self._name] = self._tensor


def _lock_of(model: nn.Module) -> threading.RLock:
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer


def _accelerators(model: nn.Module) -> dict[str, list[int]]:
    """Kind of device -> the indices at which the model has tensors; the CPU is none."""
    found: dict[str, set[int]] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            found.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    return {kind: sorted(indices) for kind, indices in found.items()}


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """A compiled module ignores hooks that come after its first call, so run it eagerly in here."""
    if any(_is_compiled(module) for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _is_compiled(module: nn.Module) -> bool:
    # torch.compile(module) wraps it; module.compile() sets the attribute.
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
