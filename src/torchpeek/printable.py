"""The only place that escapes what a terminal or a page would not show as it is: control and invisible characters.

Names of files, classes, layers and models may hold any character. Escape sequences of a terminal change its state, a
direction mark turns the words after it around, and an invisible letter makes two names look the same.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
_JOINERS = "\u200c\u200d"
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # of a form of the sign before
_EMOJI = ("\U0001f000", "\U0001faff")  # an older Python does not know the newest, and takes them for unassigned

_SUSPECT = re.compile(rf"[^\x20-\x7e\xa1-\xac\xae-\u02ff{_INVISIBLE_LETTERS}]|[{_INVISIBLE_LETTERS}]")
"""What has to be looked at. Most texts have none of it."""


def printable(text: str, *, lines: bool = False) -> str:
    """Return text in which each control character, direction mark and invisible character is an escape.

    What people write stays as it is: letters of every script, signs and emoji. A zero-width joiner or a variation
    selector stays where a script or an emoji needs it.

    Args:
        text: The text, such as the name of a file. Bytes of a name that are no text are escaped, too.
        lines: Whether the text may have several lines: line breaks stay, and a tab becomes four spaces. In a name they
            are escaped, because it could imitate a line of the output.

    Returns:
        The text. Each escape is as in a Python string.

    Example:
        >>> printable("cat\\x1b[31m.png")
        'cat\\\\x1b[31m.png'
        >>> printable("gemütliche 猫 🐈.png")
        'gemütliche 猫 🐈.png'
    """
    if text.isascii() and text.isprintable():
        return text
    if lines:
        text = text.replace("\t", "    ")

    def shown(match: re.Match[str]) -> str:
        char, place = match[0], match.start()
        if char == "\n" and lines:
            return char
        if char in _JOINERS and _joins(text, place):
            return char
        if _SELECTORS.match(char):
            return char if _selects(text, place) else char.encode("unicode_escape").decode("ascii")
        if char not in _INVISIBLE_LETTERS and (char.isprintable() or _EMOJI[0] <= char <= _EMOJI[1]):
            return char
        return char.encode("unicode_escape").decode("ascii")

    return _SUSPECT.sub(shown, text)


def printable_lines(text: str) -> str:
    """Return printable text in its lines, all but the first indented, so that none imitates a line of the output."""
    return printable(text, lines=True).replace("\n", "\n  ")


def _selects(text: str, place: int) -> bool:
    """Whether the selector at a place follows a sign of several forms: an emoji, a keycap, or a letter of Asia."""
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if text[place] == "\ufe0f" and before:
        return _is_emoji(before) or before in "\u203c\u2049" or (before in "0123456789#*" and after == "\u20e3")
    return before > "\u17ff" and unicodedata.category(before) == "Lo" and before not in _INVISIBLE_LETTERS


def _joins(text: str, place: int) -> bool:
    """Whether the joiner at a place is between two signs of an emoji, or between letters that it gives their form."""
    if not 0 < place < len(text) - 1:
        return False
    before, after = text[place - 1], text[place + 1]
    if text[place] == "\u200d" and _is_emoji(after) and (_is_emoji(before) or before in "\ufe0f\u20e3"):
        return True
    if unicodedata.combining(before) == _VIRAMA:
        return True
    return unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL"


_VIRAMA = 9  # the combining class of the sign that joins two consonants of an Indic script


def _is_emoji(char: str) -> bool:
    return unicodedata.category(char) == "So" or _EMOJI[0] <= char <= _EMOJI[1]
