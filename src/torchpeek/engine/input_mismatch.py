"""Say which inputs a model takes, where its call fails because they are of another shape, type or device.

An exception of the model becomes an InputError only on evidence: the first layer with weights is found, what it was
called with is compared with what it takes, and it is the layer that raised. Other exceptions are the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.first_layer import CONVOLUTION, FirstLayer, first_layer
from torchpeek.engine.forward_arguments import without_forward, wrong_arguments
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import PICTURE_CHANNELS, ModelCall
from torchpeek.errors import InputError
from torchpeek.hooks import BeforeHook, containers, is_sharded, running_module, takes_hooks

# How torch's messages name the types that pictures come in.
_DTYPE_NAMES = {
    torch.uint8: ("Byte", "uint8", "unsigned char"),
    torch.int32: ("Int", "int32"),
    torch.int64: ("Long", "int64"),
    torch.bool: ("Bool", "bool"),
    torch.float64: ("Double", "float64", "double"),
    torch.float16: ("Half", "float16"),
    torch.bfloat16: ("BFloat16", "bfloat16"),
    torch.float32: ("Float", "float32"),
}


def wrong_input(model: nn.Module, call: ModelCall, error: Exception, run: Callable[[], object]) -> str | None:
    """What is wrong with the inputs where a call of the model raised `error`; None where that is not certain.

    Args:
        model: The model.
        call: The call that raised.
        error: What it raised.
        run: Makes the same call once more. It ends at the first layer with weights.
    """
    if isinstance(error, TypeError) and (wrong := wrong_arguments(model, call)):
        return wrong
    if isinstance(error, NotImplementedError) and (wrong := without_forward(model)):
        return wrong
    if wrong := _other_batch_size(call, error):
        return wrong
    if any(map(is_sharded, model.modules())) or isinstance(model, nn.parallel.DistributedDataParallel):
        return None  # the other processes would wait for a pass that one of them makes alone
    first = first_layer(model, run)
    if first is None:
        return _wrong_before_any_layer(model, call, error)
    # A layer may also hand on what the next one refuses: other numbers, or one sample without a batch axis.
    refused = first.module in _modules_of(error.__traceback__) or _names_type(error, first.dtype)
    if not refused and not _has_too_few_axes(call, first):
        return None
    return mismatch(call, first)


def mismatch(call: ModelCall, first: FirstLayer) -> str | None:
    """What is wrong with the inputs for the first layer, and what to write. None where they fit.

    Only what the layer refuses for certain, and only where its input is the picture: of the same shape and type, or a
    view of the same numbers.
    """
    picture, weight = call.model_picture, first.weight
    if first.device != picture.device or len(first.shape) == 0:
        return None
    shape = call.user_shape
    is_picture = first.shape[1:] == tuple(picture.shape[1:]) or _has_too_few_axes(call, first)
    autocast = torch.is_autocast_enabled(picture.device.type) and first.dtype.is_floating_point
    steps: list[_Step] = []
    if first.grid_ndim and is_picture:
        layout = _layout_steps(shape, first)
        if layout is None:
            return _sentence(shape, call, first, None)
        steps += layout
    elif first.grid_ndim and first.shape == _channels_first(picture.shape) and picture.shape[1] == first.channels:
        axes = ", ".join(map(str, (0, *range(2, picture.ndim), 1)))
        steps.append(
            _Step("the model moves the last axis to the front, so it takes the channels last", f".permute({axes})")
        )
    elif first.refuses_shape:
        same_numbers = torch.Size(first.shape).numel() == picture.numel()
        return _sentence(shape, call, first, None) if same_numbers else None
    if isinstance(first.module, nn.Embedding):
        if first.dtype not in (torch.int32, torch.int64):
            steps.append(_Step("the type is another", ".long()"))
    elif weight is not None and first.dtype == picture.dtype != weight.dtype and not autocast:
        steps.append(_dtype_step(first.dtype, weight.dtype))
    if weight is not None and first.device != weight.device:
        steps.append(_Step("the device is another", f".to({str(weight.device)!r})"))
    return _sentence(shape, call, first, steps) if steps else None


def unbatched_hooks(model: nn.Module, call: ModelCall) -> list[tuple[nn.Module, BeforeHook]]:
    """Hooks that raise InputError where a convolution takes the picture as one sample without a batch axis.

    torch's convolutions take (C, H, W), too, so a model may run to its end on what has no samples.
    """
    axes = _CONVOLUTION_AXES.get(model, "")
    if axes is None:
        modules = (module for module in model.modules() if isinstance(module, CONVOLUTION))
        axes = _CONVOLUTION_AXES.put(model, "", frozenset(len(module.kernel_size) for module in modules))
    if call.picture.ndim - 1 not in axes or call.takes_list:
        return []

    def before(name: str, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        for _, tensor in containers.leaves((args, kwargs)):
            first = FirstLayer(name, module, tuple(tensor.shape), tensor.dtype, tensor.device)
            if _is_unbatched(call, first) and (wrong := mismatch(call, first)):
                raise InputError(wrong)
            return

    return [
        (module, partial(before, name))
        for name, module in model.named_modules()
        if isinstance(module, CONVOLUTION) and takes_hooks(module)
    ]


# The numbers of grid axes of the model's convolutions.
_CONVOLUTION_AXES: ModelCache[str, frozenset[int]] = ModelCache()


@dataclass(frozen=True)
class _Step:
    """What is wrong in one respect, and what to append to the expression of the input."""

    reason: str
    code: str


def _sentence(shape: tuple[int, ...], call: ModelCall, first: FirstLayer, steps: Sequence[_Step] | None) -> str:
    picture = call.model_picture
    got = f"the inputs do not fit the model: got {shape} of {picture.dtype} on {picture.device}"
    made = f", and was called with {first.shape}" if first.shape[1:] != shape[1:] and first.shape != shape else ""
    takes = f"the first layer with weights, {first.in_words}{made}"
    if steps is None:
        return f"{got}; {takes}{_channels_in_words(shape, first)}"
    code = "x" + "".join(each.code for each in steps)
    reasons = "; ".join(each.reason for each in steps)
    return f"{got}; {takes}: {reasons}. Next: for this input x, write {code}"


def _channels_in_words(shape: tuple[int, ...], first: FirstLayer) -> str:
    """The end of a sentence without steps."""
    if not first.grid_ndim or len(shape) != first.grid_ndim + 2 or shape[1] == first.channels:
        return ". Next: give inputs of the size and the axes that the model was trained with"
    return f": {_counts(shape, first)}. Next: give inputs with {first.channels} on axis 1, as in training"


def _counts(shape: tuple[int, ...], first: FirstLayer) -> str:
    return f"it has {shape[1]} channel{'s' if shape[1] > 1 else ''}, not {first.channels}"


def _layout_steps(shape: tuple[int, ...], first: FirstLayer) -> list[_Step] | None:
    """The steps that turn `shape` into (N, C, *grid) for a convolution; None where no steps are known to do so."""
    channels, ndim, steps = first.channels, first.grid_ndim, list[_Step]()
    if len(shape) == ndim:
        steps.append(_Step("the batch axis and the channel axis are missing", "[None, None]"))
        shape = (1, 1, *shape)
    elif len(shape) == ndim + 1:
        last_to_first = ", ".join(map(str, (ndim, *range(ndim))))
        if shape[0] == channels:
            steps.append(_Step("the batch axis is missing (in a list, too: torch.stack(x))", ".unsqueeze(0)"))
            shape = (1, *shape)
        elif shape[-1] in (channels, *PICTURE_CHANNELS) and shape[0] not in PICTURE_CHANNELS:
            reason = "the channels are last and the batch axis is missing"
            steps.append(_Step(reason, f".permute({last_to_first}).unsqueeze(0)"))
            shape = (1, shape[-1], *shape[:-1])
        elif shape[0] in PICTURE_CHANNELS and channels != 1:
            steps.append(_Step("the batch axis is missing", ".unsqueeze(0)"))
            shape = (1, *shape)
        elif channels == 1:
            steps.append(_Step("the channel axis is missing", ".unsqueeze(1)"))
            shape = (shape[0], 1, *shape[1:])
    elif len(shape) == ndim + 3 and shape[2] == channels:
        steps.append(_Step("there is one axis more, before the channels", ".flatten(0, 1)"))
        shape = (shape[0] * shape[1], *shape[2:])
    elif len(shape) == ndim + 2 and shape[1] != channels and _has_channels_last(shape, channels):
        axes = ", ".join(map(str, (0, ndim + 1, *range(1, ndim + 1))))
        steps.append(_Step("the channels are last", f".permute({axes})"))
        shape = (shape[0], shape[-1], *shape[1:-1])
    if len(shape) != ndim + 2:
        return None
    if shape[1] == channels:
        return steps
    counts = _counts(shape, first)
    match shape[1], channels:
        case 1, 3:
            steps.append(_Step(counts, f".expand(-1, {channels}, {', '.join(['-1'] * ndim)})"))
        case 4, 3:
            steps.append(_Step(f"{counts} (the fourth is the opacity)", "[:, :3]"))
        case 3, 1:
            steps.append(_Step(counts, ".mean(1, keepdim=True)"))
        case _:
            return None
    return steps


def _has_channels_last(shape: tuple[int, ...], channels: int) -> bool:
    return shape[-1] == channels or (shape[-1] in PICTURE_CHANNELS and shape[1] not in PICTURE_CHANNELS)


def _dtype_step(got: torch.dtype, model_dtype: torch.dtype) -> _Step:
    if got == torch.uint8:
        scaled = ".float() / 255" if model_dtype == torch.float32 else f".to({model_dtype}) / 255"
        return _Step("integers from 0 to 255 have to be scaled, and normalised as in training", scaled)
    if got.is_complex:
        return _Step("complex numbers; their magnitude is", ".abs()" + _conversion(got.to_real(), model_dtype))
    if not got.is_floating_point and got != torch.bool:
        reason = "integers; if they are from 0 to 255, also divide them by 255, and normalise as in training"
        return _Step(reason, _conversion(got, model_dtype))
    return _Step("the type is another", f".to({model_dtype})")


def _conversion(got: torch.dtype, model_dtype: torch.dtype) -> str:
    return "" if got == model_dtype else f".to({model_dtype})"


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape after the last axis has become the second."""
    return (shape[0], shape[-1], *shape[1:-1])


