"""JSON of any size and depth: the value, or FormatError in bounded time and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpeek.errors import FormatError
from torchpeek.store import parsed_json, read_json

ALLOWED = "allowed: a list"


@pytest.mark.parametrize("value", ["0", '"a"', "null", "[]", "{}", '[{"a": [1.5, "é"]}]', "[" * 100 + "]" * 100])
def test_what_json_has(value) -> None:
    assert parsed_json(value, "a.json", allowed=ALLOWED) == parsed_json(value.encode(), "a.json", allowed=ALLOWED)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested too deeply"),
        ("[" * 10_000_000, "nested too deeply|not JSON"),
        ('{"a":' * 100_000, "nested too deeply|not JSON"),
        ("9" * 5_000, "not JSON"),
        ("", "not JSON"),
        (b"\xff\xfe[]", "not JSON"),
        ("[1] [2]", "not JSON"),
        (" " * 1_001, "more than 1,000 bytes"),
    ],
    ids=range(9),
)
def test_what_is_refused(text, why) -> None:
    most = 1_000 if "1,000" in why else 20_000_000
    with pytest.raises(FormatError, match=f"a.json: .*({why}).*allowed: a list"):
        parsed_json(text, "a.json", allowed=ALLOWED, most_bytes=most)


def test_near_the_recursion_limit() -> None:
    """The depth does not depend on how deep the caller is."""

    def deep(levels: int) -> object:
        return deep(levels - 1) if levels else parsed_json("[" * 50 + "]" * 50, "a.json", allowed=ALLOWED)

    assert deep(500) is not None


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(FormatError, match="at most 1,024"):
        read_json(tmp_path / "a.json", allowed=ALLOWED, most_bytes=1024)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path, why in (
        (tmp_path / "pipe", "is a FIFO; allowed: a regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "none", "no such file"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(FormatError, match=why):
            read_json(path, allowed=ALLOWED)
