"""The networks that the attempts run: one that forward changes, and one that nothing changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks import MessyNet, PooledNet, messy


class Countdown(Exception):
    """Raised by the user's own code, in the call that an attempt has chosen."""


class Fuse:
    """A user's hook that raises in its k-th call; 0 for never. `calls` counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.raise_at = 0
        self.error: BaseException = Countdown("the chosen call")

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.raise_at:
            raise self.error

    def __deepcopy__(self, memo: dict[int, Any]) -> Fuse:
        return self  # the calls of a copy of the network count, too


class Networks:
    """A messy network in the middle of a training, a clean one in eval mode, and inputs for both.

    `fuse` is a forward hook of a layer of both.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.fuse = Fuse()
        self.messy: MessyNet = messy(attention=True)
        self.clean: nn.Module = PooledNet(attention=True).eval()
        for layer in (self.messy.conv, self.clean.features[0]):
            layer.register_forward_hook(self.fuse)
        self.x: Tensor = torch.randn(2, 3, 8, 8)
        self.fuse.calls = 0
