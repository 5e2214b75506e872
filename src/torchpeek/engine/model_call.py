"""What a model is called with: one picture for each sample, and the other arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from torchpeek.argument_types import Allowed
from torchpeek.cached import cached_property
from torchpeek.engine.input_digests import changed_samples, input_digests
from torchpeek.engine.model_config import (
    compares_texts,
    is_text_argument,
    takes_a_list,
    takes_frames_first,
    takes_time_first,
)
from torchpeek.engine.observed import ObservedLayers
from torchpeek.errors import InputError, type_shown
from torchpeek.hooks import containers
from torchpeek.keywords import checked_class
from torchpeek.system_errors import is_from_outside
from torchpeek.tensor_formats import is_plain, shape_text, type_text, why_without_values

PICTURE_CHANNELS = (1, 3, 4)
"""How many channels pictures come in: grey, RGB, RGB with opacity."""


@checked_class
@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of a model that takes more than one tensor: `model(*args, **kwargs)`.

    One tensor is the picture: heatmaps lie over it, and methods change it. Every other tensor whose first axis has N
    entries belongs to the samples, one entry each, unless `shared` names it. In models that compare pictures with
    texts, such as CLIP in transformers, the texts are shared without being named.

    Args:
        args: The positional arguments, a tuple.
        kwargs: The keyword arguments, a dict from name to value.
        picture: The path of the picture, a tensor (N, C, *grid), such as "0" or "pixel_values". None takes the first
            floating-point tensor that has a grid.
        shared: Paths of tensors that are the same for all samples, such as texts that every picture is compared with;
            a path also covers everything inside it. One path may be given alone.

    Raises:
        InputError: When `args` is no tuple or list, or `kwargs` is no dict with names as keys.

    Example:
        >>> class Scaled(nn.Sequential):
        ...     def forward(self, image, scale):
        ...         return super().forward(image) * scale
        >>> model = Scaled(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> tp.explain(model, tp.Arguments((torch.rand(2, 3, 8, 8), torch.tensor(2.0))), layer="0").values.shape
        torch.Size([2, 1, 6, 6])
    """

    args: Annotated[tuple[Any, ...], Allowed("a tuple, as in tp.Arguments((x,))")] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    picture: Annotated[str | int | None, Allowed("the path of a tensor, such as 'pixel_values', or None")] = None
    shared: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.args, (tuple, list)):
            raise InputError(
                f"Arguments has args of type {type(self.args).__name__}; allowed: a tuple, as in tp.Arguments((x,))"
            )
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(name, str) for name in self.kwargs):
            raise InputError(f"Arguments has kwargs {self.kwargs!r:.60}; allowed: a dict whose keys are names")

    @property
    def shared_paths(self) -> Sequence[str]:
        """`shared` as a sequence of paths."""
        return (self.shared,) if isinstance(self.shared, str) else tuple(self.shared)


@dataclass(frozen=True)
class AxisOrder:
    """How to convert between (N, C, *grid), which torchpeek uses, and the axis order that a model takes."""

    to_grid: Callable[[Tensor], Tensor]
    to_model: Callable[[Tensor], Tensor]  # contiguous, as the user's own tensor would be


