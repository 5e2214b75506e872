"""Tensors as safetensors files: several in one file by name, or a stream with a file for each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from torchpeek.errors import FormatError, InputError, LayerNotFound, closest, notify
from torchpeek.forks import Lock
from torchpeek.hooks import Captured
from torchpeek.keywords import checked_class
from torchpeek.signal_gate import is_of_handler
from torchpeek.store.folder import OutputFolder, file_stem
from torchpeek.store.json_values import parsed_json
from torchpeek.store.records import encodable
from torchpeek.store.tensor_files import TensorFile, packed, read_tensor_file
from torchpeek.tensor_formats import why_without_values

_KEY = "torchpeek-stream"
_WHAT = "a tensor of a stream"
_FILE = re.compile(r"(\d{8,})-.+\.safetensors")


def tensor_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return tensors as the bytes of a safetensors file, with `about` and a checksum in its header.

    Raises InputError for a tensor that the format cannot hold.
    """
    return packed({encodable(name): _plain(name, tensor) for name, tensor in tensors.items()}, about)


@checked_class
class TensorStream:
    """Writes every tensor of a recording to a file in a folder, and reads the files back.

    With `record(model, layers, keep=tp.keep.Callback(stream))` nothing is kept in memory. A stream may be called from
    several threads. One process writes to a folder at a time, for as long as one of its streams that has written
    exists; any number may read. The number of a file is also in its contents, so a file that was renamed is noticed.

    Args:
        path: A new or empty folder. `TensorStream.opened` opens a stream that was written before.

    Raises:
        FolderError: When the folder is not empty, cannot be written, or another stream writes to it.

    Example:
        >>> model, stream = nn.Sequential(nn.Linear(2, 3)), tp.TensorStream(folder / "stream")
        >>> with tp.record(model, "0", keep=tp.keep.Callback(stream)):
        ...     output = model(torch.rand(4, 2))
        >>> [tuple(tensor.shape) for tensor in stream.read("0")]
        [(4, 3)]
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        advice = f"TensorStream.opened({str(path)!r}) to read it, or to go on with it; or another folder"
        self._path = Path(path).absolute()  # a later os.chdir does not move the stream
        folder = OutputFolder.prepared(path, advice=advice)
        self._writer: _Writer | None = _Writer(replace(folder, path=self._path))

    @classmethod
    def opened(cls, path: str | PathLike[str]) -> TensorStream:
        """Open a stream that was written to a folder. New tensors are added after those in it.

        Args:
            path: The folder.

        Returns:
            The stream.

        Raises:
            FormatError: When there is no such folder.

        Example:
            >>> stream = tp.TensorStream(folder / "stream")
            >>> len(tp.TensorStream.opened(folder / "stream"))
            0
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FormatError(f"{path}: no such folder")
        stream = cls.__new__(cls)
        stream._path = folder.absolute()
        stream._writer = None  # reading needs no lock
        return stream

    def __call__(self, captured: Captured) -> None:
        """Write one tensor, whole or not at all.

        Args:
            captured: The tensor, with the layer, part and order that `tp.keep.Callback` gives it.

        Raises:
            InputError: When the format cannot hold the tensor.
            FolderError: When the file cannot be written, or another process writes to the folder.

        Example:
            >>> stream = tp.TensorStream(folder / "stream")
            >>> stream(tp.keep.Captured("layer", "output", 0, torch.rand(2, 3)))
            >>> len(stream)
            1
        """
        writer = self._writer
        if writer is None or not writer.folder.held:
            writer = self._writer = _writer_of(self._path)
        number = writer.next_number()
        about = {"layer": captured.layer, "part": captured.part, "order": captured.order, "number": number}
        name = f"{number:08d}-{file_stem(captured.layer)}-{file_stem(captured.part)}.safetensors"
        writer.folder.write(name, tensor_bytes({"tensor": captured.tensor}, {_KEY: json.dumps(about)}))

    def read(self, layer: str, part: str = "output") -> Iterator[Tensor]:
        """Return an iterator over the tensors of one layer, in the order in which they were written.

        One tensor is in memory at a time.

        Args:
            layer: Name of the layer.
            part: "output", "input", "grad_output" or "grad_input", with the path in a container, such as `input.0`.
                `input` is enough if there is only one.

        Returns:
            An iterator over tensors, on the CPU.

        Raises:
            LayerNotFound: When the stream has no such layer.
            InputError: When the layer has no such part.
            FormatError: When a file is damaged or was renamed.

        Example:
            >>> stream = tp.TensorStream(folder / "stream")
            >>> stream(tp.keep.Captured("layer", "output", 0, torch.rand(2, 3)))
            >>> [tensor.shape for tensor in stream.read("layer")]
            [torch.Size([2, 3])]
        """
        files = {file: _about(read_tensor_file(file, _KEY, _WHAT, data=False), file) for file in self._files()}
        parts = dict.fromkeys(about["part"] for about in files.values() if about["layer"] == layer)
        if not parts:
            layers = dict.fromkeys(about["layer"] for about in files.values())
            raise LayerNotFound(f"no layer {layer!r} in this stream{closest(layer, layers)}; there are {len(layers)}")
        if part not in parts:
            within = [each for each in parts if each.startswith(f"{part}.")]
            if within != [f"{part}.0"]:
                known = ", ".join(map(repr, parts))
                raise InputError(f"no {part!r} of layer {layer!r} in this stream; there are {known}")
            (part,) = within
        matching = [file for file, about in files.items() if (about["layer"], about["part"]) == (layer, part)]
        return (_captured(file).tensor for file in matching)

    def __iter__(self) -> Iterator[Captured]:
        return map(_captured, self._files())

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> list[Path]:
        """Return the files in the order in which they were written. Raises FormatError where two have one number."""
        numbered = _numbered_files(self._path)
        for (number, file), (following, other) in pairwise(numbered):
            if number == following:
                raise FormatError(
                    f"{other}: has the number of {file.name}. Next: move the one that does not belong to the stream"
                )
        return [file for _, file in numbered]


