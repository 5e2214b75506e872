"""Layers that return tensors of every format that torch has, with the dense values that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


class OwnTensor(Tensor):
    """A user's subclass."""


_FAKE_MODE = FakeTensorMode()


def _in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 1


def _fake(x: Tensor) -> Tensor:
    with _FAKE_MODE:
        return torch.empty(x.shape)


def _tokens(x: Tensor) -> list[Tensor]:
    """(N, 4, 4, 4) -> for each sample (T, 4), with another T in each."""
    return [each.flatten(1).T[: 3 + 2 * number] for number, each in enumerate(x.unbind())]


def _per_channel(x: Tensor) -> Tensor:
    scales, zeros = torch.tensor([0.05, 0.06, 0.07, 0.08]), torch.tensor([0, 1, 2, 3])
    return torch.quantize_per_channel(x.detach(), scales, zeros, 1, torch.qint8)


def _matrix(x: Tensor) -> Tensor:
    return x.relu().flatten(1)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x * 1,
    "nested strided": lambda x: torch.nested.as_nested_tensor(_tokens(x)),
    "nested jagged": lambda x: torch.nested.as_nested_tensor(_tokens(x), layout=torch.jagged),
    "sparse COO": lambda x: x.relu().to_sparse(),
    "sparse hybrid": lambda x: x.relu().to_sparse(2),
    "sparse CSR": lambda x: _matrix(x).to_sparse_csr(),
    "sparse CSC": lambda x: _matrix(x).to_sparse_csc(),
    "sparse BSR": lambda x: _matrix(x).to_sparse_bsr((1, 2)),
    "sparse BSC": lambda x: _matrix(x).to_sparse_bsc((1, 4)),
    "quint8": lambda x: torch.quantize_per_tensor(x.detach(), 0.05, 10, torch.quint8),
    "qint8": lambda x: torch.quantize_per_tensor(x.detach(), 0.05, 0, torch.qint8),
    "qint32": lambda x: torch.quantize_per_tensor(x.detach(), 0.01, 0, torch.qint32),
    "qint8 per channel": _per_channel,
    "complex64": lambda x: torch.complex(x, 2 * x),
    "complex128": lambda x: torch.complex(x, 2 * x).to(torch.complex128),
    "complex32": lambda x: torch.complex(x, 2 * x).to(torch.complex32),
    "conjugate": lambda x: torch.complex(x, 2 * x).conj(),
    "negative": lambda x: torch.complex(x, 2 * x).conj().imag,
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda x: x.to(torch.float8_e5m2),
    "bool": lambda x: x > 0,
    "int8": lambda x: (10 * x).to(torch.int8),
    "int64": lambda x: (10 * x).long(),
    "uint8": lambda x: (10 * x).abs().to(torch.uint8),
    "uint16": lambda x: (10 * x).abs().int().to(torch.uint16),
    "uint32": lambda x: (10 * x).abs().long().to(torch.uint32),
    "uint64": lambda x: (10 * x).abs().long().to(torch.uint64),
    "no elements": lambda x: x[:, :, :0],
    "no samples": lambda x: x[:0],
    "a number": Tensor.mean,
    "expanded": lambda x: x[:, :1].expand(-1, 500, -1, -1),
    "not contiguous": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "inference": _in_inference_mode,
    "fake": _fake,
    "meta": lambda x: x.detach().to("meta"),
    "parameter": lambda x: nn.Parameter(x.detach()),
    "subclass": lambda x: x.as_subclass(OwnTensor),
    "oneDNN": lambda x: x.detach().to_mkldnn(),
}
"""Name -> a function of (2, 4, 4, 4) values."""


@dataclass(eq=False)
class Returning(nn.Module):
    """A layer that returns what a function makes of its input."""

    make: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x)


class Taking(nn.Module):
    """A layer that takes such a tensor and returns it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FormatNet(nn.Module):
    """A network with a layer that returns a tensor of a format, and one that takes it. The scores go past them."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layer, self.next = Returning(make), Taking()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.next(self.layer(y))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def exact(tensor: Tensor) -> list[Tensor]:
    """What the tensor holds, as plain tensors that torch.equal compares."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return [number for part in tensor.unbind() for number in exact(part)]
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return [torch.view_as_real(tensor.resolve_conj()).double()]
    return [tensor.double()]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same format and the same values."""
    formats = [
        (each.layout, each.dtype, each.is_nested, each.is_meta, each.is_quantized and each.qscheme())
        for each in (one, other)
    ]
    if formats[0] != formats[1]:
        return False
    if one.is_meta:
        return one.shape == other.shape
    ours, theirs = exact(one), exact(other)
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
