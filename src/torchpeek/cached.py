"""cached_property without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class cached_property(Generic[Value]):  # noqa: N801  # used as functools.cached_property is
    """A property that is computed when it is first read, and then stored in the instance.

    That of functools holds a lock in Python 3.11, one for all instances of the class, while it computes the value. Two
    threads that compute the property of two objects would wait for each other, and so would a forked process for a
    thread that it does not have.

    Args:
        function: Computes the value from the instance. Two threads may compute it at the same time.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.func = function
        self.__doc__ = function.__doc__
        self._name = function.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Value: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> Self | Value:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self.func(instance)
        return value
