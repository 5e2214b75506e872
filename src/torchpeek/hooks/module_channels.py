"""Which axis of a module's output holds the channels, and how many there are, by the type of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchpeek.tensor_formats import RAGGED, shape_sizes

ChannelAxis: TypeAlias = Literal["first", "last"]
"""`first`: axis 1, as in (N, C, *grid). `last`: the last axis, as in (N, *grid, C)."""


class _TypeChannels(NamedTuple):
    """What a module type says about the channels of its output."""

    type: type[nn.Module]
    axis: ChannelAxis
    size_of: Callable[[Any], int] | None  # None for a type that does not know how many channels it has


_TYPES = (
    _TypeChannels(nn.modules.conv._ConvNd, "first", lambda conv: conv.out_channels),
    _TypeChannels(nn.modules.batchnorm._NormBase, "first", lambda norm: norm.num_features),
    _TypeChannels(nn.GroupNorm, "first", lambda norm: norm.num_channels),
    _TypeChannels(nn.modules.pooling._MaxPoolNd, "first", None),
    _TypeChannels(nn.modules.pooling._AvgPoolNd, "first", None),
    _TypeChannels(nn.modules.pooling._AdaptiveAvgPoolNd, "first", None),
    _TypeChannels(nn.modules.pooling._AdaptiveMaxPoolNd, "first", None),
    _TypeChannels(nn.Linear, "last", lambda linear: linear.out_features),
    _TypeChannels(nn.LayerNorm, "last", lambda norm: norm.normalized_shape[-1]),
    _TypeChannels(nn.RMSNorm, "last", None),
    _TypeChannels(nn.Embedding, "last", lambda embedding: embedding.embedding_dim),
    _TypeChannels(nn.MultiheadAttention, "last", lambda attention: attention.embed_dim),
    _TypeChannels(nn.RNNBase, "last", lambda rnn: (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)),
)

CHANNELS_FIRST = tuple(row.type for row in _TYPES if row.axis == "first")
"""Module types whose output is (N, C, *grid), for isinstance: convolutions, batch and group norms, poolings."""

CHANNELS_FIRST_WITH_WEIGHTS = tuple(row.type for row in _TYPES if row.axis == "first" and row.size_of is not None)
"""Those of CHANNELS_FIRST that may have a weight and a bias for each channel: all except the poolings."""

CHANNELS_LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Normalisations over the last axis.

Compare with `type(module) in`, not with isinstance: a subclass may move its channels, as LayerNorm2d of torchvision.
"""


class Channels(NamedTuple):
    """What the modules of a model say about the channels of a layer's output.

    Args:
        sizes: How many channels there may be, the best evidence first: by the layer's own type, by the shapes of its
            own parameters, by the layers inside it and before it, and by the layer after it.
        own_axis: The axis on which the layer's own type puts the channels; None where the type does not say.
    """

    sizes: tuple[frozenset[int], ...] = ()
    own_axis: ChannelAxis | None = None

    def axes_of(self, tensor: Tensor) -> tuple[int | None, ...]:
        """The axes of `tensor` that may hold the channels, the likeliest first. A single one is certain.

        It is the one of axis 1 and the last axis whose length the best evidence names. Where none names one of them
        alone, the layer's own type decides.

        Returns:
            1 or -1, or both; 0 or None for a tensor with a single axis, which None counts as one channel.
        """
        if tensor.is_nested:
            return self._axes_of_nested(tensor)
        if tensor.ndim < 2:
            single = tensor.ndim == 1 and any(len(tensor) in sizes for sizes in self.sizes)
            return (0, None) if single else (None,)
        if tensor.ndim == 2:
            return (1,)
        for sizes in self.sizes:
            first, last = tensor.shape[1] in sizes, tensor.shape[-1] in sizes
            if first != last:
                return (1,) if first else (-1,)
        if self.own_axis is not None:
            return (1,) if self.own_axis == "first" else (-1,)
        if tensor.ndim == 4 and tensor.shape[1] != tensor.shape[2] == tensor.shape[3]:
            return (1,)  # a square picture, or an attention map (N, heads, T, T)
        # Three axes are mostly tokens (N, T, C), since modules that return (N, C, T) are known. Four are mostly an
        # attention map (N, heads, T, T), or a picture.
        return (-1, 1) if tensor.ndim == 3 else (1, -1)

    def _axes_of_nested(self, tensor: Tensor) -> tuple[int | None, ...]:
        """The same for a nested tensor: the channels are on no axis whose length varies."""
        lengths = shape_sizes(tensor)
        axes = [axis for axis in (1, -1) if len(lengths) > 2 and lengths[axis] != RAGGED]
        for named in self.sizes:
            if len(matching := [axis for axis in axes if lengths[axis] in named]) == 1:
                return (matching[0],)
        return tuple(axes) or (None,)


