"""ModelCache: results that are remembered for each model, and dropped with it."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import nn

Key = TypeVar("Key")
Value = TypeVar("Value")


class ModelCache(Generic[Key, Value]):
    """Model -> key -> value. A model that is garbage-collected takes its entries along.

    With `capacity`, each model keeps only that many of its latest entries.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._entries: weakref.WeakKeyDictionary[nn.Module, dict[Key, Value]] = weakref.WeakKeyDictionary()

    def get(self, model: nn.Module, key: Key) -> Value | None:
        """The value, or None where there is none."""
        return self._entries.get(model, {}).get(key)

    def put(self, model: nn.Module, key: Key, value: Value) -> Value:
        """Store the value, and return it."""
        entries = self._entries.setdefault(model, {})
        entries.pop(key, None)
        while self._capacity is not None and len(entries) >= self._capacity:
            del entries[next(iter(entries))]
        entries[key] = value
        return value
