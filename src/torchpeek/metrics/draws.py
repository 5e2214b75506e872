"""Random numbers that depend on a seed and on the sample they are drawn for, and on nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

# A large prime: sums stay below it, and what differs in one number gives another sum.
_PRIME = 2**31 - 1


def generator_of(sample: Tensor, seed: int, salt: int = 0) -> torch.Generator:
    """The same for the same sample (C, *size) on whatever device and in whatever batch."""
    words = sample.detach().cpu().contiguous().view(torch.uint8).long()
    weights = torch.arange(1, words.numel() + 1) * 48271 % _PRIME
    mixed = int((words.flatten() * weights).sum()) % _PRIME
    return torch.Generator().manual_seed((mixed * _PRIME + seed * 7919 + salt) % 2**63)