UNKNOWN_CHANNELS = Channels()
"""For a layer whose channels no module tells."""


def channels_of(model: nn.Module) -> dict[int, Channels]:
    """What is known of the channels of every module of `model`, by the id of the module."""
    modules = list(dict.fromkeys(model.modules()))
    following: frozenset[int] = frozenset()
    inputs: dict[int, frozenset[int]] = {}  # how many channels the next module takes
    for module in reversed(modules):
        inputs[id(module)] = following
        following = _input_sizes(module) or following
    by_module: dict[int, Channels] = {}
    _add_channels(model, frozenset(), inputs, by_module)
    return by_module


def _add_channels(
    module: nn.Module, latest: frozenset[int], inputs: dict[int, frozenset[int]], by_module: dict[int, Channels]
) -> frozenset[int]:
    """Add the module and those inside it. Returns the channels of the last that knows them."""
    own = _own_sizes(module)
    latest = own or latest
    by_module[id(module)] = UNKNOWN_CHANNELS  # it may contain itself
    for child in module._modules.values():
        if child is not None and id(child) not in by_module:
            latest = _add_channels(child, latest, inputs, by_module)
    # What the layers inside it return last tells more than its own parameters, such as a table of positions.
    evidence = (own, latest, _parameter_sizes(module), inputs[id(module)])
    if not module._modules:
        evidence = (own, _parameter_sizes(module), latest, inputs[id(module)])
    by_module[id(module)] = Channels(tuple(filter(None, evidence)), _own_axis(module))
    return own or latest


def _own_axis(module: nn.Module) -> ChannelAxis | None:
    return next((row.axis for row in _TYPES if isinstance(module, row.type)), None)


def _own_sizes(module: nn.Module) -> frozenset[int]:
    for row in _TYPES:
        if row.size_of is not None and isinstance(module, row.type):
            return frozenset({row.size_of(module)})
    # Such as quantised layers, and those of other libraries.
    sizes = frozenset(
        size
        for name in ("out_channels", "out_features", "hidden_size")
        if type(size := getattr(module, name, None)) is int
    )
    return sizes | {2 * size for size in sizes} if getattr(module, "bidirectional", False) is True else sizes


def _input_sizes(module: nn.Module) -> frozenset[int]:
    """How many channels the module takes, by its attributes."""
    names = ("in_channels", "in_features", "num_features", "num_channels", "embed_dim", "input_size")
    return frozenset(size for name in names if type(size := getattr(module, name, None)) is int)


def _parameter_sizes(module: nn.Module) -> frozenset[int]:
    """The lengths of the module's own vectors, such as a bias; of its own matrices where it has none."""
    shapes = [tuple(each.shape) for each in module._parameters.values() if each is not None and not is_lazy(each)]
    vectors = frozenset(shape[0] for shape in shapes if len(shape) == 1)
    return vectors or frozenset(size for shape in shapes if len(shape) == 2 for size in shape)


def channels_inside(module: nn.Module) -> Channels:
    """What is known of the channels of tensors that the module computes between the layers inside it."""
    sizes = [_own_sizes(each) for each in module.modules()]
    return Channels(tuple(filter(None, (frozenset().union(*sizes),))))
