"""What a forward pass may change in the modules of a model: saved before it, and restored after it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchpeek.errors import listed_names, notify

# The attributes that nn.Module itself sets. They come first in every module.
_BASE = tuple(nn.Module().__dict__)
_CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict, deque})
_MOST_MEMBERS = 10_000  # of a container whose members are saved: a replay buffer of millions would take seconds

_ABSENT = object()


class SavedModules:
    """The state of the modules of a model.

    1. Modes, buffers and plain attributes of every module: which there are, which objects they are, and the values of
       tensors. A list, dict, set or deque in an attribute gets its members back, but what these members hold inside
       stays as forward leaves it.
    2. Which parameters and submodules there are, and whether each parameter requires a gradient. Values of parameters
       are not saved, because that would take as much memory as the model. A Notice says which were changed.
    3. The version of each tensor that is restored, so that a graph that holds it does not take it for changed.

    Args:
        modules: The modules.
    """

    __slots__ = ("_modes", "_parameters", "_saved")

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # A frozen script has no mode.
        self._modes = [(module, module.training) for module in modules if hasattr(module, "training")]
        self._saved = [_saved(module) for module in modules]
        self._parameters = [
            (module, name, tensor, tensor.requires_grad, _version(tensor))
            for module in modules
            for name, tensor in module._parameters.items()
            if tensor is not None
        ]

    @property
    def any_training(self) -> bool:
        """Whether a module was in train mode."""
        return any(training for _, training in self._modes)

    def set_eval_mode(self) -> None:
        """Set all of the modules to eval mode."""
        for module, training in self._modes:
            if training:
                # Not .eval(), because a user's own train() may do more than set this attribute.
                module.training = False

    def restore(self) -> None:
        """Restore everything. Then raise the first error. May be called again."""
        errors: list[Exception] = []
        for saved in self._saved:
            try:
                saved.restore()
            except Exception as error:  # the others are restored first
                errors[:] = errors or [error]
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for _, _, tensor, requires_grad, _ in self._parameters:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        if errors:
            raise errors.pop()  # an error that stays in reach of its own traceback keeps the model alive

    def notify_of_changed_parameters(self) -> None:
        """Give a Notice if operations in place have changed parameters."""
        changed = [
            (module, name) for module, name, tensor, _, version in self._parameters if _version(tensor) != version
        ]
        if changed:
            names = listed_names(dict.fromkeys(f"{type(module).__name__}.{name}" for module, name in changed))
            notify(
                f"the forward pass changed parameters in place: {names}. Their values are not restored. Next: use a "
                "copy of the model, or change parameters in the training step and not in forward"
            )


class _SavedModule:
    """The state of one module: its buffers, plain attributes, parameters and submodules."""

    __slots__ = ("_attributes", "_buffers", "_children", "_containers", "_module", "_non_persistent", "_own", "_values")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = dict(module._buffers) if module._buffers else None
        self._non_persistent = set(module._non_persistent_buffers_set) if module._non_persistent_buffers_set else None
        self._own = dict(module._parameters) if module._parameters else None
        self._children = dict(module._modules) if module._modules else None
        self._attributes = _attributes(module)
        tensors = [] if self._buffers is None else list(self._buffers.values())
        self._containers: list[tuple[Any, Any]] | None = None
        for name, value in self._attributes:
            if type(value) in _CONTAINERS:
                if len(value) <= _MOST_MEMBERS:
                    self._containers = [*(self._containers or ()), (value, value.copy())]
            elif isinstance(value, Tensor) and not _is_computed(module, name):
                tensors.append(value)
        self._values = [saved for tensor in tensors if tensor is not None and (saved := _SavedTensor.of(tensor))]

    def restore(self) -> None:
        module = self._module
        for value in self._values:
            value.restore()
        _restore_members(module._buffers, self._buffers)
        _restore_members(module._parameters, self._own)
        _restore_members(module._modules, self._children)
        if module._non_persistent_buffers_set != (self._non_persistent or set()):
            module._non_persistent_buffers_set = self._non_persistent or set()
        attributes = module.__dict__
        if len(attributes) != len(_BASE) + len(self._attributes) or any(
            attributes.get(name, _ABSENT) is not value for name, value in self._attributes
        ):
            self._restore_attributes(attributes)
        for container, members in self._containers or ():
            if not _same_members(container, members):
                _set_members(container, members)

    def _restore_attributes(self, attributes: dict[str, Any]) -> None:
        saved = dict(self._attributes)
        for name in [name for name in attributes if name not in saved and name not in _BASE]:
            del attributes[name]
        for name, value in saved.items():
            if attributes.get(name, _ABSENT) is not value:
                attributes[name] = value


class _SavedScript:
    """The buffers of a scripted or traced module, which holds them outside of Python."""

    __slots__ = ("_module", "_values")

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._values = [(name, tensor, _SavedTensor.of(tensor)) for name, tensor in module.named_buffers(recurse=False)]

    def restore(self) -> None:
        for name, tensor, value in self._values:
            if value is not None:
                value.restore()
            if getattr(self._module, name) is not tensor:
                setattr(self._module, name, tensor)


def _saved(module: nn.Module) -> _SavedModule | _SavedScript:
    return _SavedScript(module) if isinstance(module, torch.jit.ScriptModule) else _SavedModule(module)


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of the module's own, without those that every nn.Module has."""
    attributes = module.__dict__
    if next(islice(attributes, len(_BASE) - 1, None), None) == _BASE[-1]:  # the usual case, and much faster
        return list(islice(attributes.items(), len(_BASE), None))
    return [(name, value) for name, value in attributes.items() if name not in _BASE]


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether a hook of torch's own sets the attribute before each pass, from parameters: weight_norm, prune and so on.

    Such a tensor is replaced and not written into, and it may be as large as the parameters.
    """
    return any(f"{name}_{suffix}" in module._parameters for suffix in ("orig", "g"))


def _restore_members(current: Any, saved: dict[str, Any] | None) -> None:
    """Make `current` hold the saved members in their order."""
    saved = saved or {}
    if len(current) == len(saved) and all(map(is_, current.values(), saved.values())) and [*current] == [*saved]:
        return
    current.clear()
    current.update(saved)


def _same_members(container: Any, members: Any) -> bool:
    if len(container) != len(members):
        return False
    if isinstance(container, dict):
        return all(map(is_, container, members)) and all(map(is_, container.values(), members.values()))
    if isinstance(container, set):
        return all(map(members.__contains__, container))
    return all(map(is_, container, members))


def _set_members(container: Any, members: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(members)


class _SavedTensor:
    """A tensor, its value, and its version."""

    __slots__ = ("_tensor", "_value", "_version")

    def __init__(self, tensor: Tensor, value: Tensor) -> None:
        self._tensor, self._value, self._version = tensor, value, _version(tensor)

    @classmethod
    def of(cls, tensor: Tensor) -> _SavedTensor | None:
        """None for a tensor that has no value yet."""
        return None if is_lazy(tensor) else cls(tensor, tensor.detach().clone())

    def restore(self) -> None:
        if needs_restoring(self._tensor, self._value):
            restore_value(self._tensor, self._value)
        if _version(self._tensor) != self._version:
            _set_version(self._tensor, self._version)


def _version(tensor: Tensor) -> int:
    """How often operations in place have written into the tensor; 0 for a tensor that does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _version_setter() -> Callable[[Tensor, int], None]:
    setter: Any = torch._C._autograd._unsafe_set_version_counter
    probe = torch.zeros(1)
    try:
        setter((probe,), (0,))
    except TypeError:  # torch 2.6
        return setter  # type: ignore[no-any-return]
    return lambda tensor, version: setter((tensor,), (version,))


_set_version = _version_setter()


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


def all_modules(model: nn.Module) -> list[nn.Module]:
    """The model and all modules below it, each once, as `model.modules()` lists them but for the order."""
    if type(model).named_modules is not nn.Module.named_modules:
        return list(model.modules())
    found: dict[nn.Module, None] = {model: None}
    waiting: list[nn.Module] = [model]
    while waiting:
        children: Iterable[nn.Module | None] = waiting.pop()._modules.values()
        for child in children:
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)
