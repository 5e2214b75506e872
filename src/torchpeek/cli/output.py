"""Where commands write: the output folder, the file names in it, their results, and the folder for TensorBoard."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from torchpeek.cli.options import OutputOptions
from torchpeek.errors import FolderError, OptionError, notify
from torchpeek.store import OutputFolder, check_folder, file_stem, json_text
from torchpeek.system_errors import is_of_system


@contextmanager
def output_folder(options: OutputOptions) -> Iterator[OutputFolder | None]:
    """The folder to write to, or None without --out. If the command fails, an empty folder is removed."""
    folder = None if options.out is None else OutputFolder.prepared(options.out, overwrite=options.overwrite)
    try:
        yield folder
        if folder is not None:
            folder.check_files()
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise
    finally:
        if folder is not None:
            folder.close()


@contextmanager
def saved_on_failure(folder: OutputFolder | None, save: Callable[[OutputFolder], object]) -> Iterator[None]:
    """If the block fails or is interrupted, save what was done, also where the folder was moved meanwhile.

    Args:
        folder: The output folder; None to save nothing.
        save: Called with the folder to write to. Returns what it has saved; False or None if there was nothing to save.
            Its FolderError is a notice.
    """
    try:
        yield
    except BaseException as failure:
        if folder is not None:
            try:
                if save(folder.followed()) and isinstance(failure, FolderError):
                    notify(f"what was done before is in {str(folder.place or folder.path)!r}")
            except FolderError as error:
                notify(str(error))
        raise


def write_results(folder: OutputFolder, name: str, results: Mapping[str, Any]) -> Path:
    """Write the results of a command as JSON, before its page and other large files.

    Raises FolderError where the file cannot be written. Then the results are in another folder, which a notice names.
    """
    data = json_text(results).encode()
    try:
        return folder.write(name, data)
    except FolderError:
        reasons = []
        for other in (tempfile.gettempdir, Path.cwd):
            try:
                handle, path = tempfile.mkstemp(prefix="torchpeek-", suffix=f"-{name}", dir=other())
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(data)
                except BaseException:
                    os.unlink(path)
                    raise
            except OSError as error:
                if not is_of_system(error):
                    raise
                reasons.append(error.strerror or str(error))
            else:
                notify(f"{name} is saved as {path}")
                break
        else:
            notify(f"{name} is lost: no other folder can be written either ({'; '.join(reasons).lower()})")
        raise


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
