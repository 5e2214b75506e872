"""JSON from files that may be hostile: bounded in bytes and in depth, and no error but FormatError."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from typing import Any

from torchpeek.errors import FormatError
from torchpeek.signal_gate import is_of_handler
from torchpeek.store.regular_files import read_regular

MOST_BYTES = 64 << 20
"""Most bytes of a JSON file. Parsed, JSON takes up to twenty times as much memory."""

_MOST_DEPTH = 100  # lists in lists; no format that is read here has more than ten


def read_json(path: str | PathLike[str], *, allowed: str, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file in UTF-8.

    Args:
        path: Path of the file.
        allowed: What the file may hold, for the error text.
        most_bytes: The largest size of the file.

    Returns:
        The value.

    Raises:
        FormatError: When it cannot be opened, is too large or nested too deeply, or is not JSON.
    """
    return parsed_json(read_regular(path, most=most_bytes), str(path), allowed=allowed, most_bytes=most_bytes)


def parsed_json(
    text: str | bytes,
    name: str,
    *,
    allowed: str,
    most_bytes: int = MOST_BYTES,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON.

    Args:
        text: The JSON; bytes are UTF-8.
        name: Name of the file, for the error text.
        allowed: What the file may hold, for the error text.
        most_bytes: The largest length of `text`.
        object_pairs_hook: As for `json.loads`.

    Returns:
        The value.

    Raises:
        FormatError: When it is too large or nested too deeply, or is not JSON.
    """
    if len(text) > most_bytes:
        raise FormatError(f"{name}: has more than {most_bytes:,} bytes of JSON; {allowed}")
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise FormatError(f"{name}: is nested too deeply; {allowed}") from None  # the traceback has 1000 lines
    except ValueError as error:  # not JSON, not UTF-8, or a number with more digits than Python converts
        if is_of_handler(error):
            raise
        raise FormatError(f"{name}: not JSON ({error}); {allowed}") from error
    if _depth_exceeds(value, _MOST_DEPTH):
        raise FormatError(f"{name}: is nested too deeply (more than {_MOST_DEPTH} levels); {allowed}")
    return value


def _depth_exceeds(value: Any, most: int) -> bool:
    """Whether there are more than `most` lists and objects inside each other. It does not recurse."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        members = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for each in members for inner in each if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True
