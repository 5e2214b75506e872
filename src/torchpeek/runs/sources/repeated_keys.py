"""Which keys of a list occur more than once, found without holding the list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()


def repeated_keys(keys: Iterable[str]) -> frozenset[bytes]:
    """The digests of the keys that occur more than once. It takes eight bytes of memory for each key.

    Args:
        keys: The keys.

    Returns:
        What `unique_key` takes.
    """
    digests = bytearray()
    for key in keys:
        digests += _digest(key)
    numbers = np.frombuffer(digests, dtype="V8").view(np.uint64).copy()
    del digests
    numbers.sort()
    return frozenset(number.tobytes() for number in np.unique(numbers[1:][numbers[1:] == numbers[:-1]]))


def unique_key(key: str, number: int, repeated: frozenset[bytes]) -> str:
    """The key, with the number of its row behind it where other rows have the same."""
    return f"{key}#{number}" if repeated and _digest(key) in repeated else key