class _Writer:
    """The right to write to the folder of a stream, and the next number. All streams of a process share it."""

    def __init__(self, folder: OutputFolder) -> None:
        self.folder = folder
        self._numbering = Lock()
        self._number = 0
        self.skip_files()
        status = folder.path.stat()
        _WRITERS[status.st_dev, status.st_ino] = self

    def next_number(self) -> int:
        """A number that no other file has."""
        with self._numbering:
            self._number += 1
            return self._number - 1

    def skip_files(self) -> None:
        """Go on after the files that are there."""
        with self._numbering:
            last = max((number for number, _ in _numbered_files(self.folder.path)), default=-1)
            self._number = max(self._number, last + 1)


_WRITERS: WeakValueDictionary[tuple[int, int], _Writer] = WeakValueDictionary()


def _writer_of(path: Path) -> _Writer:
    """The writer of a stream that was opened. Raises FolderError where another process writes to the folder."""
    with _OPENING:
        status = path.stat() if path.is_dir() else None
        writer = None if status is None else _WRITERS.get((status.st_dev, status.st_ino))
        if writer is None or not writer.folder.held:
            return _Writer(OutputFolder.reopened(path))
        writer.skip_files()
        return writer


_OPENING = Lock()  # so that two threads make one writer


def _numbered_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the number of each file, and the file, in order. Files with other names do not belong to the stream."""
    named = ((_FILE.fullmatch(file.name), file) for file in folder.iterdir())
    return sorted((int(match[1]), file) for match, file in named if match)


def _about(read: TensorFile, file: Path) -> dict[str, Any]:
    """The layer, part and order of what was read. Raises FormatError where the file has another number than it had."""
    about = parsed_json(read.metadata[_KEY], str(file), allowed=f"not {_WHAT}, or damaged")
    try:
        number = int(about.get("number", _number(file)))  # an older torchpeek did not write it
        found = {"layer": str(about["layer"]), "part": str(about["part"]), "order": int(about["order"])}
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if is_of_handler(error):
            raise
        raise FormatError(f"{file}: not {_WHAT}, or damaged ({error})") from error
    if number != _number(file):
        raise FormatError(
            f"{file}: was renamed: its number in the stream is {number}, and its name says {_number(file)}. Next: "
            "give each file the name that it was written with"
        )
    return found


def _number(file: Path) -> int:
    return int(file.name.partition("-")[0])


def _captured(file: Path) -> Captured:
    read = read_tensor_file(file, _KEY, _WHAT)
    about = _about(read, file)
    if read.tensors.keys() != {"tensor"}:
        raise FormatError(f"{file}: not {_WHAT}, or damaged (it holds {list(read.tensors)[:4]})")
    if not read.checked:
        notify(
            f"the stream {str(file.parent)!r} has tensors without a checksum, from an older torchpeek; a damaged "
            "number in them is not noticed"
        )
    return Captured(**about, tensor=read.tensors["tensor"])


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in a form that safetensors can write."""
    problem = why_without_values(tensor)
    if problem:
        pass
    elif tensor.is_nested or tensor.layout != torch.strided:
        problem = "nested; save its parts" if tensor.is_nested else f"laid out as {tensor.layout}; take its .to_dense()"
    elif tensor.is_quantized:
        problem = f"of {tensor.dtype}; take its .dequantize()"
    elif tensor.dtype in (torch.complex128, torch.complex32):
        problem = f"of {tensor.dtype}; take its .to(torch.complex64), or torch.view_as_real(...) of it"
    if problem:
        raise InputError(f"tensor {name!r} cannot be written as safetensors: it is {problem}")
    # The bytes of a lazy conjugate or negative are those of the original tensor.
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
