"""The words of a command line before they are parsed."""

from __future__ import annotations

import pytest

from torchpeek.cli.command_line import prepared_words
from torchpeek.cli.options import STDIN


@pytest.mark.parametrize(
    ("words", "prepared"),
    [
        ("cam --mean 0.5 0.5 cat.jpg", "cam --mean=0.5,0.5 cat.jpg"),
        ("cam --input-size 28x28 -", f"cam --input-size=28x28 {STDIN}"),
        ("cam --input-size cat.jpg", "cam --input-size cat.jpg"),
        ("cam --from -", f"cam --from {STDIN}"),
        ("cam --from=-", f"cam --from={STDIN}"),
        ("cam a.png -o - --tensorboard -", "cam a.png -o - --tensorboard -"),
        ("", ""),
    ],
)
def test_numbers_are_joined_and_a_dash_is_standard_input(words: str, prepared: str) -> None:
    assert prepared_words(words.split()) == prepared.split()
