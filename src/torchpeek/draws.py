"""Random numbers that depend only on a seed and on the sample that they are drawn for."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def fingerprint(sample: Tensor) -> bytes:
    """Return a digest of a sample (C, *size). It is the same on every device and in every batch."""
    numbers = sample.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def generator(sample: bytes, *key: int | str) -> torch.Generator:
    """Return a generator for the fingerprint of a sample. The key, such as a seed, tells one use from another."""
    mixed = hashlib.blake2b(sample + repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
