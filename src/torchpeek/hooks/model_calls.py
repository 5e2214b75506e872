"""Decide whether a call of a layer belongs to the model, or to another model that shares the layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchpeek.hooks.frames import frames_from, running_module
from torchpeek.hooks.process import current_thread
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.hooks.tasks import TaskBlock, task_block

# Modules that compute nothing of their own. A slice of an nn.Sequential is one, and so is a traced part of a model.
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ModelCalls:
    """Which calls of the layers of a model belong to the model. An actor and a critic, for example, share layers.

    1. While the model runs, every call belongs to it.
    2. Otherwise somebody runs a part of it, such as `model[0](x)` or `model.encode(x)`. The call belongs to the model
       unless another model made it. That is a module on the stack that has the layer and also layers or parameters that
       the model does not have, and that does not contain the model.

    The stack is only read in the second case. Each thread has its own passes. A pass that another asyncio task runs in
    the thread is none of them, because a forward pass awaits nothing: see `TaskBlock`.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.depth: dict[int, int] = {}  # thread -> how many calls of the model run in it
        self._other_models: dict[int, str] = {}  # layer -> the type of another model that called it
        self._members: dict[int, nn.Module] = {}  # every module of the model; empty until the stack is first read
        self._task: TaskBlock | None = None  # while the block is open, and an asyncio task has opened it
        self._in_other_tasks: set[int] = set()  # the layers that other tasks called
        self._callers: dict[int, _Caller] = {}  # modules outside the model that called a layer, while the block is open

    def open(self) -> None:
        """Begin to count the passes."""
        self.depth.clear()
        self._other_models.clear()
        self._in_other_tasks.clear()
        self._task = task_block()
        _OPEN[id(self)] = self

    def close(self) -> None:
        """End what `open` began."""
        self._members, self._callers = {}, {}
        if self._task is not None:
            self._task.close()
            self._task = None
        _OPEN.pop(id(self), None)

    def begin(self) -> bool:
        """The model is called in the current thread. Returns whether this begins a pass: no other call of it runs."""
        if self._task is not None and self._task.is_foreign():
            return False
        thread = current_thread()
        if self.depth.get(thread):  # the model calls itself, or its last call ended with a BaseException
            self.recount(but=1)
        depth = self.depth.get(thread, 0)
        self.depth[thread] = depth + 1
        return not depth

    def end(self) -> None:
        """A call of the model returned or raised in the current thread."""
        thread = current_thread()
        if depth := self.depth.get(thread):
            self.depth[thread] = depth - 1

    def recount(self, but: int = 0) -> None:
        """Count the calls of the model that run in the current thread, but for the innermost ones, on the stack."""
        root = _identity(self.model)
        running = sum(
            frame.f_code is _CALL and (module := running_module(frame)) is not None and _identity(module) == root
            for frame in frames_from(sys._getframe(1))
        )
        self.depth[current_thread()] = max(0, running - but)

    def why_excluded(self, layer: SelectedLayer) -> str | None:
        """Say that only another model, or another asyncio task, called the layer; None if none did."""
        if _identity(layer.module) in self._in_other_tasks:
            return (
                f"layer {layer.path!r} was called in another asyncio task than the one that opened the block; open it "
                "in the task that runs the model"
            )
        other = self._other_models.get(_identity(layer.module))
        if other is None:
            return None
        return (
            f"layer {layer.path!r} was called by a {other} alone, another model that shares it with this "
            f"{type(self.model).__name__}; give that model instead, or run this one"
        )

    def include(self, layer: nn.Module) -> bool:
        """Whether the call of `layer` that runs now belongs to the model."""
        root, called = _identity(self.model), _identity(layer)
        if self._task is not None and self._task.is_foreign():
            self._in_other_tasks.add(called)
            return False
        if called == root or self.depth.get(current_thread()):
            return True
        if not self._members:
            self._members = {_identity(module): module for module in self.model.modules()}
        for module in map(running_module, frames_from(sys._getframe(1))):
            if module is None:
                continue
            identity = _identity(module)
            if identity == root:
                return True
            if identity in self._members:
                continue
            belongs = self._belongs(module, root, called)
            if belongs is False:
                self._other_models[called] = type(module).__name__
            if belongs is not None:
                return belongs
        return True

    def _belongs(self, module: nn.Module, root: int, called: int) -> bool | None:
        """Whether the calls that a module outside the model makes are the model's; None if that is for its caller."""
        caller = self._callers.get(id(module))
        if caller is None or caller.module is not module:
            caller = self._callers[id(module)] = self._caller(module)
        if root in caller.registered:
            return True
        if called not in caller.registered:
            if root in caller.referred:
                return True
            if called not in caller.referred:
                return None
        return False if caller.has_own else None

    def _caller(self, module: nn.Module) -> _Caller:
        registered = {_identity(each): each for each in module.modules()}
        referred = {_identity(each) for value in vars(module).values() for each in _modules_in(value)}
        own_layers = any(
            identity not in self._members and each is not module and type(each) not in _CONTAINERS
            for identity, each in registered.items()
        )
        parameters = {id(tensor) for member in self._members.values() for tensor in _tensors(member)}
        own_tensors = any(id(tensor) not in parameters for each in registered.values() for tensor in _tensors(each))
        return _Caller(module, frozenset(registered), frozenset(referred), own_layers or own_tensors)


@dataclass(frozen=True, eq=False)
class _Caller:
    """A module outside the model: which modules it has, and whether it has layers or tensors that the model has not."""

    module: nn.Module
    registered: frozenset[int]
    referred: frozenset[int]  # in its attributes, without being registered
    has_own: bool


_OPEN: dict[int, ModelCalls] = {}  # those whose block is open, by id; threads add and remove their own


def passes_were_cut() -> None:
    """Count the open passes of this thread anew, after calls of models ended in a way that no hook is told of."""
    for calls in tuple(_OPEN.values()):
        if calls.depth.get(current_thread()):
            calls.recount()


def _identity(module: nn.Module) -> int:
    """The same for a module and its replicas in DataParallel, which share its hooks."""
    return id(module.__dict__.get("_forward_hooks", module))


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """The modules of an attribute, also in a list, tuple, set or dict, with those in them."""
    members = value.values() if type(value) is dict else value if type(value) in (list, tuple, set) else (value,)
    for member in members:
        if issubclass(type(member), nn.Module):
            yield from member.modules()


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of the module itself."""
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]


_CALL = nn.Module._call_impl.__code__
