"""Skipped: the pictures that a command leaves out, and the error when none is left."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.errors import InputError, OptionError, PictureError


class Large:
    """Stands for a picture, and all that was made of it."""


def failed(skipped: Skipped, name: str, message: str) -> weakref.ref[Large]:
    large = Large()
    try:
        raise InputError(message)
    except InputError as error:
        skipped.add(Path(name), error)
    return weakref.ref(large)


def test_what_was_there_is_let_go() -> None:
    """All but that of the first: an error holds its frames, and they all that is in them."""
    skipped = Skipped()
    left = [failed(skipped, f"{n}.png", "too small") for n in range(3)]
    assert [each() is None for each in left[1:]] == [True, True]


def test_what_is_raised_where_none_is_left() -> None:
    skipped = Skipped()
    skipped.add(Path("a.png"), PictureError("a.png: not a picture"))
    skipped.check()  # none could be read, and each is named anyway
    failed(skipped, "b.png", "too small")
    failed(skipped, "c.png", "too small")
    with pytest.raises(InputError, match=r"^too small$"):
        skipped.check()
    for n in range(4):
        failed(skipped, f"d{n}.png", f"too large by {n}")
    with pytest.raises(InputError) as all_of:
        skipped.check()
    assert str(all_of.value).startswith(
        "none of the 7 pictures could be used: b.png: too small; d0.png: too large by 0; "
    )
    assert str(all_of.value).endswith("; and 2 more")
    assert str(all_of.value.__cause__) == "too small"
    assert skipped.why["a.png"] == "not a picture"


def test_the_requests_own() -> None:
    skipped = Skipped()
    with pytest.raises(OptionError):
        skipped.add(Path("a.png"), OptionError("no such option"), unless=REQUEST)
    assert not skipped
