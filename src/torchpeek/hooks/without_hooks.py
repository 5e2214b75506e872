"""A model without anybody's hooks, for a pass that nobody should notice."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from torchpeek.hooks.temporary_hooks import takes_hooks

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def without_hooks(model: nn.Module) -> nn.Module:
    """A copy of the modules of a model, with the same parameters and buffers, and without hooks.

    Scripted modules, and modules that are held in other ways than as children, are those of the model itself.
    """
    return _copied(model, {})


def _copied(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies or not takes_hooks(module):
        return copies.get(id(module), module)
    copy = type(module).__new__(type(module))
    copies[id(module)] = copy
    copy.__dict__.update(module.__dict__)
    for name in _HOOKS:
        copy.__dict__[name] = OrderedDict()
    copy.__dict__["_parameters"] = dict(module._parameters)
    copy.__dict__["_buffers"] = dict(module._buffers)
    copy.__dict__["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in module._modules.items()
    }
    return copy
