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

# A lock for each module, not each model: two models may share a part.
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; on every exit the modes, buffers and random state are as they were.

    One thread at a time for each model; Ctrl-C comes through in `interruptible` parts, that is, while the model runs.
    Works inside the caller's `no_grad` and `inference_mode`. A hook may turn gradients on for what comes after it; that
    ends with the block. What forward changes of a parameter, or of plain attributes, is not undone.
    """
    with uninterrupted(), ExitStack() as stack:
        for lock in _locks(model):
            stack.enter_context(lock)
        modes = [(module, module.training) for module in model.modules()]
        buffers = [_Buffers(module) for module in model.modules()]
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
            for each in buffers:
                each.put_back()


class _Buffers:
    """The buffers of one module as they were: which, in what order, and their values."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = dict(module._buffers)
        self._not_saved = set(module._non_persistent_buffers_set)
        self._values = {name: tensor.detach().clone() for name, tensor in self._tensors.items() if tensor is not None}

    def put_back(self) -> None:
        for name, value in self._values.items():
            tensor = self._tensors[name]
            if tensor is not None and _may_differ(tensor, value):
                # Through .data: a graph of the user's that holds the buffer does not take this for a change.
                with torch.inference_mode(tensor.is_inference()):
                    tensor.data.copy_(value)
        own = self._module._buffers
        if len(own) != len(self._tensors) or any(own.get(name) is not kept for name, kept in self._tensors.items()):
            own.clear()
            own.update(self._tensors)
        if self._module._non_persistent_buffers_set != self._not_saved:
            self._module._non_persistent_buffers_set = self._not_saved


def _may_differ(tensor: Tensor, value: Tensor) -> bool:
    """On the CPU, whether it does; elsewhere always, because to copy costs less there than to ask."""
    if tensor.is_meta:
        return False
    return tensor.device.type != "cpu" or not torch.equal(tensor, value)


def _locks(model: nn.Module) -> list[threading.RLock]:
    """Those of all its modules, always in the same order, so that nobody waits for somebody who waits for them."""
    with _LOCKS_GUARD:
        return [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(model.modules(), key=id)]


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
