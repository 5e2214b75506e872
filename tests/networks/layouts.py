"""Networks whose layers return (N, C, *grid) in other orders of the axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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


@dataclass(frozen=True)
class Case:
    """A network whose layer returns its tokens in some way, and what an input for it is."""

    kind: str
    size: tuple[int, ...]
    patch: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0
    wrap: str = "tensor"
    declared: dict[str, Any] | None = None  # of the model's own configuration

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(size // patch for size, patch in zip(self.size, self.patch, strict=True))

    @property
    def others(self) -> int:
        return self.prefix + self.suffix

    def made(self) -> nn.Module:
        model = Laid(self.kind, self.patch, self.prefix, self.suffix, self.wrap).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
            model.patch.weight.mul_(0.3)
        for name, value in (self.declared or {}).items():
            setattr(model, name, value)
        return model

    def inputs(self, count: int = 2) -> Tensor:
        return torch.randn(count, 3, *self.size, dtype=torch.float64)

    def tensor(self, output: Any) -> Tensor:
        return {"tensor": lambda: output, "tuple": lambda: output[0], "dict": lambda: output["tokens"]}[self.wrap]()

    def rewrapped(self, output: Any, tensor: Tensor) -> Any:
        return {
            "tensor": lambda: tensor,
            "tuple": lambda: (tensor, output[1]),
            "dict": lambda: {**output, "tokens": tensor},
        }[self.wrap]()

    def places(self, number: int) -> Callable[[int], tuple[Any, ...]]:
        """The index, in what the layer returned, of a position of the grid for a sample: all its channels."""
        where = np.unravel_index(number, self.grid)
        return {
            "channels-first": lambda n: (n, slice(None), *where),
            "channels-last": lambda n: (n, *where, slice(None)),
            "tokens": lambda n: (n, self.prefix + number, slice(None)),
            "channel-tokens": lambda n: (n, slice(None), self.prefix + number),
            "sequence-first": lambda n: (self.prefix + number, n, slice(None)),
        }[self.kind]

    def by_hand(self, tensor: Tensor, count: int) -> Tensor:
        """(N, C, *grid), one position after the other."""
        made = torch.zeros(count, 6, *self.grid, dtype=tensor.dtype)
        for number, where in enumerate(np.ndindex(*self.grid)):
            for n in range(count):
                made[(n, slice(None), *where)] = tensor[self.places(number)(n)]
        return made

    def put_back(self, tensor: Tensor, values: Tensor) -> Tensor:
        """The raw tensor with other values (N, C, *grid) at the positions of the grid, and nothing else changed."""
        changed = tensor.clone()
        for number, where in enumerate(np.ndindex(*self.grid)):
            for n in range(len(values)):
                changed[self.places(number)(n)] = values[(n, slice(None), *where)]
        return changed


CASES = {
    "maps": Case("channels-first", (16, 24), (4, 4)),
    "maps of patches that do not divide": Case("channels-first", (19, 26), (4, 4)),
    "maps of a spectrogram": Case("channels-first", (16, 80), (2, 16)),
    "maps, channels last": Case("channels-last", (16, 24), (4, 4)),
    "maps, channels last, of a spectrogram": Case("channels-last", (16, 80), (2, 16)),
    "maps in a tuple": Case("channels-first", (16, 16), (4, 4), wrap="tuple"),
    "maps, channels last, in a dict": Case("channels-last", (16, 16), (4, 4), wrap="dict"),
    "tokens": Case("tokens", (16, 24), (4, 4)),
    "tokens and 1": Case("tokens", (16, 24), (4, 4), 1),
    "tokens and 2": Case("tokens", (20, 20), (4, 4), 2),
    "tokens and 5": Case("tokens", (24, 16), (4, 4), 5),
    "tokens of patches that do not divide": Case("tokens", (19, 26), (4, 4), 1),
    "tokens of a spectrogram": Case("tokens", (16, 80), (2, 16), 2),
    "tokens, and 1": Case("tokens", (16, 24), (4, 4), 0, 1),
    "2, tokens, and 1": Case("tokens", (20, 20), (4, 4), 2, 1),
    "sequence, and 1": Case("sequence-first", (16, 24), (4, 4), 0, 1),
    "signal of tokens, and 1": Case("tokens", (46,), (4,), 0, 1),
    "volume of tokens, and 2": Case("tokens", (6, 8, 12), (2, 4, 4), 0, 2),
    "1, tokens, and 3": Case(
        "tokens", (16, 24), (4, 4), 1, 3, declared={"config": SimpleNamespace(num_detection_tokens=3)}
    ),
    "tokens in a tuple": Case("tokens", (16, 24), (4, 4), 1, wrap="tuple"),
    "tokens in a dict": Case("tokens", (16, 24), (4, 4), 1, wrap="dict"),
    "channels and tokens": Case("channel-tokens", (16, 24), (4, 4)),
    "channels and 1 and tokens": Case("channel-tokens", (16, 24), (4, 4), 1, declared={"num_prefix_tokens": 1}),
    "sequence": Case("sequence-first", (16, 24), (4, 4)),
    "sequence and 1": Case("sequence-first", (16, 24), (4, 4), 1),
    "sequence in a tuple": Case("sequence-first", (16, 24), (4, 4), 1, wrap="tuple"),
    "signal": Case("channels-first", (48,), (4,)),
    "signal of tokens": Case("tokens", (48,), (4,)),
    "signal of tokens and 1": Case("tokens", (46,), (4,), 1),
    "signal as a sequence": Case("sequence-first", (48,), (4,), 1),
    "volume": Case("channels-first", (6, 8, 12), (2, 4, 4)),
    "volume, channels last": Case("channels-last", (6, 8, 12), (2, 4, 4)),
    "volume of tokens": Case("tokens", (6, 8, 12), (2, 4, 4)),
    "volume of tokens and 1": Case("tokens", (6, 8, 12), (2, 4, 4), 1),
    "volume as a sequence": Case("sequence-first", (6, 8, 12), (2, 4, 4), 2),
}


def raw(model: nn.Module, x: Tensor, change: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
    """What the layer and the model return, by a hook of our own, which may change the former."""
    seen: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append(output)
        return None if change is None else change(output)

    handle = model.layer.register_forward_hook(hook)
    try:
        output = model(x)
    finally:
        handle.remove()
    return seen[0], output


def gradients(case: Case, model: nn.Module, x: Tensor, labels: list[list[int]]) -> Tensor:
    """(N, K, C, *grid), one class and sample after the other, through the whole model."""
    returned, output = raw(model, x)
    made = []
    for n, row in enumerate(labels):
        for label in row:
            (gradient,) = torch.autograd.grad(output[n, label], case.tensor(returned), retain_graph=True)
            made.append(case.by_hand(gradient, len(x))[n])
    return torch.stack(made).unflatten(0, (len(labels), -1))


LABELS = [[2, 0, 3], [1, 1, 0]]


class Turning(nn.Module):
    """(N, C, *grid) -> (N, *grid, C), and back."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).permute(0, 2, 3, 1)


