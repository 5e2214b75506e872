"""Pictures that a command leaves out, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from torchpeek.errors import (
    FileError,
    InputError,
    LayerNotFound,
    MethodError,
    MetricError,
    OptionError,
    TargetError,
    TorchpeekError,
)

Kinds: TypeAlias = tuple[type[Exception], ...]

REQUEST: Kinds = (LayerNotFound, TargetError, MethodError, MetricError, OptionError)
"""Errors that are the request's: every other picture would fail as the first one does."""


@dataclass
class Skipped:
    """Words, and the first error alone: each keeps in memory all that was there when it was raised."""

    why: dict[str, str] = field(default_factory=dict)  # file -> why
    _unusable: dict[str, Path] = field(default_factory=dict)  # why -> the first such file, of those that could be read
    _first: Exception | None = None

    def add(self, file: Path, error: Exception, *, unless: Kinds = ()) -> None:
        """Note the picture; errors `unless` which are raised instead."""
        if isinstance(error, unless):
            raise error
        known = isinstance(error, TorchpeekError)
        said = str(error).removeprefix(f"{file}: ") if known else f"{type(error).__name__}: {error}"
        self.why[str(file)] = said
        if not isinstance(error, FileError):
            self._unusable.setdefault(said, file)
            self._first = self._first or error

    def check(self) -> None:
        """For when no picture was left. Raises what was wrong where some could be read, and none could be used.

        Where that is the same with each, the error itself; else InputError, with the first three.
        """
        if self._first is None:
            return
        if len(self._unusable) == 1:
            raise self._first
        named = [f"{file}: {said}" for said, file in self._unusable.items()]
        more = f"; and {len(named) - 3} more" if len(named) > 3 else ""
        raise InputError(
            f"none of the {len(self.why)} pictures could be used: {'; '.join(named[:3])}{more}"
        ) from self._first

    def __len__(self) -> int:
        return len(self.why)
