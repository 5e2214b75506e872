"""Random numbers that hang on a seed and on the sample they are drawn for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def fingerprint(sample: Tensor) -> bytes:
    """The same for the same numbers (C, *size), on whatever device and in whatever batch."""
    numbers = sample.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def generator(sample: bytes, *numbers: int) -> torch.Generator:
    """For a sample's fingerprint; the numbers, such as a seed, tell one use from another."""
    mixed = hashlib.blake2b(sample + repr(numbers).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
