"""Run a model and leave it as it was found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from torchpeek.hooks import uninterrupted

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; on every exit the modes, buffers and random state are as they were.

    One thread at a time for each model. Works inside the caller's `no_grad` and `inference_mode`. A hook may turn
    gradients on for what comes after it; that ends with the block. What forward changes of a parameter, or of plain
    attributes, is not undone.
    """
    with _lock_of(model), ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules()]
        buffers = [
            (owner, name, buffer, _version(buffer), buffer.detach().clone()) for owner, name, buffer in _buffers(model)
        ]
        devices = {tensor.device for tensor in model.parameters()} | {buffer.device for _, _, buffer, _, _ in buffers}
        accelerators = {device.type for device in devices if device.type != "cpu"}
        for kind in accelerators:
            indices = [device.index for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        if not accelerators:
            stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(_eager(model))
        try:
            with uninterrupted():
                for module, training in modes:
                    if training:
                        # Not .eval(): a user's own train() may do more than set this.
                        module.training = False
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            with uninterrupted():
                for module, training in modes:
                    module.training = training
                _put_back(buffers)


def _lock_of(model: nn.Module) -> threading.RLock:
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer


def _version(buffer: Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version


def _put_back(buffers: list[tuple[nn.Module, str, Tensor, int | None, Tensor]]) -> None:
    for owner, name, buffer, version, value in buffers:
        if version is None:
            with torch.inference_mode():
                buffer.copy_(value)
        elif buffer._version != version:
            with torch.no_grad():
                buffer.copy_(value)
        if owner._buffers.get(name) is not buffer:
            owner._buffers[name] = buffer


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
