"""What a model is called with: a picture for each sample, and whatever else it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.targets.neurons import Observable
from torchpeek.errors import InputError
from torchpeek.hooks import containers


@dataclass(frozen=True, eq=False)
class Arguments:
    """A call of a model that takes more than one tensor: `model(*args, **kwargs)`.

    `picture` is the path of the tensor (N, C, *grid) that heatmaps are laid over and that methods change, such as "0"
    or "pixel_values"; left out, it is the first floating-point one that has a grid. Every other tensor whose first axis
    is N goes with the samples, except those at the paths in `shared`, or inside of what is there, which are the same
    for all of them, such as the texts that every picture is compared with. Of models that compare pictures with texts,
    as CLIP in transformers does, the texts are shared without being named. Raises InputError for what is no call.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    picture: str | int | None = None
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
        """`shared`, of which one may be given alone."""
        return (self.shared,) if isinstance(self.shared, str) else tuple(self.shared)


@dataclass(frozen=True)
class AxisOrder:
    """Inside torchpeek pictures are (N, C, *grid): from what the model takes to that, and back."""

    to_grid: Callable[[Tensor], Tensor]
    as_taken: Callable[[Tensor], Tensor]  # contiguous, as the user's own would be


# (N, frames, C, H, W), and (N, time, frequency), whose grid the model convolves as (frequency, time).
_FRAMES_FIRST = AxisOrder(lambda given: given.transpose(1, 2), lambda given: given.transpose(1, 2).contiguous())
_SPECTROGRAM = AxisOrder(lambda given: given.mT.unsqueeze(1), lambda given: given.squeeze(1).mT.contiguous())


