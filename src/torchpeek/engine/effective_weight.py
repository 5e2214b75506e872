"""The weight that the next forward pass of a layer computes with, where hooks or parametrizations compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchpeek.engine.attempts import Refusal, attempted, shown_later
from torchpeek.engine.preserve import running_pass
from torchpeek.engine.saved_tensors import needs_restoring, restore_value
from torchpeek.errors import InputError, notify, type_shown
from torchpeek.hooks import is_own_hook
from torchpeek.tensor_formats import dense, has_values, is_plain

# The hooks of torch that compute a parameter of their module anew in each pass. They do not read the inputs.
_TORCH_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)

# These layers have a weight, so that one without it computes it in a pass.
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)

# Matched by the name of the module, because importing these modules takes time.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def is_quantised(layer: nn.Module) -> bool:
    """Whether torch.ao.quantization has quantised the layer itself. Its weight is then read by a method."""
    return type(layer).__module__.startswith(_QUANTISED)


def effective_weight(name: str, layer: nn.Module) -> Tensor | None:
    """The weight that the next forward pass of a layer computes with, in the mode that the layer is in.

    `torch.nn.utils.weight_norm`, `torch.nn.utils.spectral_norm` and `torch.nn.utils.prune` compute the weight in a
    forward pre-hook, so that `layer.weight` is the weight of the last pass. Here their hooks run once more, and the
    layer gets its attributes back. Where another hook computes the weight, all pre-hooks of the layer run, without
    inputs. Parametrizations compute the weight whenever it is read. What `forward` itself computes from the weight is
    not part of it.

    Call it inside `preserved`, which restores the buffers and the random state.

    Args:
        name: The layer's name, for messages.
        layer: The layer.

    Returns:
        The weight, detached: dense, and dequantised where the layer is quantised. It may be the parameter itself. None
        where the layer has no weight.

    Raises:
        InputError: When a lazy layer has no weight yet, or a hook needs an input to compute it.
    """
    stored = layer._parameters.get("weight")
    if stored is not None and is_lazy(stored):
        raise InputError(
            f"layer {name!r} is {type_shown(layer)} without a weight: its first forward pass makes it. Next: run "
            "the model once on an input"
        )
    if is_quantised(layer):
        read = getattr(layer, "weight", None)  # a method there
        weight = read() if callable(read) else read
    else:
        unknown = ""
        try:
            with running_pass(layer, lambda: ("weight", id(layer))), _attributes_restored(layer):
                _run_hooks(layer)
                weight = getattr(layer, "weight", None)
        except _NotComputed as error:
            unknown, weight = str(error), getattr(layer, "weight", None)
        if unknown and isinstance(weight, Tensor):
            notify(
                f"the weight of {name!r} is computed {unknown}, so this is the weight that the last forward pass left. "
                "Next: after a change of the parameters, run the model once on an input"
            )
        elif unknown:
            raise InputError(
                f"the weight of {name!r} is computed {unknown}, and no forward pass has done so yet. Next: run the "
                "model once on an input"
            )
    if not isinstance(weight, Tensor):
        return None
    weight = weight.detach()
    return weight if is_plain(weight) or not has_values(weight) else dense(weight, f"the weight of layer {name!r}")


class _NotComputed(Exception):
    """The weight cannot be computed without a pass. The message says where it is computed."""


def _run_hooks(layer: nn.Module) -> None:
    """Run the pre-hooks that compute attributes of the layer. Raises _NotComputed where they do not suffice."""
    hooks = _pre_hooks(layer)
    of_torch = [pair for pair in hooks if isinstance(pair[1], _TORCH_HOOKS)]
    if not _is_computed(layer) or any(_attribute_of(hook) == "weight" for _, hook in of_torch):
        hooks = of_torch
    elif not hooks and isinstance(layer, _WEIGHTED) and "weight" not in layer._buffers:
        raise _NotComputed("outside of the layer")

    def without_inputs() -> None:
        for with_kwargs, compute in hooks:
            compute(layer, (), *([{}] if with_kwargs else []))

    refused = attempted(without_inputs, shown_later)
    if isinstance(refused, Refusal):
        raise _NotComputed(f"by a hook that fails without inputs ({refused.reason})")


def _is_computed(layer: nn.Module) -> bool:
    """Whether the weight is no parameter, but an attribute or a buffer, or is missing from a type that has one."""
    if "weight" in layer._parameters or nn.utils.parametrize.is_parametrized(layer, "weight"):
        return False
    stored = layer._buffers.get("weight", layer.__dict__.get("weight"))
    return isinstance(stored, Tensor) or (isinstance(layer, _WEIGHTED) and not hasattr(layer, "weight"))


def _attribute_of(hook: Any) -> str:
    """The name of the attribute that a hook of torch computes."""
    name: str = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
    return name


def _pre_hooks(layer: nn.Module) -> list[tuple[bool, Callable[..., Any]]]:
    """The forward pre-hooks in their order, each after whether it takes keyword arguments; not those of torchpeek."""
    hooks = layer._forward_pre_hooks.items()
    return [(number in layer._forward_pre_hooks_with_kwargs, hook) for number, hook in hooks if not is_own_hook(hook)]


@contextmanager
def _attributes_restored(layer: nn.Module) -> Iterator[None]:
    """On every exit the layer has the attributes, parameters and buffers that it had, with the values they had."""
    if not layer._forward_pre_hooks:
        yield
        return
    stores = [layer.__dict__, layer._parameters, layer._buffers]
    saved = [dict(store) for store in stores]
    values = [(each, each.detach().clone()) for each in layer._parameters.values() if each is not None]
    try:
        yield
    finally:
        for store, before in zip(stores, saved, strict=True):
            for key in [key for key in store if key not in before]:
                del store[key]
            store.update(before)
        for parameter, value in values:
            if needs_restoring(parameter, value):
                restore_value(parameter, value)