def _has_too_few_axes(call: ModelCall, first: FirstLayer) -> bool:
    """Whether a convolution takes the picture as one sample, also where other numbers were broadcast to it."""
    picture = call.model_picture
    unbatched = 0 < first.grid_ndim == len(first.shape) - 1 and picture.ndim <= first.grid_ndim + 1
    grid = tuple(picture.shape[1:])
    return unbatched and first.shape[len(first.shape) - len(grid) :] == grid


def _names_type(error: Exception, dtype: torch.dtype) -> bool:
    """Whether an exception is about numbers of this type."""
    return any(word in str(error) for word in _DTYPE_NAMES.get(dtype, ()))


def _other_batch_size(call: ModelCall, error: Exception) -> str | None:
    """What to do where a program of torch.export takes batches of one size only, and the user gave another."""
    match = _EXPORTED_SIZE.search(str(error))
    if match is None or (size := int(match[1] or match[2])) == call.user_shape[0]:
        return None
    return (
        f"the model is an exported program, which takes batches of {size} only; got {call.user_shape[0]}. Next: give "
        f"{size} at a time, or export the network with a batch axis of any size, torch.export.export(network, (x,), "
        "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
    )


# What a program of torch.export says of another size of axis 0: called as it is, or unflattened.
_EXPORTED_SIZE = re.compile(
    r"Guard failed: \w+\.size\(\)\[0\] == (\d+)|Expected input at \*args\[0\]\.shape\[0\] to be equal to (\d+)"
)


