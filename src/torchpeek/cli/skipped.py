"""The pictures that a command skips, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from torchpeek.cli.signals import raise_if_interrupted
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
from torchpeek.printable import printable

ErrorTypes: TypeAlias = tuple[type[Exception], ...]

REQUEST: ErrorTypes = (LayerNotFound, TargetError, MethodError, MetricError, OptionError)
"""Errors of the request, not of one picture: every other picture would fail in the same way."""


@dataclass
class Skipped:
    """The reason for each skipped picture.

    Only the first error itself is stored: an error holds its frames in memory, and with them all their tensors.
    """

    why: dict[str, str] = field(default_factory=dict)  # file -> reason
    _unusable: dict[str, Path] = field(default_factory=dict)  # reason -> the first picture that was read and not used
    _first: Exception | None = None

    def add(self, file: Path, error: Exception, *, unless: ErrorTypes = ()) -> None:
        """Record the picture. An error of the types `unless` is raised instead.

        If it is the consequence of a Ctrl-C, KeyboardInterrupt is raised: the picture is not at fault.
        """
        raise_if_interrupted()
        if isinstance(error, unless):
            raise error
        expected = isinstance(error, TorchpeekError)
        reason = str(error).removeprefix(printable(f"{file}: ")) if expected else f"{type(error).__name__}: {error}"
        self.why[str(file)] = reason
        if not isinstance(error, FileError):
            self._unusable.setdefault(reason, file)
            self._first = self._first or error

    def check(self) -> None:
        """Raise an error if pictures could be read but not used. For a command of which no picture is left.

        If all failed for one reason, that error is raised; else an InputError with the first three reasons.
        """
        if self._first is None:
            return
        if len(self._unusable) == 1:
            raise self._first
        reasons = [f"{file}: {reason}" for reason, file in self._unusable.items()]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise InputError(
            f"none of the {len(self.why)} pictures could be used: {'; '.join(reasons[:3])}{more}"
        ) from self._first

    def __len__(self) -> int:
        return len(self.why)