class Turned(nn.Module):
    """A network of (N, h, w, C) throughout, as Swin is, in whose first module only a convolution is to be seen."""

    def __init__(self, channels: int, patch: int = 8, norm: bool = True) -> None:
        super().__init__()
        self.embed = Turning(nn.Conv2d(3, channels, patch, patch))
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.lin = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.embed(x)
        return self.head(torch.tanh(a + self.lin(self.norm(a))).mean((1, 2)))


class Upright(nn.Module):
    """The same numbers of channels and positions, but (N, C, h, w) everywhere outside of its block, as in ConvNeXt."""

    def __init__(self, channels: int, patch: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, patch, patch)
        self.block = InTurns(channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.block(self.embed(x))).mean((2, 3)))


class InTurns(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.lin = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, a: Tensor) -> Tensor:
        return a + self.lin(self.norm(a.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Sequence(nn.Module):
    """torch's own transformer layers, with the samples second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, channels, 16, 16)
        layer = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))


class Signal(nn.Module):
    """A transformer over pieces of a signal (N, 2, L), as many pieces as channels if L is 4 times these."""

    def __init__(self, channels: int, prefix: int) -> None:
        super().__init__()
        self.piece = nn.Conv1d(2, channels, 4, 4)
        self.token = nn.Parameter(torch.randn(1, prefix, channels))
        self.block = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.piece(x).mT], 1)
        return self.head(self.block(tokens).mean(1))


class Windows(nn.Module):
    """Attention inside windows of 2 x 2 positions, which are samples to it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, 8)
        self.inside = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.patch(x)
        parts = a.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1)  # (N, h/2, w/2, 2, 2, C)
        windows = self.inside(parts.flatten(3, 4).flatten(0, 2))  # (N windows, 4, C)
        return self.head(windows.unflatten(0, (len(x), -1)).mean((1, 2)))


class Flat(nn.Module):
    """Positions in one axis, turned after a module of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch, self.flat = nn.Conv2d(3, channels, 16, 16), nn.Flatten(2)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.flat(self.patch(x)).mT)).mean(1))


def layer_output(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer returned, by a hook of our own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


class Swap(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.mT


class Two(nn.Module):
    """A block that returns two tensors with a grid, or one of them in a container of its own kind."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Any], taken: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(3, 5, 8, 8)
        self.both = Applied(returned)
        self.taken, self.head = taken, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.taken(self.both(self.one(x), self.other(x)))).mean((2, 3)))


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Undeclared(nn.Module):
    """A transformer whose class token comes `last`, or not, and which nobody has told of."""

    def __init__(self, *, last: bool, norm_first: bool = True, place: str = "beside") -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))  # as torchvision's is called, which this is not
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)
        self.last, self.place = last, place

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch(x.float()).flatten(2).mT
        own = self.class_token.expand(len(x), -1, -1)
        parts = [grid, own] if self.last else [own, grid]
        if self.place == "between":
            parts = [grid[:, :8], own, grid[:, 8:]]
        tokens = self.blocks(torch.cat(parts, 1) + self.positions)
        return self.head(tokens[:, -1 if self.last else 0])
