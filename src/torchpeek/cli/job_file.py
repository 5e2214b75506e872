"""Job files: a TOML file whose keys are the options of `torchpeek run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App

from torchpeek.errors import FormatError, OptionError, closest

_COMMAND = "run"
_MOST_BYTES = 1 << 20


def with_job_file(app: App, words: Sequence[str]) -> list[str]:
    """The words of a command line with what its job file says. What the words themselves say wins.

    Args:
        app: The command line, which knows the options.
        words: The words.

    Raises:
        FormatError: When the file cannot be read.
        OptionError: When a key is no option, or its value is none of the option.

    Example:
        `run job.toml --limit 10`, where job.toml has `data = "val"`, is `run --data=val --limit 10`.
    """
    if not words or words[0] != _COMMAND or not any(word.endswith(".toml") for word in words):
        return list(words)
    flags = _flags(app)
    for place, word in enumerate(words[1:], 1):
        before = words[place - 1]
        takes_value = before.startswith("-") and "=" not in before and flags.get(before.lstrip("-")) is not bool
        if word.endswith(".toml") and not word.startswith("-") and not takes_value:
            rest = [*words[1:place], *words[place + 1 :]]
            return [_COMMAND, *_words(Path(word), flags, rest), *rest]
    return list(words)


def _flags(app: App) -> dict[str, Any]:
    """Name of an option without its dashes -> its type."""
    found: dict[str, Any] = {}
    for argument in app[_COMMAND].assemble_argument_collection():
        for name in argument.names:
            if name.startswith("-") and not argument.children:
                found[name.lstrip("-")] = argument.hint
    return found


def _words(file: Path, flags: Mapping[str, Any], given: Sequence[str]) -> Iterator[str]:
    named = {word.partition("=")[0] for word in given}
    if "-o" in named:
        named.add("--out")
    positional = bool(given) and not given[0].startswith("-")
    for key, value in _content(file).items():
        name = key.replace("_", "-")
        if name not in flags or len(name) == 1:
            known = sorted(flag for flag in flags if len(flag) > 1)
            raise OptionError(
                f"{file}: no key {key!r}{closest(name, known)}. Next: torchpeek run --help lists the options, which "
                "are the keys"
            )
        if f"--{name}" in named or (name == "data" and positional):
            continue
        if flags[name] is bool:
            if type(value) is not bool:
                raise OptionError(f"{file}: {key} is {value!r}; allowed: true or false")
            if value:
                yield f"--{name}"
            continue
        for text in _texts(file, key, value):
            yield f"--{name}={text}"


def _texts(file: Path, key: str, value: Any) -> Iterator[str]:
    """The value of a key as the texts of a repeated option: a table is NAME=VALUE."""
    match value:
        case list() if value:
            for each in value:
                yield from _texts(file, key, each)
        case dict() if value:
            yield from _pairs(file, key, value, "")
        case str() if value.strip():
            yield value
        case int() | float() if type(value) is not bool:
            yield str(value)
        case _:
            raise OptionError(f"{file}: {key} is {value!r}; allowed: a text, a number, or a list of these")


def _pairs(file: Path, key: str, table: Mapping[str, Any], start: str) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _pairs(file, key, value, f"{start}{name}.")
        else:
            yield from (f"{start}{name}={text}" for text in _texts(file, f"{key}.{name}", value))


def _content(file: Path) -> dict[str, Any]:
    import tomllib

    from torchpeek.store.regular_files import read_regular

    try:
        return tomllib.loads(read_regular(file, FormatError, _MOST_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{file}: no TOML ({error}). Next: torchpeek run --help lists the keys") from error
