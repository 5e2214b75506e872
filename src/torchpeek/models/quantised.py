"""Quantised layers: which layers of a model are quantised, and named errors for what they rule out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from torchpeek.errors import GradUnavailable, NoSpatialLayer, NotConnected, notify

# Matched by the name of the module, because importing these modules takes time.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def quantised_layers(model: object) -> list[str]:
    """Return the names of the layers that torch.ao.quantization has quantised, dynamically or statically.

    No gradient flows through them. Fake quantisation is not among them, because it has gradients.
    """
    if not isinstance(model, nn.Module):  # another check refuses it
        return []
    named = [name for name, module in model.named_modules() if type(module).__module__.startswith(_QUANTISED)]
    return [name for name in named if not name.endswith("_packed_params")]


def observing_layers(model: object) -> list[str]:
    """Return the names of the fake quantisations of activations that still learn their range in eval mode."""
    if not isinstance(model, nn.Module):
        return []
    observing = []
    for name, module in model.named_modules():
        buffers = module._buffers  # not getattr, which takes long for a name that a module does not have
        enabled = buffers.get("observer_enabled") if "fake_quant_enabled" in buffers else None
        if isinstance(enabled, Tensor) and bool(enabled.any()):
            observing.append(name)
    return [name for name in observing if not name.endswith("weight_fake_quant")]  # weights are the same in every pass


@contextmanager
def quantisation_errors(model: nn.Module) -> Iterator[None]:
    """Turn errors that quantised layers cause into errors that say so.

    Raises GradUnavailable for gradients through quantised layers, and NoSpatialLayer for a heatmap of their outputs.
    """
    if observing := observing_layers(model):
        notify(
            f"the fake quantisation of {observing[0]!r} still learns its range from each pass, also in eval mode, "
            "which changes the next pass. Next: model.apply(torch.ao.quantization.disable_observer)"
        )
    try:
        yield
    except (NotConnected, NoSpatialLayer, NotImplementedError) as error:
        names = quantised_layers(model)
        if not names:
            raise
        these = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        advice = "give the model in floating point, as it was before it was quantised"
        if isinstance(error, NotConnected):
            raise GradUnavailable(
                f"the model is quantised ({these}), and torch has no gradients through that. Next: a method without "
                f"gradients (torchpeek methods lists them), a layer after the quantised ones, or {advice}"
            ) from error
        raise NoSpatialLayer(
            f"the model is quantised ({these}): such a layer returns no floating-point activations to read a heatmap "
            f"from. Next: a layer in floating point that has a grid, or {advice}"
        ) from error