def _is_unbatched(call: ModelCall, first: FirstLayer) -> bool:
    """Whether a convolution takes the whole picture as one sample, because it has no batch axis."""
    return 0 < first.grid_ndim == len(first.shape) - 1 and first.shape == tuple(call.model_picture.shape)


def _wrong_before_any_layer(model: nn.Module, call: ModelCall, error: Exception) -> str | None:
    """Where the model fails before its first layer: the first convolution, if the axes or the type cannot be right."""
    picture = call.model_picture
    convolution = next(((name, each) for name, each in model.named_modules() if isinstance(each, CONVOLUTION)), None)
    if not call.is_single_tensor or call.axis_order is not None:
        return None
    if convolution is None:
        return _wrong_type(model, picture, error)
    name, module = convolution
    first = FirstLayer(name, module, tuple(picture.shape), picture.dtype, picture.device)
    channels_last = picture.ndim == first.grid_ndim + 2 and picture.shape[-1] == module.in_channels != picture.shape[1]
    unbatched = len(call.user_shape) == first.grid_ndim + 1 and module.in_channels in (
        call.user_shape[0],
        call.user_shape[-1],
    )
    counts = {picture.shape[1], module.in_channels}
    other_channels = picture.ndim == first.grid_ndim + 2 and len(counts) == 2 and counts <= {*PICTURE_CHANNELS}
    other_channels &= module.in_channels not in picture.shape[2:]  # the model may move its channels
    names_type = _names_type(error, picture.dtype) and not picture.is_floating_point()
    if not (channels_last or unbatched or other_channels or names_type):
        return None
    return mismatch(call, first)


def _wrong_type(model: nn.Module, picture: Tensor, error: Exception) -> str | None:
    """Where no layer with weights is called: the model's own parameters, if the error names the type of the picture."""
    dtypes = {each.dtype for each in model.parameters() if each.is_floating_point()} - {picture.dtype}
    if len(dtypes) != 1 or not _names_type(error, picture.dtype):
        return None
    [dtype] = dtypes
    step = _dtype_step(picture.dtype, dtype)
    return (
        f"the inputs do not fit the model: got {tuple(picture.shape)} of {picture.dtype}; its parameters are {dtype}: "
        f"{step.reason}. Next: for this input x, write x{step.code}"
    )


def _modules_of(traceback: TracebackType | None) -> set[nn.Module]:
    """The modules whose methods were running when an exception was raised."""
    modules = set()
    while traceback is not None:
        modules.add(running_module(traceback.tb_frame))
        traceback = traceback.tb_next
    return {module for module in modules if module is not None}
