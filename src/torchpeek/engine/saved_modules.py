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

# The attributes that nn.Module itself sets. They come first in a module that sets none before `super().__init__()`.
_BASE = tuple(nn.Module().__dict__)
_CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict, deque})
_MOST_MEMBERS = 10_000  # of a container whose members are saved: a replay buffer of millions would take seconds

# The types of most attributes. Modules that have no others are done with quickly.
_PLAIN = frozenset({int, float, str, bool, tuple, type(None)})

# What the `==` of two tensors, arrays or other objects raises. It is not called for an object that is the same.
_NOT_COMPARED = (RuntimeError, ValueError, TypeError, AttributeError)

_ABSENT = object()


class SavedModules:
    """The state of the modules of a model.

    1. Modes, buffers and plain attributes of every module: which there are, which objects they are, and the values of
       tensors. A list, dict, set or deque in an attribute gets its members back, but what these members hold inside
       stays as forward leaves it.
    2. Which parameters and submodules there are, and whether each parameter requires a gradient. Values of parameters
       are not saved, because that would take as much memory as the model. A Notice says which were changed.
    3. The version of each tensor that is restored, so that a graph that holds it does not take it for changed.

    Every step is quick where nothing has changed, because small networks run for less than a millisecond.

    Args:
        modules: The modules.
    """

    __slots__ = (
        "_attributes",
        "_containers",
        "_members",
        "_modules",
        "_objects",
        "_parameters",
        "_requires_grad",
        "_scripts",
        "_stores",
        "_training",
        "_values",
        "_versions",
        "devices",
    )

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        scripts = {each for each in modules if isinstance(each, torch.jit.ScriptModule)}
        self._modules = [each for each in modules if each not in scripts] if scripts else modules
        self._scripts = list(map(_SavedScript, scripts))
        # Those in train mode. A frozen script has no mode.
        self._training = [module for module in modules if getattr(module, "training", False)]
        every = [module.__dict__ for module in self._modules]
        self._attributes = [each.copy() for each in every]
        # The stores that are not empty, and copies of them.
        own = [store for each in every if (store := each["_parameters"])]
        buffers = [store for each in every if (store := each["_buffers"])]
        stores = [*own, *buffers, *(store for each in every if (store := each["_modules"]))]
        self._stores = [(store, store.copy()) for store in stores]
        self._members = [member for _, saved in self._stores for member in saved.values()]
        names = [module._non_persistent_buffers_set for module in self._modules if module._buffers]
        self._containers: list[tuple[Any, Any]] = [(each, each.copy()) for each in names]
        self._objects: list[tuple[dict[str, Any], str, Any]] = []  # the tensors and containers in attributes
        tensors = [each for store in buffers for each in store.values() if each is not None]
        for module, attributes in zip(self._modules, every, strict=True):
            first = len(_BASE) if next(iter(attributes)) == _BASE[0] else 0
            if not _PLAIN.issuperset(map(type, islice(attributes.values(), first, None))):
                self._save_objects(module, tensors)
        self._parameters = [each for store in own for each in store.values() if each is not None]
        self._requires_grad = [each.requires_grad for each in self._parameters]
        self._versions = _versions(self._parameters)
        self._values = _saved_tensors(tensors)
        self.devices = {each.device for each in (*self._parameters, *tensors)}

    def _save_objects(self, module: nn.Module, tensors: list[Tensor]) -> None:
        """Save the tensors and containers in plain attributes of the module, and add such tensors to `tensors`."""
        attributes = module.__dict__
        for name, value in attributes.items():
            if name in _BASE or (type(value) not in _CONTAINERS and not isinstance(value, Tensor)):
                continue
            self._objects.append((attributes, name, value))
            if not isinstance(value, Tensor):
                if len(value) <= _MOST_MEMBERS:
                    self._containers.append(_copied(value))
            # What weight_norm, prune and so on compute before each pass is replaced and not written into. It may be as
            # large as the parameters, so it is not copied.
            elif not any(f"{name}_{suffix}" in module._parameters for suffix in ("orig", "g")):
                tensors.append(value)

    def _has_same_members(self) -> bool:
        """Whether the stores hold what they held. Objects that are identical are not compared."""
        try:
            if not all(store == saved for store, saved in self._stores):
                return False
        except _NOT_COMPARED:
            return False
        now = [member for store, _ in self._stores for member in store.values()]
        return all(map(is_, now, self._members)) and len(now) == sum(
            [len(each._parameters) + len(each._buffers) + len(each._modules) for each in self._modules]
        )

    def _has_same_attributes(self) -> bool:
        try:
            pairs = zip(self._modules, self._attributes, strict=True)
            return all(module.__dict__ == saved for module, saved in pairs)
        except _NOT_COMPARED:
            return False

    @property
    def any_training(self) -> bool:
        """Whether a module was in train mode."""
        return bool(self._training)

    def set_eval_mode(self) -> None:
        """Set all of the modules to eval mode."""
        for module in self._training:
            module.training = False  # not .eval(), because a user's own train() may do more than set this attribute

    def restore(self) -> None:
        """Restore everything. Then raise the first error. May be called again."""
        errors: list[Exception] = []
        for value in (*self._values, *self._scripts):
            try:
                value.restore()
            except Exception as error:  # the others are restored first
                errors[:] = errors or [error]
        for module in self._training:
            if not module.training:
                module.training = True
        for container, members in self._containers:
            if not _same_members(container, members):
                _set_members(container, members)
        if not self._has_same_members():
            self._restore_members()
        if not self._has_same_attributes():
            for module, attributes in zip(self._modules, self._attributes, strict=True):
                _restore_attributes(module.__dict__, attributes)
        for current, name, value in self._objects:
            current[name] = value
        if [each.requires_grad for each in self._parameters] != self._requires_grad:
            for tensor, requires_grad in zip(self._parameters, self._requires_grad, strict=True):
                tensor.requires_grad_(requires_grad)
        if errors:
            raise errors.pop()  # an error that stays in reach of its own traceback keeps the model alive

    def _restore_members(self) -> None:
        """Restore the members of all stores, and empty those stores that were empty."""
        for store, saved in self._stores:
            if not _same_members(store, saved):
                _set_members(store, saved)
        known = {id(store) for store, _ in self._stores}
        for module in self._modules:
            for store in (module._parameters, module._buffers, module._modules):
                if id(store) not in known:
                    store.clear()
            if id(module._buffers) not in known:
                module._non_persistent_buffers_set.clear()

    def notify_of_changed_parameters(self) -> None:
        """Give a Notice if operations in place have changed parameters."""
        versions = _versions(self._parameters)
        if versions == self._versions:
            return
        pairs = zip(versions, self._versions, strict=True)
        changed = {id(each) for each, (now, before) in zip(self._parameters, pairs, strict=True) if now != before}
        names = listed_names(
            f"{type(module).__name__}.{name}"
            for module in self._modules
            for name, each in module._parameters.items()
            if id(each) in changed
        )
        notify(
            f"the forward pass changed parameters in place: {names}. Their values are not restored. Next: use a "
            "copy of the model, or change parameters in the training step and not in forward"
        )


