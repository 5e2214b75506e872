"""hook_free(): a model without the user's hooks, for a pass that the user did not ask for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torchpeek.hooks import takes_hooks, without_hooks


@dataclass(frozen=True, eq=False)
class HookFreeModel:
    """A copy of a model that shares its parameters and buffers, and has none of the user's hooks.

    Args:
        copy: The copy, which is run in place of the model.
        modules: The modules that may run then and take hooks, each with the module of the model that it stands for.
            A module that another one holds in a list of its own is not copied, so the modules of the model are here,
            too.
    """

    copy: nn.Module
    modules: tuple[tuple[nn.Module, nn.Module], ...]


def hook_free(model: nn.Module) -> HookFreeModel:
    """Copy a model for a pass that runs none of the user's hooks. Call it inside `preserved(model)`."""
    copy = without_hooks(model)
    pairs = zip([*copy.modules(), *model.modules()], [*model.modules()] * 2, strict=True)
    return HookFreeModel(copy, tuple((each, original) for each, original in pairs if takes_hooks(each)))
