"""Where commands write: the output folder, the file names in it, and the folder for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from torchpeek.cli.options import OutputOptions
from torchpeek.errors import OptionError
from torchpeek.store import OutputFolder, check_folder, file_stem


@contextmanager
def output_folder(options: OutputOptions) -> Iterator[OutputFolder | None]:
    """The folder to write to, or None without --out. If the command fails, an empty folder is removed."""
    folder = None if options.out is None else OutputFolder.prepared(options.out, overwrite=options.overwrite)
    try:
        yield folder
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise
    finally:
        if folder is not None:
            folder.close()


def file_names(texts: Mapping[str, str], *, reserved: Collection[str]) -> dict[str, str]:
    """For each key, a file name without a suffix, made from its text. All names differ, and none is `reserved`."""
    names: dict[str, str] = {}
    taken = {*reserved}
    for key, text in texts.items():
        stem = name = file_stem(text)
        number = 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        names[key] = name
        taken.add(name)
    return names


@contextmanager
def tensorboard_writer(folder: Path | None) -> Iterator[Any]:
    """A SummaryWriter for the folder, or None without one. Raises OptionError where TensorBoard is not installed.

    The folder is made by the first write. Raises FolderError where it cannot be made.
    """
    if folder is None:
        yield None
        return
    check_folder(folder)  # which other writers of TensorBoard may have open
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError("--tensorboard needs TensorBoard, which is not installed; pip install tensorboard") from error
    with closing(_LazyWriter(lambda: SummaryWriter(str(folder)))) as writer:
        yield writer


class _LazyWriter:
    """Makes the writer on its first use, and then forwards to it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._writer: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._writer is None:
            self._writer = self._make()
        return getattr(self._writer, name)

    def close(self) -> None:
        """Close the writer, if it was made."""
        if self._writer is not None:
            self._writer.close()
