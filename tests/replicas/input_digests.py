"""The digest of an input in Python's own integers, one element at a time."""

from __future__ import annotations

import struct
from zlib import crc32

from torch import Tensor

FULL = 2**64


def mixed(z: int) -> int:
    """SplitMix64's finaliser, as Steele, Lea and Flood give it (2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % FULL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % FULL
    return z ^ (z >> 31)


WEIGHTS = [mixed((i + 1) * 0x9E3779B97F4A7C15 % FULL) | 1 for i in range(1024)]


def of_words(words: list[int]) -> int:
    """Sums of blocks of 1024 until one number is left."""
    while True:
        blocks = [words[start : start + 1024] for start in range(0, len(words), 1024)]
        words = [mixed(sum(w * x for w, x in zip(WEIGHTS, block, strict=False)) % FULL) for block in blocks]
        if len(words) == 1:
            return words[0]


def of_row(row: Tensor) -> int:
    """The number of one sample: its bytes as signed integers of the element's size."""
    if row.is_complex():
        row = row.resolve_conj().contiguous().view(row.real.dtype)
    size = row.element_size()
    raw = bytes(row.contiguous().reshape(-1).untyped_storage())
    raw = raw[row.contiguous().storage_offset() * size :][: row.numel() * size]
    return of_words([each[0] for each in struct.iter_unpack({1: "<b", 2: "<h", 4: "<i", 8: "<q"}[size], raw)])


def digest(picture: Tensor, others: dict[str, Tensor]) -> str:
    """The digest of one sample; `others` are its other tensors by path."""
    total = of_row(picture)
    for path, tensor in sorted(others.items()):
        total = mixed((total * 0x9E3779B97F4A7C15 + of_row(tensor) + crc32(path.encode())) % FULL)
    shape = "x".join(map(str, picture.shape))
    return f"{str(picture.dtype).removeprefix('torch.')} {shape} {total:016x}"