@dataclass(frozen=True, eq=False)
class ModelCall:
    """A call of a model for N samples. The picture is held apart from the other arguments, so that it can be changed.

    Args:
        picture: (N, C, *grid), whatever axis order the model takes.
        arguments: Positional and keyword arguments, with None in the place of the picture.
        picture_path: Where the picture belongs in `arguments`.
        sample_paths: Paths of the other tensors that have one entry for each sample.
        observed: Layers whose outputs the target reads.
        takes_list: Whether the model takes a list of pictures (C, H, W), as torchvision's detectors do.
        axis_order: The axis order that the model takes; None for (N, C, *grid).
        user_count: The length of axis 0 of the user's own tensor, for error texts; 0 for that of the picture.
    """

    picture: Tensor
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((None,), {}))
    picture_path: str = "0.0"
    sample_paths: frozenset[str] = frozenset()
    observed: ObservedLayers = field(default_factory=dict)
    takes_list: bool = False
    axis_order: AxisOrder | None = None
    user_count: int = 0

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def user_shape(self) -> tuple[int, ...]:
        """The shape of the user's own tensor, also where this call is of one of its samples."""
        return (self.user_count or len(self), *self.model_picture.shape[1:])

    @property
    def size(self) -> torch.Size:
        """The sizes of the picture's own axes: (H, W) of an image."""
        return self.picture.shape[2:]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What further passes over other samples depend on: the picture's shape, dtype and device, and autocast."""
        picture = self.picture
        return tuple(picture.shape[1:]), picture.dtype, picture.device, torch.is_autocast_enabled(picture.device.type)

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """The form of the call: the shapes of one sample's tensors, and the values of all other arguments.

        What is found out about a model for one call holds for all calls of the same signature.
        """
        picture = tuple(self.picture.shape[1:]), self.picture_path, self.takes_list
        if self.is_single_tensor:
            return picture

        def form(path: str, tensor: Tensor) -> tuple[object, ...]:
            return tuple(tensor.shape[1:] if path in self.sample_paths else tensor.shape), tensor.dtype

        arguments = containers.mapped(self.arguments, form)
        try:
            return *picture, repr(arguments)
        except Exception as error:  # of a user's own class, whose objects are shown in a way that needs their tensors
            if is_from_outside(error):
                raise
            return *picture, object()  # no other call is known to have the same form

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """A text for each sample that another input does not have; see `input_digests`."""
        others = () if self.is_single_tensor else self.arguments  # most calls have nothing else
        return input_digests(self.picture, others, self.sample_paths)

    def changed_samples(self, digests: Sequence[str]) -> Mapping[int, int | None]:
        """The samples with another input than that of these digests; see `input_digests.changed_samples`."""
        return changed_samples(digests, self.picture, self.arguments, self.sample_paths)

    @property
    def is_single_tensor(self) -> bool:
        """Whether the picture is the only argument."""
        return (
            self.picture_path == "0.0" and not self.takes_list and len(self.arguments[0]) == 1 and not self.arguments[1]
        )

    @cached_property
    def model_picture(self) -> Tensor:
        """The picture in the model's own axis order."""
        return self.picture if self.axis_order is None else self.axis_order.to_model(self.picture)

    def args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with the picture in its place."""
        picture: Any = list(self.picture) if self.takes_list else self.model_picture
        if self.is_single_tensor or self.takes_list:
            return (picture,), {}
        args, kwargs = containers.with_part(self.arguments, self.picture_path, picture)
        return tuple(args), dict(kwargs)

    def select(self, rows: Tensor, picture: Tensor | None = None) -> ModelCall:
        """The call for other samples: entry i has the arguments of sample rows[i], and picture[i] where one is passed.

        Args:
            rows: (n,), indices of samples.
            picture: (n, C, *grid); None takes the pictures of the samples.
        """
        if picture is None:
            picture = self.picture[rows.to(self.picture.device)]
        if not self.sample_paths:
            return replace(self, picture=picture)

        def entries(path: str, tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)] if path in self.sample_paths else tensor

        return replace(self, picture=picture, arguments=containers.mapped(self.arguments, entries))

    def one_sample(self, size: int | None = None, row: int = 0) -> ModelCall:
        """The call with one of its samples only, repeated `size` times for a model that takes no other batches."""
        rows = torch.full((size or 1,), row)
        # A copy of the picture: a dry run recognises the model's input by identity, and must not find a view of it.
        return self.select(rows, self.picture[rows.to(self.picture.device)].detach().clone())

    def with_picture(self, picture: Tensor) -> ModelCall:
        """The same call with another picture (N, C, *grid)."""
        return replace(self, picture=picture)

    def copied(self) -> ModelCall:
        """The same call with detached copies of all tensors, so that nobody else can write into them."""
        with torch.inference_mode(False):  # tensors made in inference mode take no part in autograd
            picture = self.picture.detach().clone()
            if self.is_single_tensor and self.arguments[0][0] is self.picture:
                return replace(self, picture=picture, arguments=((picture,), {}))
            copies = containers.mapped(self.arguments, lambda path, tensor: tensor.detach().clone())
            return replace(self, picture=picture, arguments=copies)

    def for_one_pass(self, picture: Tensor | None = None) -> ModelCall:
        """The call for a single pass, in which the model may write into its arguments: copies, but for `picture`."""
        copies = self.arguments
        if not self.is_single_tensor:
            copies = containers.mapped(self.arguments, lambda path, tensor: tensor.clone())
        return replace(self, picture=self.picture.clone() if picture is None else picture, arguments=copies)


def as_model_call(model: nn.Module, inputs: object, *, any_tensor: bool = False) -> ModelCall:
    """The call that `inputs` stand for: a tensor (N, C, *grid), a dict of keyword arguments, or Arguments.

    The user's picture has the axis order that the model takes; that of the ModelCall is (N, C, *grid). For a model that
    takes a list of pictures, as torchvision's detectors do, the tensor may be one picture (C, H, W). With `any_tensor`,
    the first tensor takes the place of the picture where there is none, for what needs the samples alone.

    Raises:
        InputError: When the inputs are none of these, have no picture, or name arguments that do not exist.
    """
    if isinstance(inputs, ModelCall):
        return inputs
    if isinstance(inputs, Tensor):
        takes_list = takes_a_list(model)
        if takes_list and inputs.ndim == 3:
            inputs = inputs.unsqueeze(0)
        check_inputs(inputs, least_axes=1 if any_tensor else 2)
        return _with_channels_first(model, ModelCall(inputs, takes_list=takes_list, user_count=len(inputs)))
    if isinstance(inputs, Mapping):
        inputs = Arguments(kwargs=inputs)
    if not isinstance(inputs, Arguments):
        check_inputs(inputs)  # raises, and says what is allowed
        raise AssertionError
    if takes_a_list(model):
        raise InputError(
            f"{type(model).__name__} takes a list of pictures (C, H, W), and no other arguments here. Next: give one "
            "picture (C, H, W), several of one size (N, C, H, W), or a list of these"
        )
    arguments = (tuple(inputs.args), dict(inputs.kwargs))
    tensors = {_user_path(path): (path, tensor) for path, tensor in containers.leaves(arguments)}
    values = {**{str(place): each for place, each in enumerate(inputs.args)}, **inputs.kwargs}
    named = None if inputs.picture is None else str(inputs.picture)
    name = _picture_path(tensors, named, values, any_tensor=any_tensor)
    path, picture = tensors[name]
    check_inputs(picture, least_axes=1 if any_tensor else 2)
    shared = _shared_paths(model, inputs, tensors, name)
    sample_paths = {
        path
        for user_path, (path, tensor) in tensors.items()
        if user_path != name and user_path not in shared and tensor.ndim and len(tensor) == len(picture)
    }
    # The picture's place is left empty, because each pass copies the other arguments.
    without_picture = containers.with_part(arguments, path, None)
    whole = ModelCall(picture, without_picture, path, frozenset(sample_paths), user_count=len(picture))
    return _with_channels_first(model, whole)


def _with_channels_first(model: nn.Module, call: ModelCall) -> ModelCall:
    order = axis_order(model, call.picture)
    return call if order is None else replace(call, picture=order.to_grid(call.picture), axis_order=order)


def _shared_paths(
    model: nn.Module, inputs: Arguments, tensors: Mapping[str, tuple[str, Tensor]], picture: str
) -> set[str]:
    """The paths, as users write them, of the tensors that are the same for all samples. Raises InputError."""
    shared = {path for path in tensors if compares_texts(model) and is_text_argument(path)}
    for named in inputs.shared_paths:
        inside = {path for path in tensors if path == named or path.startswith(f"{named}.")}
        if not inside or picture in inside:
            what = "is the picture, which is each sample's own" if inside else "is no tensor of the call"
            others = ", ".join(repr(path) for path in tensors if path != picture) or "none"
            raise InputError(f"shared names {named!r}, which {what}; besides the picture there are: {others}")
        shared |= inside
    return shared


def _picture_path(
    tensors: Mapping[str, tuple[str, Tensor]], named: str | None, values: Mapping[str, object], *, any_tensor: bool
) -> str:
    """The path of the picture, as users write it: the `named` one, or the first tensor that can be a picture.

    With `any_tensor`, it may also be the first tensor with an axis.
    """
    listed = ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, (_, tensor) in tensors.items()) or "none"
    if named is not None:
        if named not in tensors:
            raise InputError(f"picture is {named!r}; the call has tensors at: {listed}")
        return named
    for least_axes in (3, 2):
        for name, (_, tensor) in tensors.items():
            if tensor.is_floating_point() and tensor.ndim >= least_axes:
                return name
    if arrays := [name for name, each in values.items() if _is_array(each)]:
        raise InputError(f"argument {arrays[0]!r}: {_array_advice(values[arrays[0]])}")
    if any_tensor:
        for least_axes in (2, 1):
            for name, (_, tensor) in tensors.items():
                if tensor.ndim >= least_axes:
                    return name
        raise InputError(f"no tensor with an axis of samples among the model's arguments. There are: {listed}")
    raise InputError(
        f"a heatmap lies over a floating-point tensor (N, C, *grid), such as a picture, and none of the model's "
        f"arguments is one. There are: {listed}. Next: tp.activations, tp.statistics and tp.gradient_flow take inputs "
        "of any kind, such as texts"
    )


def _user_path(path: str) -> str:
    """How a user names an argument: by its position or its keyword, and what is inside it."""
    return path.partition(".")[2]


def check_inputs(inputs: object, *, least_axes: int = 2) -> None:
    """Raise InputError unless `inputs` is a plain tensor with at least one sample and so many axes."""
    if not isinstance(inputs, Tensor):
        if _is_array(inputs):
            raise InputError(_array_advice(inputs))
        batches = isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes))
        raise InputError(
            f"inputs is {type_shown(inputs)}; allowed: a tensor (N, C, *grid), a dict of keyword arguments, or "
            "tp.Arguments; with a LoadedModel also a Picture, a path or a PIL image"
            + (f". Next: {_several_advice(inputs)}" if batches else "")
        )
    if problem := why_without_values(inputs):
        raise InputError(f"inputs is {problem}")
    if not is_plain(inputs):
        next_step = ".dequantize() of it" if inputs.is_quantized else ".to_dense() of it"
        if inputs.is_nested:
            next_step = "pictures of several sizes as a list"
        raise InputError(
            f"inputs is a tensor of {shape_text(inputs)} {type_text(inputs)}; allowed: a dense tensor with values. "
            f"Next: pass {next_step}"
        )
    if inputs.ndim < least_axes or 0 in inputs.shape:
        labels = inputs.ndim == 1 and not inputs.is_floating_point()
        raise InputError(
            f"inputs has shape {tuple(inputs.shape)}; allowed: (N, C, *grid) with at least one sample"
            + (
                ". Next: if these are the labels of a batch, give the pictures alone, and target=labels"
                if labels
                else ""
            )
        )


def _several_advice(inputs: object) -> str:
    """What to write in place of something with several entries."""
    several = isinstance(inputs, (tuple, list)) and len(inputs) > 1 and all(isinstance(each, Tensor) for each in inputs)
    return "give one batch of it at a time" + (
        ", without its target; a model that takes several tensors is called by tp.Arguments((a, b))" if several else ""
    )


def _is_array(value: object) -> bool:
    """Whether it is an array of NumPy, or of another library that NumPy can read."""
    return not isinstance(value, Tensor) and all(hasattr(value, name) for name in ("shape", "dtype", "__array__"))


def _array_advice(array: Any) -> str:
    """What to write in place of a NumPy array, or of another array that is no tensor."""
    start = "torch.from_numpy(a)" if type(array).__module__ == "numpy" else "torch.as_tensor(a)"
    shape, text = tuple(array.shape), start
    if len(shape) in (3, 4) and shape[-1] in PICTURE_CHANNELS and shape[-3] not in PICTURE_CHANNELS:
        text += ".permute(2, 0, 1).unsqueeze(0)" if len(shape) == 3 else ".permute(0, 3, 1, 2)"
    elif len(shape) == 3 and shape[0] in PICTURE_CHANNELS:
        text += ".unsqueeze(0)"
    kind = str(array.dtype)
    text += {"uint8": ".float() / 255", "float64": ".float()"}.get(kind, "")
    return (
        f"inputs is {type_shown(array)} of shape {shape} and type {kind}; allowed: a tensor (N, C, *grid). Next: "
        f"{text}, normalised as in training; or, with a LoadedModel, a path or a PIL image"
    )


# (N, frames, C, H, W), and (N, time, frequency), which the model convolves as a grid (frequency, time).
_FRAMES_FIRST = AxisOrder(lambda tensor: tensor.transpose(1, 2), lambda tensor: tensor.transpose(1, 2).contiguous())
_SPECTROGRAM = AxisOrder(lambda tensor: tensor.mT.unsqueeze(1), lambda tensor: tensor.squeeze(1).mT.contiguous())


def axis_order(model: nn.Module, picture: Tensor) -> AxisOrder | None:
    """The axis order of transformers' video models and of its AST, also inside wrappers; None for other models."""
    if takes_frames_first(model, picture.shape):
        return _FRAMES_FIRST
    return _SPECTROGRAM if takes_time_first(model, picture.shape) else None
