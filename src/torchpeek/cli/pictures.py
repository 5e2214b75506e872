"""The pictures of a command: files, folders, globs, lists of paths, and standard input."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from torchpeek.cli.options import STDIN, InputOptions, PictureOptions
from torchpeek.errors import OptionError, PictureError, listed_names, notify
from torchpeek.models import LoadedModel
from torchpeek.picture import Picture
from torchpeek.printable import printable
from torchpeek.store import find_pictures, is_picture, other_files, read_regular

_STDIN_NAME = "stdin"
"""How the picture from standard input is called in tables, in results and in the names of files."""


@dataclass(frozen=True)
class PictureFiles(Sequence[Path]):
    """The picture files of a command, each once. One of them may stand for the bytes from standard input."""

    files: Sequence[Path]
    max_size: int | None = None
    stdin: tuple[Path, bytes] | None = field(default=None, repr=False)

    def read(self, loaded: LoadedModel, file: Path) -> Picture:
        """Read one of the pictures for the model, reduced to --max-size."""
        if self.stdin is not None and file == self.stdin[0]:
            data = io.BytesIO(self.stdin[1])
            data.name = str(file)  # the name in errors and of the Picture
            return loaded.read(data, max_size=self.max_size)
        return loaded.read(file, max_size=self.max_size)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        return self.files[index]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.files)


def picture_files(paths: Sequence[Path], options: PictureOptions, example: str) -> PictureFiles:
    """The pictures that the paths and --from name. Standard input is read here, before any work starts.

    Args:
        paths: The arguments of the command.
        options: With --from and --max-size.
        example: A command for the error where there are no pictures.

    Raises:
        OptionError: When there are no pictures, or standard input cannot be read.
        PictureError: When a folder or a glob has no pictures, or a list cannot be read.
    """
    words = [str(path) for path in paths]
    if not words and options.listed is None:
        raise OptionError(f'no pictures; give files, folders, globs, "-" or --from LIST: {example}')
    if "" in words:  # an empty variable of a script, which would be the working directory
        raise OptionError("a picture is named by an empty text; give a file, a folder or a glob")
    if STDIN in words and str(options.listed) == STDIN:
        raise OptionError('"-" and --from - both read standard input; give one')
    stdin = None
    files: dict[Path, None] = {}
    for word in words:
        if word == STDIN:
            stdin = stdin or (Path(_STDIN_NAME), _picture_from_stdin())
            files[stdin[0]] = None
        else:
            files |= dict.fromkeys(_found(word))
    if options.listed is not None:
        files |= dict.fromkeys(_listed(options.listed))
    return PictureFiles(tuple(files), options.max_size, stdin)


def one_picture(path: Path, options: InputOptions) -> PictureFiles:
    """The picture of --picture: a file, or "-" for standard input."""
    if str(path) != STDIN:
        return PictureFiles((path,), options.max_size)
    name = Path(_STDIN_NAME)
    return PictureFiles((name,), options.max_size, (name, _picture_from_stdin()))


def _picture_from_stdin() -> bytes:
    data = _stdin_bytes('"-"', "a picture")
    if not is_picture(io.BytesIO(data)) and _is_text(data):
        raise OptionError('"-" reads a picture, and standard input is text; a list of paths is read by --from -')
    return data


def _stdin_bytes(option: str, content: str) -> bytes:
    example = "< cat.jpg" if option == '"-"' else "< list.txt"
    if sys.stdin is None or sys.stdin.closed:
        raise OptionError(f"{option} reads {content} from standard input, which is closed; next: {example}")
    if sys.stdin.isatty():
        raise OptionError(f"{option} reads {content} from standard input, which is a terminal; next: {example}")
    data: bytes = sys.stdin.buffer.read()
    if not data:
        raise OptionError(f"{option} reads {content} from standard input, which is empty; next: {example}")
    return data


def _listed(source: Path) -> list[Path]:
    """The files that a list names. A path of the list that does not exist stays in it, so that an error can name it."""
    from_stdin = str(source) == STDIN
    name = "standard input" if from_stdin else str(source)
    if from_stdin:
        data = _stdin_bytes("--from -", "a list of paths")
    else:
        try:
            data = read_regular(source, PictureError)
        except PictureError as error:
            reason = str(error).removeprefix(printable(f"{source}: "))
            raise PictureError(f"--from {source}: the list {reason}") from error
    if is_picture(io.BytesIO(data)):
        instead = '"-"' if from_stdin else str(source)
        raise OptionError(f"--from reads a list of paths, and {name} is a picture; give it as {instead} without --from")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as PowerShell writes it
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not paths:
        raise OptionError(f"--from: {name} names no picture; allowed: a path in each line, or NUL between paths")
    files: list[Path] = []
    for path in paths:
        path = path if os.path.lexists(path) else path.strip()
        files += _found(path) if os.path.isdir(path) else [Path(path)]
    return files


def _found(path: str) -> list[Path]:
    """The pictures that a path names. A notice names the files of a folder that are left out."""
    found = find_pictures([path])
    if os.path.isdir(path) and (others := other_files(Path(path))):
        count = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        notify(f"{path}: {count} left out, because the suffix is not of a picture: {listed_names(others)}")
    return found


def _is_text(data: bytes) -> bool:
    try:
        return data[:1000].decode("utf-8", "strict").isprintable() or b"\n" in data[:1000]
    except UnicodeDecodeError:
        return False
