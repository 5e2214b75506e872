"""Which modules of a model are layers that compute, by their structure alone."""

from __future__ import annotations

from collections.abc import Container

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from torchpeek.hooks.temporary_hooks import takes_hooks

# Modules that only hold the weights of the layer around them, by the names of their classes in torch.
_WEIGHT_HOLDERS = {"LinearPackedParams", "ConvPackedParams", "EmbeddingPackedParams", "PackedParameter"}


def computing_layers(
    model: nn.Module, *, pass_through: Container[str] = (), own_output: Container[str] = ()
) -> list[nn.Module]:
    """The layers that compute, in the order of `named_modules`.

    They are the modules that call no others, and those that have parameters of their own: a convolution with a
    parametrised weight, a MultiheadAttention, a quantised Linear or LSTM. Modules that only hold weights, or compute
    them, are no layers: parametrisations, packed parameters, and the projection inside a MultiheadAttention. Nor are
    containers that cannot be called, such as a ModuleList. The model itself is one only if there are no others.

    Args:
        model: The model.
        pass_through: Names of modules that return what a module inside them returned. They are no layers, whatever
            parameters they have.
        own_output: Names of modules that return something else. They are layers, also without parameters of their own.
    """
    layers: list[nn.Module] = []
    found = {id(model)}
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not takes_hooks(module):  # a scripted part is one layer
            layers.append(module)
            continue
        members = _callable_children(module)
        has_forward = type(module).forward is not nn.Module.forward
        owns = any(parameter is not None for parameter in module._parameters.values())
        if name and has_forward and (not members or name in own_output or (owns and name not in pass_through)):
            layers.append(module)
        children = [(child, member) for child, member in members.items() if id(member) not in found]
        found.update(id(member) for _, member in children)
        waiting += [(f"{name}.{child}" if name else child, member) for child, member in reversed(children)]
    return layers or [model]


def _callable_children(module: nn.Module) -> dict[str, nn.Module]:
    """The children that the module may call as layers, or that may contain such layers."""
    if isinstance(module, nn.MultiheadAttention):
        return {}  # it uses the weights of its projection directly
    hidden = {"parametrizations"} if is_parametrized(module) else set()
    return {
        name: child
        for name, child in module._modules.items()
        if child is not None and name not in hidden and not _holds_weights(child)
    }


def _holds_weights(module: nn.Module) -> bool:
    if type(module).__name__ in _WEIGHT_HOLDERS:
        return True
    members = [child for child in module._modules.values() if child is not None]
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) and bool(members) and all(map(_holds_weights, members))
