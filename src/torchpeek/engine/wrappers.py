"""Modules that wrap the user's network: torch.compile, DataParallel and DistributedDataParallel."""

from __future__ import annotations

from torch import nn

from torchpeek.errors import InputError
from torchpeek.hooks import Selection, checked_model, is_compile_wrapper
from torchpeek.tensor_formats import has_values

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def inspectable_module(model: object) -> nn.Module:
    """The module to put hooks on: `model`, or what torch.compile(model) wraps, which is then run eagerly.

    Raises:
        InputError: For anything but an nn.Module, for a scripted model, a model on the meta device, and DataParallel
            over several devices, none of which can be hooked.
    """
    model = checked_model(model, "an nn.Module or a LoadedModel (tp.load_model)")
    if not all(map(has_values, model.parameters())):
        raise InputError(
            "the model is on the meta device or was made in FakeTensorMode, so it has no numbers; load its weights "
            "on a real device"
        )
    if isinstance(model, nn.DataParallel) and runs_replicas(model):
        raise InputError(
            f"DataParallel over {len(model.device_ids)} devices runs copies, whose layers are not the model's own. "
            "Next: give the model inside of it, model.module"
        )
    return model.get_submodule("_orig_mod") if is_compile_wrapper(model) else model


def runs_replicas(module: nn.Module) -> bool:
    """Whether the module runs copies of its network on several devices at once, as DataParallel does."""
    return isinstance(module, nn.DataParallel) and len(module.device_ids) > 1


def network_name(module: nn.Module) -> str:
    """The class name of the network itself, without its wrappers."""
    if isinstance(module, _PARALLEL):
        return network_name(module.module)
    return network_name(module.get_submodule("_orig_mod")) if is_compile_wrapper(module) else type(module).__name__


def with_wrapper_prefix(module: nn.Module, layer: Selection) -> Selection:
    """The selection with the names that `module` uses, whether or not the user wrote the wrapper's prefix."""
    if isinstance(layer, (list, tuple)):
        return [with_wrapper_prefix(module, each) for each in layer]
    if not isinstance(layer, str):
        return layer
    if isinstance(module, _PARALLEL):
        return layer if layer.partition(".")[0] == "module" else f"module.{layer}"
    return layer if is_compile_wrapper(module) else layer.removeprefix("_orig_mod.")
