"""Small networks that the tests look into."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitNet(nn.Module):
    """Smooth everywhere; `prefix` ends in the layer to look at, (N, 5, 4, 3) for an (N, 3, 8, 6) input."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.prefix = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Softplus())
        self.mix = nn.Conv2d(5, 6, 2)
        self.head = nn.Linear(6 * 3 * 2, classes)

    def suffix(self, activation: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(activation)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))


class Attending(nn.Module):
    """Attention of the positions of (N, C, *grid) to each other, added to it, `depth` times."""

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(channels, 2, batch_first=True) for _ in range(depth))

    def forward(self, a: Tensor) -> Tensor:
        tokens = a.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.mT.reshape(a.shape)


class PooledNet(nn.Module):
    """Convolution, ReLU, global average pooling and a linear head: where class activation mapping is exact.

    Not if there is attention in between.
    """

    def __init__(self, channels: int = 6, classes: int = 5, *, bias: bool = True, attention: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, channels, 3, padding=1))
        self.act = nn.ReLU()
        self.mix = Attending(channels) if attention else None
        self.head = nn.Linear(channels, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.features(x))
        return self.head((a if self.mix is None else self.mix(a)).mean((2, 3)))


class InPlaceNet(nn.Module):
    """The layer's output is overwritten at once; `clean` is the same network without that."""

    def __init__(self, *, attention: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = Attending(6) if attention else None
        self.head = nn.Linear(6, 4)
        self.clean = False

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        a = F.relu(a, inplace=not self.clean)
        return self.head((a if self.mix is None else self.mix(a)).mean((2, 3)))


class MessyNet(nn.Module):
    """All that a careless tool changes: train mode, BatchNorm, Dropout, buffers that forward writes or replaces."""

    def __init__(self, *, attention: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = Attending(6) if attention else None
        self.bn = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.often_on = nn.Dropout(0.5)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last_mean", torch.zeros(6))
        self.register_buffer("nothing", None)
        self.register_buffer("written_through_data", torch.zeros(2))
        self.register_buffer("dropped", torch.ones(1), persistent=False)
        self.fail_with: BaseException | None = None
        self.user_calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # written in place, also in eval mode
        a = self.act(self.bn(self.conv(x)))
        self.last_mean = a.mean((0, 2, 3)).detach()  # replaced
        self.nothing = torch.ones(1)  # filled
        self.written_through_data.data.add_(1)  # behind the version counter's back
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(3))  # new
        if "dropped" in self._buffers:
            del self.dropped
        torch.rand(1)  # draws from the global generator
        self.often_on.train()  # whatever mode it was in
        if self.fail_with is not None:
            raise self.fail_with
        a = a if self.mix is None else self.mix(a)
        return self.head(self.drop(a).mean((2, 3)))


def messy(*, attention: bool = False) -> MessyNet:
    """A MessyNet in the middle of a training, with a user's own hooks and gradients."""
    model = MessyNet(attention=attention).train()
    model.bn.eval()  # a user may well keep this one frozen
    model.conv.register_forward_hook(lambda module, args, output: model.user_calls.append("conv"))
    model.bn.register_forward_hook(lambda module, args, output: None)
    model.register_forward_pre_hook(lambda module, args: None)
    model.head.register_full_backward_hook(lambda module, given, got: None)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.often_on.eval()
    model.nothing = None
    del model._buffers["late"]
    model.register_buffer("dropped", torch.ones(1), persistent=False)
    return model


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that has to be as it was, in a form that `==` compares."""
    parameters = dict(model.named_parameters())
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "values": {name: p.detach().clone().tolist() for name, p in parameters.items()},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "grad": {name: None if p.grad is None else (id(p.grad), p.grad.tolist()) for name, p in parameters.items()},
        "buffers": {name: (id(b), b.tolist()) for name, b in model.named_buffers()},
        "buffer names": {name: list(module._buffers) for name, module in model.named_modules()},
        "empty buffers": {name: [k for k, b in m._buffers.items() if b is None] for name, m in model.named_modules()},
        "not saved": {name: sorted(module._non_persistent_buffers_set) for name, module in model.named_modules()},
        "hooks": {
            f"{name}.{kind}": [(key, id(hook)) for key, hook in getattr(module, kind).items()]
            for name, module in model.named_modules()
            for kind in _HOOKS
        },
        "own forward": {name: module.__dict__.get("forward") for name, module in model.named_modules()},
        "random state": torch.get_rng_state().tolist(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


class Block(nn.Module):
    """A layer with what it returns laid out in one of the ways in which models do: tokens (N, T, C) in, that out."""

    def __init__(self, kind: str, channels: int, wrap: str) -> None:
        super().__init__()
        self.kind, self.wrap = kind, wrap
        self.lin = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, grid: tuple[int, ...]) -> Any:
        laid = torch.tanh(self.lin(tokens))
        match self.kind:
            case "channels-first":
                laid = laid.mT.unflatten(2, grid)
            case "channels-last":
                laid = laid.unflatten(1, grid)
            case "channel-tokens":
                laid = laid.mT
            case "sequence-first":
                laid = laid.transpose(0, 1)
        index = tokens.flatten(1).argmax(1)  # of integers, and so nothing to look at
        return {"tensor": laid, "tuple": (laid, index), "dict": {"tokens": laid, "index": index, "name": "block"}}[
            self.wrap
        ]


class Laid(nn.Module):
    """A smooth network of patches, one `Block` at `layer`, and a tail in which all tokens, and samples alone, meet.

    The block returns `prefix` + positions + `suffix` tokens.
    """

    def __init__(
        self,
        kind: str,
        patch: tuple[int, ...],
        prefix: int = 0,
        suffix: int = 0,
        wrap: str = "tensor",
        channels: int = 6,
        classes: int = 4,
    ) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(patch) - 1]
        self.patch = convolution(3, channels, patch, stride=patch)
        self.before, self.after = (nn.Parameter(torch.randn(1, count, channels)) for count in (prefix, suffix))
        self.layer = Block(kind, channels, wrap)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        a = self.patch(x)  # (N, C, *grid)
        given = torch.cat([self.before.expand(len(x), -1, -1), a.flatten(2).mT, self.after.expand(len(x), -1, -1)], 1)
        said = self.layer(given, tuple(a.shape[2:]))
        laid = {"tensor": lambda: said, "tuple": lambda: said[0], "dict": lambda: said["tokens"]}[self.layer.wrap]()
        match self.layer.kind:
            case "channels-first":
                laid = laid.flatten(2).mT
            case "channels-last":
                laid = laid.flatten(1, -2)
            case "channel-tokens":
                laid = laid.mT
            case "sequence-first":
                laid = laid.transpose(0, 1)
        places = torch.linspace(0.5, 1.5, laid.shape[1], dtype=laid.dtype).unsqueeze(1)  # no two tokens alike
        mixed = (laid @ laid.mT).softmax(-1) @ (laid * places)
        return self.head(torch.sin(mixed).mean(1) + mixed[:, 0])


class TwoKernels(nn.Module):
    """A convolution with kernels of ones and of twos, and a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)
        with torch.no_grad():
            self.conv.weight[0] = 1
            self.conv.weight[1] = 2
            self.conv.bias.zero_()

    def forward(self, x):
        return self.pool(self.conv(x))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor
