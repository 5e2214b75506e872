"""Which axis of a module's output holds the channels, and how many there are, by the type of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

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
    """How many channels a layer's output is expected to have, and on which axis its type puts them."""

    size: int
    axis: ChannelAxis

    def axis_of(self, tensor: Tensor) -> int:
        """The channel axis of `tensor`: 1 or -1, or 0 for a tensor without a batch axis.

        It is the one of axis 1 and the last axis whose length is `size`. If both are that long, or neither, `axis`
        decides.
        """
        if tensor.ndim < 3:
            return 1 if tensor.ndim > 1 else 0
        first, last = tensor.shape[1] == self.size, tensor.shape[-1] == self.size
        if first != last:
            return 1 if first else -1
        return -1 if self.axis == "last" else 1


UNKNOWN_CHANNELS = Channels(-1, "first")
"""For a layer whose channels no module type tells."""


def channels_of(model: nn.Module) -> dict[int, Channels]:
    """The expected channels of every module of `model`, by the id of the module.

    They are those of the last layer inside the module whose type knows its channels, or else of the last such layer
    before it.
    """
    by_module: dict[int, Channels] = {}
    _add_channels(by_module, model, UNKNOWN_CHANNELS)
    return by_module


def _add_channels(by_module: dict[int, Channels], module: nn.Module, latest: Channels) -> Channels:
    """Add the channels of the module and of those inside it, after a layer with the channels `latest`."""
    latest = _own_channels(module) or latest
    for child in module._modules.values():
        if child is not None and id(child) not in by_module:
            latest = _add_channels(by_module, child, latest)
    by_module[id(module)] = latest
    return latest


def _own_channels(module: nn.Module) -> Channels | None:
    for row in _TYPES:
        if row.size_of is not None and isinstance(module, row.type):
            return Channels(row.size_of(module), row.axis)
    return None