class _SavedScript:
    """The buffers of a scripted or traced module, which holds them outside of Python."""

    __slots__ = ("_module", "_values")

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._values = [(name, tensor, _SavedTensor(tensor)) for name, tensor in module.named_buffers(recurse=False)]

    def restore(self) -> None:
        for name, tensor, value in self._values:
            value.restore()
            if getattr(self._module, name) is not tensor:
                setattr(self._module, name, tensor)


def _restore_attributes(current: dict[str, Any], saved: dict[str, Any]) -> None:
    for name in [name for name in current if name not in saved]:
        del current[name]
    for name, value in saved.items():
        if current.get(name, _ABSENT) is not value:
            current[name] = value


def _copied(container: Any) -> tuple[Any, Any]:
    return container, container.copy()


def _same_members(container: Any, saved: Any) -> bool:
    """Whether a container has the saved members: the same objects in the same order."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(map(is_, container, saved)) and all(map(is_, container.values(), saved.values()))
    if isinstance(container, set):
        return bool(container <= saved)
    return all(map(is_, container, saved))


def _set_members(container: Any, saved: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(saved)


class _SavedTensor:
    """A tensor, its value, and its version."""

    __slots__ = ("_tensor", "_value", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._value, self._version = tensor, tensor.detach().clone(), _version(tensor)

    def restore(self) -> None:
        if needs_restoring(self._tensor, self._value):
            restore_value(self._tensor, self._value)
        if _version(self._tensor) != self._version:
            _set_version(self._tensor, self._version)


class _SavedSmallTensors:
    """Small tensors of one dtype on the CPU. Their values are in one tensor, and one comparison shows any change."""

    __slots__ = ("_flat", "_shapes", "_tensors", "_versions")

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._shapes = [each.shape for each in tensors]
        self._versions = [each._version for each in tensors]
        self._flat = _flattened(tensors)

    def restore(self) -> None:
        if not self._is_unchanged():
            values = torch.split_with_sizes(self._flat, [shape.numel() for shape in self._shapes])
            for tensor, shape, value in zip(self._tensors, self._shapes, values, strict=True):
                if needs_restoring(tensor, value.view(shape)):
                    restore_value(tensor, value.view(shape).clone())
        if _versions(self._tensors) != self._versions:
            for tensor, version in zip(self._tensors, self._versions, strict=True):
                if _version(tensor) != version:
                    _set_version(tensor, version)

    def _is_unchanged(self) -> bool:
        tensors = self._tensors
        if [each.shape for each in tensors] != self._shapes or {each.dtype for each in tensors} != {self._flat.dtype}:
            return False
        try:
            return not needs_restoring(_flattened(tensors), self._flat)
        except RuntimeError:  # one of them is another kind of tensor now; each is looked at by itself
            return False


def _flattened(tensors: list[Tensor]) -> Tensor:
    """All elements of the tensors, one after the other, in memory of their own."""
    flatten: Any = torch._C._nn.flatten_dense_tensors
    with torch.no_grad():
        if len(tensors) == 1:  # that function would return a view
            return tensors[0].flatten().clone()
        return flatten(tensors)  # type: ignore[no-any-return]


_FEW = 4096  # elements: copying them takes less time than a call of torch
_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool})


def _saved_tensors(tensors: Iterable[Tensor]) -> list[_SavedTensor | _SavedSmallTensors]:
    small: dict[torch.dtype, list[Tensor]] = {}
    saved: list[_SavedTensor | _SavedSmallTensors] = []
    for tensor in tensors:
        if (
            type(tensor) is Tensor
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and tensor.dtype in _DTYPES
            and tensor.numel() <= _FEW
            and not tensor.is_inference()
        ):
            small.setdefault(tensor.dtype, []).append(tensor)
        elif not is_lazy(tensor):
            saved.append(_SavedTensor(tensor))
    return [*saved, *map(_SavedSmallTensors, small.values())]


def _version(tensor: Tensor) -> int:
    """How often operations in place have written into the tensor; 0 for a tensor that does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [each._version for each in tensors]
    except RuntimeError:  # one of them is an inference tensor
        return list(map(_version, tensors))


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
    if tensor.shape != value.shape or tensor.dtype != value.dtype:
        return True
    # Compared bit by bit, because NaN is not equal to itself.
    return not torch.equal(tensor, value) and not torch.equal(_bits(tensor), _bits(value))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def restore_value(tensor: Tensor, value: Tensor) -> None:
    """Write the saved value into the tensor."""
    with torch.inference_mode(tensor.is_inference()):
        if tensor.dtype != value.dtype:
            tensor.data = value
            return
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
