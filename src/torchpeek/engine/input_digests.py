"""A digest of each sample's input, computed on its device: the same on every device, in every batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from torchpeek.hooks import containers
from torchpeek.tensor_formats import is_plain

_BLOCK = 1024
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element


def input_digests(
    picture: Tensor, arguments: Any, sample_paths: Collection[str], dtype: torch.dtype | None = None
) -> tuple[str, ...]:
    """Return a text for each sample that identifies its input: type, shape, and a number of 64 bits.

    The number is a sum of the bits of all elements, each times a fixed odd weight, modulo 2^64, in blocks whose sums
    are mixed and summed again. It is made of integers, so it does not depend on the device or the sequence of
    additions. A single changed element always changes it, and other changes do with a probability of nearly 1.

    Args:
        picture: (N, C, *grid).
        arguments: The other arguments of the call. Their tensors count, too.
        sample_paths: The paths of the tensors among them with one entry for each sample.
        dtype: Convert floating-point tensors of the picture's type to this one first.

    Returns:
        N texts, such as "float32 3x224x224 4d9c01a6f3b2e875".
    """
    # Detached, and not inside of no_grad: an interrupt in torch's own block could leave gradients off.
    numbers = _hashes(_converted(picture.detach(), picture.dtype, dtype), len(picture))
    for path, tensor in sorted(containers.leaves(arguments), key=lambda leaf: leaf[0]):
        if is_plain(tensor) and not tensor.is_meta:
            rows = len(picture) if path in sample_paths else 1
            others = _hashes(_converted(tensor.detach(), picture.dtype, dtype), rows) * (len(picture) // rows)
            of_path = crc32(path.encode())
            numbers = [_mixed(n * _ODD + other + of_path) for n, other in zip(numbers, others, strict=True)]
    form = f"{str(dtype or picture.dtype).removeprefix('torch.')} {'x'.join(map(str, picture.shape[1:]))}"
    return tuple(f"{form} {number:016x}" for number in numbers)


def changed_samples(
    digests: Sequence[str], picture: Tensor, arguments: Any, sample_paths: Collection[str]
) -> Mapping[int, int | None]:
    """Find the samples whose input differs from the one that the digest of the same place was made of.

    An input of a more precise type than that of the digests is rounded to their type first. An input of a less precise
    type cannot be compared; then nothing is found.

    Returns:
        Sample -> the place of its input among the digests; None where it is not among them.
    """
    if len(digests) != len(picture):
        return {}
    dtype: Any = getattr(torch, digests[0].partition(" ")[0], None)
    if not isinstance(dtype, torch.dtype):
        return {}
    if dtype != picture.dtype:
        floating = dtype.is_floating_point and picture.is_floating_point()
        if not floating or torch.promote_types(dtype, picture.dtype) != picture.dtype:
            return {}
    found = input_digests(picture, arguments, sample_paths, dtype)
    places = {digest: place for place, digest in enumerate(digests)}
    return {n: places.get(each) for n, each in enumerate(found) if each != digests[n]}


def _converted(tensor: Tensor, dtype: torch.dtype, to: torch.dtype | None) -> Tensor:
    return tensor.to(to) if to is not None and tensor.dtype == dtype else tensor


def _hashes(tensor: Tensor, rows: int) -> list[int]:
    """A number of 64 bits for each row of a tensor without a graph, whatever its strides."""
    if tensor.device.type not in ("cpu", "cuda"):  # not all have integers of 64 bits
        tensor = tensor.cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.numel():
        return [0] * rows
    words = tensor.resolve_neg().reshape(rows, -1).view(_INTEGERS[tensor.element_size()])
    weights = _WEIGHTS if words.is_cpu else _WEIGHTS.to(words.device)
    while words.shape[1] > _BLOCK:
        words = _mixed_tensor(_block_sums(words, weights))
    return [_mixed(number) for number in (words * weights[: words.shape[1]]).sum(-1).tolist()]


def _block_sums(words: Tensor, weights: Tensor) -> Tensor:
    """(rows, blocks): the weighted sum of each block of words; the last may be shorter."""
    rows, whole = len(words), words.shape[1] // _BLOCK
    # In pieces, because the products take twice the memory of an input in float32; on the CPU they stay in its cache.
    most = _BLOCKS_AT_ONCE if words.device.type == "cpu" else 128 * _BLOCKS_AT_ONCE
    pieces = words[:, : whole * _BLOCK].view(rows, whole, _BLOCK).tensor_split(1 + rows * whole // most, dim=1)
    # Memory that is allocated anew for each piece would take longer than the sums.
    products = torch.empty(pieces[0].shape, dtype=torch.int64, device=words.device)
    sums = [torch.mul(piece, weights, out=products[:, : piece.shape[1]]).sum(-1) for piece in pieces]
    if rest := words.shape[1] - whole * _BLOCK:
        sums.append((words[:, whole * _BLOCK :] * weights[:rest]).sum(-1, keepdim=True))
    return torch.cat(sums, dim=1)


_BLOCKS_AT_ONCE = 32

# The constants of SplitMix64, and 2^64 divided by the golden ratio.
_ODD = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def _mixed(number: int) -> int:
    """A permutation of all numbers of 64 bits (the finaliser of SplitMix64)."""
    number %= 2**64
    for by, factor in _ROUNDS:
        number = (number ^ number >> by) * factor % 2**64
    return number


def _mixed_tensor(words: Tensor) -> Tensor:
    """`_mixed` of each word."""
    for by, factor in _ROUNDS:
        # A shift of signed numbers fills with the sign; the mask fills with zeros.
        words = (words ^ ((words >> by) & (2 ** (64 - by) - 1))) * _signed(factor)
    return words


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


_WEIGHTS = torch.tensor([_signed(_mixed((n + 1) * _ODD) | 1) for n in range(_BLOCK)], device="cpu")
