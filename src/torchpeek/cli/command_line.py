"""The words of a command line: what is rewritten before they are parsed, and the errors of the parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError, ValidationError

from torchpeek.cli.options import STDIN
from torchpeek.errors import OptionError

_EXAMPLES = {
    "cam": "cam cat.jpg --model torchvision:resnet50",
    "evaluate": "evaluate holiday/ --model torchvision:resnet50",
    "features": "features cat.jpg --model torchvision:resnet50",
    "gradients": "gradients cat.jpg --model torchvision:resnet50",
    "kernels": "kernels --model torchvision:resnet50",
    "layers": "layers --model torchvision:resnet50",
}
"""A short call of each command that needs a model, for its errors."""

_NUMBERS = ("--input-size", "--mean", "--std")
"""Options that take the numbers after them: --input-size 28 28."""

_FOLDERS = ("-o", "--out", "--tensorboard")
"""Options for which "-" is no standard input."""


def prepared_words(words: Sequence[str]) -> list[str]:
    """The words as the parser takes them: "-" as the name of standard input, and numbers joined to their option.

    The parser would take "-" for an option, and every word after --mean, pictures too, for a number.

    Example:
        >>> prepared_words(["cam", "--mean", "0.5", "0.5", "cat.jpg", "-"])
        ['cam', '--mean=0.5,0.5', 'cat.jpg', '/dev/stdin']
    """
    prepared: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in _NUMBERS and rest and _is_number(rest[0]):
            values = []
            while rest and _is_number(rest[0]):
                values.append(rest.pop(0))
            word = f"{word}={','.join(values)}"
        elif word == "-" and not (prepared and prepared[-1] in _FOLDERS):
            word = STDIN
        elif word == "--from=-":
            word = f"--from={STDIN}"
        prepared.append(word)
    return prepared


def check_not_empty(words: Sequence[str]) -> None:
    """Raise OptionError for an empty word, as an empty variable of a script makes it.

    An empty name would select the default, and an empty path is the working directory.
    """
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise OptionError(f"{name} is empty; allowed: a value. Next: give one, or omit the option")
        if word.strip():
            continue
        before = words[number - 1] if number else ""
        if before.startswith("-"):
            raise OptionError(f"{before} is empty; allowed: a value. Next: give one, or omit the option")
        raise OptionError(f"argument {number + 1} is empty; allowed: a command, or the path of a picture")


def parse_error(error: CycloptsError, words: Sequence[str]) -> str:
    """The error in one line: what is wrong, what was given, what is allowed, and what to do next."""
    argument = getattr(error, "argument", None)
    name = "" if argument is None else argument.name
    command = " ".join(error.command_chain or ())
    help_page = f"torchpeek {command} --help lists the options" if command else "torchpeek --help lists the commands"
    if isinstance(error, MissingArgumentError) and name:
        example = f"torchpeek {_EXAMPLES[command]}" if command in _EXAMPLES else help_page
        if name not in words and name == "--model":
            return (
                "--model is required; allowed: torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or "
                f"package.module:callable. Example: {example}"
            )
        if name not in words:
            return f"{name} is required; {help_page}"
        text, count = _value(argument, words), _value_count(argument)
        if count > 1 and text:
            return f"{name} is {text}; it needs {count} values, with a space between them; {help_page}"
        return f"{name} needs a value; {help_page}"
    if isinstance(error, ValidationError) and name and error.exception_message:
        return f"{name} is {_value(argument, words) or 'empty'}; {error.exception_message}"
    text = re.sub(r'"(--?[\w-]+)"', r"\1", " ".join(str(error).split()).rstrip("."))  # as cyclopts 4 quotes options
    if isinstance(error, CoercionError) and name:
        text = f"{name} is {_value(argument, words) or 'empty'}; {_allowed(argument)}"
    hint = f"; {help_page}" if isinstance(error, (UnknownOptionError, CoercionError)) else ""
    return text[:1].lower() + text[1:] + hint


def _value(argument: Any, words: Sequence[str]) -> str:
    """What stands after an option, the last time that it is named."""
    name, value = argument.name, ""
    for number, word in enumerate(words):
        if word == name and number + 1 < len(words):
            values = words[number + 1 : number + 1 + _value_count(argument)]
            value = " ".join(takewhile(lambda each: not each.startswith("--"), values)).strip()
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=").replace(",", " ")
    return value


def _value_count(argument: Any) -> int:
    """The number of values of an option."""
    return 2 if "tuple" in str(argument.hint) else 1


def _allowed(argument: object) -> str:
    choices = getattr(argument, "get_choices", lambda: None)()
    if choices:
        return f"allowed: {', '.join(choices)}"
    whole = "int" in str(getattr(argument, "hint", ""))
    return f"allowed: a {'whole ' * whole}number"


def _is_number(word: str) -> bool:
    try:
        float(word.strip(",").replace(",", "").replace("x", ""))
    except ValueError:
        return False
    return True
