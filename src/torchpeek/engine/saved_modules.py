"""What a forward pass may change in the modules of a model: saved before it, and restored after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.saved_attributes import PLAIN, SavedAttributes, restore_members
from torchpeek.engine.saved_tensors import SavedTensor, addresses, saved_tensors, versions
from torchpeek.errors import listed_names, notify
from torchpeek.hooks import is_own_hook

# The attributes that nn.Module itself sets. They come first in a module that sets none before `super().__init__()`.
_BASE = tuple(nn.Module().__dict__)
_BASE_NAMES = frozenset(_BASE)
# Torch's own layers have tuples of numbers.
_PLAIN_IN_TORCH = PLAIN | {tuple}

_ABSENT = object()


class SavedModules:
    """The state of the modules of a model.

    1. Modes, hooks, buffers and plain attributes of every module: which there are, which objects they are, and the
       values of tensors. Attributes and hooks belong together: transformers registers hooks in the first pass, and sets
       an attribute that says so. `SavedAttributes` says how much is saved of what an attribute holds. The modules that
       it holds, such as those in a plain list, are saved like the others.
    2. Which parameters and submodules there are, and whether each parameter requires a gradient. Values of parameters
       are not saved, because that would take as much memory as the model. A Notice says which were changed.
    3. The version of each tensor that is restored, so that a graph that holds it does not take it for changed.

    Every step is quick where nothing has changed, because small networks run for less than a millisecond.

    Args:
        modules: The modules.
        known: Other modules, which are saved already.
    """

    __slots__ = (
        "_addresses",
        "_attributes",
        "_classes",
        "_hidden",
        "_hooks",
        "_members",
        "_modules",
        "_owned",
        "_parameters",
        "_requires_grad",
        "_scripts",
        "_stores",
        "_training",
        "_values",
        "_versions",
        "devices",
        "hidden",
    )

    def __init__(self, modules: Sequence[nn.Module], known: frozenset[nn.Module] = frozenset()) -> None:
        scripts = {each for each in modules if isinstance(each, torch.jit.ScriptModule)}
        self._modules = [each for each in modules if each not in scripts] if scripts else modules
        self._scripts = list(map(_SavedScript, scripts))
        # Those in train mode. A frozen script has no mode.
        self._training = [module for module in modules if getattr(module, "training", False)]
        self._classes = list(map(type, self._modules))
        every = [module.__dict__ for module in self._modules]
        self._attributes = [each.copy() for each in every]
        self._hooks = _SavedHooks(every)
        # The stores that are not empty, and copies of them.
        own = [store for each in every if (store := each["_parameters"])]
        buffers = [store for each in every if (store := each["_buffers"])]
        stores = [*own, *buffers, *(store for each in every if (store := each["_modules"]))]
        self._stores = [(store, store.copy()) for store in stores]
        self._members = [member for _, saved in self._stores for member in saved.values()]
        names = [module._non_persistent_buffers_set for module in self._modules if module._buffers]
        self._owned = SavedAttributes()
        for each in names:
            self._owned.add_container(each)
        for module, attributes in zip(self._modules, every, strict=True):
            first = len(_BASE) if next(iter(attributes)) == _BASE[0] else 0
            plain = _PLAIN_IN_TORCH if type(module).__module__.startswith("torch.") else PLAIN
            if not plain.issuperset(map(type, islice(attributes.values(), first, None))):
                self._save_objects(module, first)
        tensors = [each for store in buffers for each in store.values() if each is not None] + self._owned.tensors
        self._parameters = [each for store in own for each in store.values() if each is not None]
        self._requires_grad = [each.requires_grad for each in self._parameters]
        self._versions = versions(self._parameters)
        self._addresses = addresses(self._parameters)
        self._values = saved_tensors(tensors)
        self.devices = {each.device for each in (*self._parameters, *tensors)}
        known = known.union(modules) if self._owned.modules else known
        self.hidden = [
            each
            for each in dict.fromkeys(below for held in self._owned.modules for below in all_modules(held))
            if each not in known
        ]
        self._hidden = SavedModules(self.hidden, known) if self.hidden else None

    def _save_objects(self, module: nn.Module, first: int) -> None:
        """Save what the plain attributes of the module hold."""
        for name, value in islice(module.__dict__.items(), first, None):
            if type(value) in PLAIN or name in _BASE_NAMES:
                continue
            # What weight_norm, prune and so on compute before each pass is replaced and not written into. It may be as
            # large as the parameters, so it is not copied.
            computed = isinstance(value, Tensor) and any(f"{name}_{end}" in module._parameters for end in ("orig", "g"))
            if not computed:
                self._owned.add(value)

    def _has_same_members(self) -> bool:
        """Whether the stores hold what they held."""
        now = [member for store, _ in self._stores for member in store.values()]
        return (
            all(map(is_, now, self._members))
            and len(now)
            == sum([len(each._parameters) + len(each._buffers) + len(each._modules) for each in self._modules])
            and all(store.keys() == saved.keys() for store, saved in self._stores)
        )

    def _has_same_attributes(self) -> bool:
        pairs = [(module.__dict__, saved) for module, saved in zip(self._modules, self._attributes, strict=True)]
        # Compared by identity, because an object's own `==` may raise, or say that another object is the same.
        return all(all(map(is_, current.values(), saved.values())) for current, saved in pairs) and all(
            current.keys() == saved.keys() for current, saved in pairs
        )

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
        for step in self._steps():
            try:
                step()
            except Exception as error:  # the others are restored first
                errors[:] = errors or [error]
        if errors:
            raise errors.pop()  # an error that stays in reach of its own traceback keeps the model alive

    def _steps(self) -> Iterator[Callable[[], object]]:
        """The steps that restore everything."""
        for value in (*self._values, *self._scripts):
            yield value.restore
        yield self._restore_modes
        yield from self._owned.steps()
        yield self._restore_classes
        yield self._restore_members
        yield self._restore_attributes
        yield self._hooks.restore
        if self._hidden is not None:
            yield self._hidden.restore
        yield self._restore_requires_grad

    def _restore_modes(self) -> None:
        for module in self._training:
            if not module.training:
                module.training = True

    def _restore_requires_grad(self) -> None:
        if [each.requires_grad for each in self._parameters] != self._requires_grad:
            for tensor, requires_grad in zip(self._parameters, self._requires_grad, strict=True):
                tensor.requires_grad_(requires_grad)

    def _restore_classes(self) -> None:
        if list(map(type, self._modules)) != self._classes:
            for module, cls in zip(self._modules, self._classes, strict=True):
                if type(module) is not cls:
                    module.__class__ = cls

    def _restore_attributes(self) -> None:
        if not self._has_same_attributes():
            for module, attributes in zip(self._modules, self._attributes, strict=True):
                _restore_attributes(module.__dict__, attributes)

    def _restore_members(self) -> None:
        """Restore the members of all stores, and empty those stores that were empty."""
        if self._has_same_members():
            return
        for store, saved in self._stores:
            restore_members(store, saved)
        known = {id(store) for store, _ in self._stores}
        for module in self._modules:
            for store in (module._parameters, module._buffers, module._modules):
                if id(store) not in known:
                    store.clear()
            if id(module._buffers) not in known:
                module._non_persistent_buffers_set.clear()

    def notify_of_changed_parameters(self) -> None:
        """Give a Notice if operations in place have changed parameters."""
        if self._hidden is not None:
            self._hidden.notify_of_changed_parameters()
        now = versions(self._parameters), addresses(self._parameters)
        before = self._versions, self._addresses
        if now == before:
            return
        pairs = zip(self._parameters, zip(*now, strict=True), zip(*before, strict=True), strict=True)
        changed = {id(each) for each, mark, found in pairs if mark != found}
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
        self._values = [(name, tensor, SavedTensor(tensor)) for name, tensor in module.named_buffers(recurse=False)]

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


class _SavedHooks:
    """The hooks of modules. What is registered in the meantime is removed, except torchpeek's own in other threads.

    A hook that was removed in the meantime stays away: it has removed itself, because it was meant for one call.
    """

    __slots__ = ("_counts", "_dicts", "_registered")

    def __init__(self, attributes: Sequence[dict[str, Any]]) -> None:
        self._dicts = [each[name] for each in attributes for name in _HOOKS]
        self._counts = list(map(len, self._dicts))
        self._registered = {number for hooks in self._dicts for number in hooks}

    def restore(self) -> None:
        if list(map(len, self._dicts)) == self._counts:
            return
        for hooks in self._dicts:
            for number, hook in tuple(hooks.items()):
                if number not in self._registered and not is_own_hook(hook):
                    hooks.pop(number, None)


# Torch keeps options of hooks in further dicts, by the hook's number. One without a hook does nothing.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