@dataclass(frozen=True, eq=False)
class ModelCall:
    """A call of a model for N samples: the picture apart from the rest, so that it can be changed."""

    picture: Tensor  # (N, C, *grid), whatever the order in which the model has its axes
    call: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((None,), {}))
    path: str = "0.0"  # of the picture in the call
    by_sample: frozenset[str] = frozenset()  # the paths of what else goes with the samples
    observed: Observable = field(default_factory=dict)  # layers whose outputs are part of the answer
    listed: bool = False  # whether the model takes a list of pictures (C, H, W), as torchvision's detectors do
    order: AxisOrder | None = None  # of the axes as the model takes them, where it is another one

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def size(self) -> torch.Size:
        """The picture's own axes, (H, W)."""
        return self.picture.shape[2:]

    @property
    def plain(self) -> bool:
        """Whether the picture is all there is."""
        return self.path == "0.0" and not self.listed and len(self.call[0]) == 1 and not self.call[1]

    @cached_property
    def as_taken(self) -> Tensor:
        """The picture with its axes in the model's own order."""
        return self.picture if self.order is None else self.order.as_taken(self.picture)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with."""
        picture: Any = list(self.picture) if self.listed else self.as_taken
        if self.plain or self.listed:
            return (picture,), {}
        args, kwargs = containers.with_part(self.call, self.path, picture)
        return tuple(args), dict(kwargs)

    def of(self, rows: Tensor, picture: Tensor | None = None) -> ModelCall:
        """The same call for other samples: entry i has everything of sample rows[i], and another picture if given."""
        if picture is None:
            picture = self.picture[rows.to(self.picture.device)]
        if not self.by_sample:
            return replace(self, picture=picture)

        def part(path: str, tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)] if path in self.by_sample else tensor

        return replace(self, picture=picture, call=containers.mapped(self.call, part))

    def changed(self, picture: Tensor) -> ModelCall:
        """The same call with another picture for each of its samples."""
        return replace(self, picture=picture)

    def copied(self) -> ModelCall:
        """With copies of all tensors, without a graph behind them: nobody else writes into what is kept."""
        with torch.inference_mode(False):  # the caller's own would make tensors that no gradient comes from
            copies = containers.mapped(self.call, lambda path, tensor: tensor.detach().clone())
            return replace(self, picture=self.picture.detach().clone(), call=copies)

    def handed(self, picture: Tensor | None = None) -> ModelCall:
        """For one pass: the model may write into what it is given, so everything besides `picture` is a copy."""
        copies = containers.mapped(self.call, lambda path, tensor: tensor.clone()) if not self.plain else self.call
        return replace(self, picture=self.picture.clone() if picture is None else picture, call=copies)


def as_model_call(model: nn.Module, inputs: object) -> ModelCall:
    """The call that is meant by a tensor (N, C, *grid), a dict of keyword arguments, or Arguments.

    The picture is whatever order of axes the model takes, and (N, C, *grid) in the Given.

    For a model that takes a list of pictures, as torchvision's detectors do, the tensor may be one picture (C, H, W).
    Raises InputError.
    """
    if isinstance(inputs, ModelCall):
        return inputs
    if isinstance(inputs, Tensor):
        listed = takes_a_list(model)
        if listed and inputs.ndim == 3:
            inputs = inputs.unsqueeze(0)
        check_inputs(inputs)
        return _with_channels_first(model, ModelCall(inputs, listed=listed))
    if isinstance(inputs, Mapping):
        inputs = Arguments(kwargs=inputs)
    if not isinstance(inputs, Arguments):
        check_inputs(inputs)  # which says what it may be
        raise AssertionError
    if takes_a_list(model):
        raise InputError(
            f"{type(model).__name__} takes a list of pictures (C, H, W), and no other arguments here. Next: give one "
            "picture (C, H, W), several of one size (N, C, H, W), or a list of these"
        )
    call = (tuple(inputs.args), dict(inputs.kwargs))
    tensors = {_said(path): (path, each) for path, each in containers.leaves(call)}
    name = _picture(tensors, None if inputs.picture is None else str(inputs.picture))
    path, picture = tensors[name]
    check_inputs(picture)
    shared = {said for said in tensors if compares_texts(model) and said in _OF_TEXTS}
    for given in inputs.shared_paths:
        meant = {said for said in tensors if said == given or said.startswith(f"{given}.")}
        if not meant or name in meant:
            what = "is the picture, which is each sample's own" if meant else "is no tensor of the call"
            others = ", ".join(repr(said) for said in tensors if said != name) or "none"
            raise InputError(f"shared names {given!r}, which {what}; besides the picture there are: {others}")
        shared |= meant
    rest = {
        each
        for said, (each, tensor) in tensors.items()
        if said != name and said not in shared and tensor.ndim and len(tensor) == len(picture)
    }
    # Its place is left empty: what is copied for each pass is the rest.
    return _with_channels_first(
        model, ModelCall(picture, containers.with_part(call, path, None), path, frozenset(rest))
    )


def _with_channels_first(model: nn.Module, given: ModelCall) -> ModelCall:
    order = axis_order(model, given.picture)
    return given if order is None else replace(given, picture=order.to_grid(given.picture), order=order)


def takes_a_list(model: nn.Module) -> bool:
    """Whether the model takes a list of pictures (C, H, W) in place of a batch, and scales and pads them itself."""
    transform = getattr(model, "transform", None)
    return all(hasattr(transform, each) for each in ("min_size", "max_size", "size_divisible", "fixed_size"))


# What transformers calls the texts that every picture is compared with.
_OF_TEXTS = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids"})


def compares_texts(model: nn.Module) -> bool:
    """Whether the model compares every picture with every text, as CLIP, SigLIP and their kin in transformers do."""
    return all(callable(getattr(model, name, None)) for name in ("get_image_features", "get_text_features"))


def _picture(tensors: Mapping[str, tuple[str, Tensor]], asked: str | None) -> str:
    listed = ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, (_, tensor) in tensors.items()) or "none"
    if asked is not None:
        if asked not in tensors:
            raise InputError(f"picture is {asked!r}; the call has tensors at: {listed}")
        return asked
    for least in (3, 2):
        for name, (_, tensor) in tensors.items():
            if tensor.is_floating_point() and tensor.ndim >= least:
                return name
    raise InputError(
        f"no picture among the model's arguments: none is a floating-point tensor (N, C, *grid). There are: {listed}"
    )


def _said(path: str) -> str:
    """How a user names an argument: its position or its keyword, and what is inside it."""
    return path.partition(".")[2]


def check_inputs(inputs: object) -> None:
    """Raise InputError unless `inputs` is a batch of at least one sample."""
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs is a {type(inputs).__name__}; a model is given a tensor (N, C, *grid), a dict of its keyword "
            "arguments, or tp.Arguments. With a LoadedModel, a Picture, a path or a PIL image works, too"
        )
    if inputs.is_nested or inputs.layout != torch.strided or inputs.is_meta or inputs.is_quantized:
        layout = "quantised" if inputs.is_quantized else f"{inputs.layout} on {inputs.device}"
        kind = "nested" if inputs.is_nested else layout
        raise InputError(
            f"inputs is a tensor of another kind ({kind}); allowed: a plain one, dense and with numbers. Pictures of "
            "several sizes are given as a list"
        )
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}; allowed: (N, C, *grid) with at least one sample")


def axis_order(model: nn.Module, picture: Tensor) -> AxisOrder | None:
    """That of transformers' models of videos and of its AST, also inside of wrappers; None of others."""
    for config in _configs(model):
        of_frames = any(isinstance(getattr(config, name, None), int) for name in ("num_frames", "frames_per_clip"))
        channels = getattr(config, "num_channels", getattr(config, "in_chans", None))
        if of_frames and picture.ndim == 5 and picture.shape[2] == channels:
            return _FRAMES_FIRST
        strided = hasattr(config, "frequency_stride") and hasattr(config, "time_stride")
        if strided and picture.ndim == 3 and picture.shape[2] == getattr(config, "num_mel_bins", None):
            return _SPECTROGRAM
    return None


def _configs(model: nn.Module) -> Iterator[Any]:
    """Of the outermost module that has one, which may be inside a wrapper; and of its half that sees."""
    for module in model.modules():
        if hasattr(config := getattr(module, "config", None), "to_dict"):  # as all of transformers' have
            yield config
            yield getattr(config, "vision_config", None)
            return
