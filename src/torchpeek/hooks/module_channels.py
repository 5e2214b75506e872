"""Which axis of a module's output has its channels, and how many there are, by the type of the module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Channels(NamedTuple):
    """Where a layer's channels are: how many there should be, and on which axis those of its type have them."""

    size: int
    last: bool

    def axis_of(self, tensor: Tensor) -> int:
        """Axis 1 or the last, whichever has as many as there should be; what its type has, where both do or neither."""
        if tensor.ndim < 3:
            return 1 if tensor.ndim > 1 else 0
        first, last = tensor.shape[1] == self.size, tensor.shape[-1] == self.size
        if first != last:
            return 1 if first else -1
        return -1 if self.last else 1


def channels_of(model: nn.Module) -> dict[int, Channels]:
    """For each module, by id: those of the last layer in it that has channels, or else of the last one before it."""
    by_module: dict[int, Channels] = {}
    latest = Channels(-1, last=False)

    def walk(module: nn.Module) -> None:
        nonlocal latest
        latest = _own_channels(module) or latest
        for child in module._modules.values():
            if child is not None and id(child) not in by_module:
                walk(child)
        by_module[id(module)] = latest

    walk(model)
    return by_module


def _own_channels(module: nn.Module) -> Channels | None:
    match module:
        case nn.Linear():
            return Channels(module.out_features, last=True)
        case nn.modules.conv._ConvNd():
            return Channels(module.out_channels, last=False)
        case nn.modules.batchnorm._NormBase():
            return Channels(module.num_features, last=False)
        case nn.GroupNorm():
            return Channels(module.num_channels, last=False)
        case nn.LayerNorm():
            return Channels(module.normalized_shape[-1], last=True)
        case nn.Embedding():
            return Channels(module.embedding_dim, last=True)
        case nn.MultiheadAttention():
            return Channels(module.embed_dim, last=True)
        case nn.RNNBase():
            size = module.proj_size or module.hidden_size
            return Channels(size * (2 if module.bidirectional else 1), last=True)
    return None
