"""Tensors as safetensors files: several in one file by name, or a stream with a file for each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from torchpeek.errors import FormatError, InputError, LayerNotFound, closest
from torchpeek.hooks import Captured
from torchpeek.keywords import checked_class
from torchpeek.store.folder import OutputFolder, file_stem
from torchpeek.tensor_formats import why_without_values

_KEY = "torchpeek-stream"
_FILE = re.compile(r"(\d{8,})-.+\.safetensors")


def tensor_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return tensors as the bytes of a safetensors file, with `about` in its header.

    Raises InputError for a tensor that the format cannot hold.
    """
    return to_bytes({name: _plain(name, tensor) for name, tensor in tensors.items()}, dict(about))


@checked_class
class TensorStream:
    """Writes every tensor of a recording to a file in a folder, and reads the files back.

    With `record(model, layers, keep=tp.keep.Callback(stream))` nothing is kept in memory. A stream may be called from
    several threads.

    Args:
        path: A new or empty folder. `TensorStream.opened` opens a stream that was written before.

    Raises:
        FolderError: When the folder is not empty or cannot be written.

    Example:
        >>> model, stream = nn.Sequential(nn.Linear(2, 3)), tp.TensorStream(folder / "stream")
        >>> with tp.record(model, "0", keep=tp.keep.Callback(stream)):
        ...     output = model(torch.rand(4, 2))
        >>> [tuple(tensor.shape) for tensor in stream.read("0")]
        [(4, 3)]
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        advice = f"TensorStream.opened({str(path)!r}) to read it, or to go on with it; or another folder"
        self._folder = OutputFolder.prepared(path, advice=advice)
        self._numbers = count()

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
        stream._folder = OutputFolder(folder)
        stream._numbers = count(max(stream._files(), default=-1) + 1)
        return stream

    def __call__(self, captured: Captured) -> None:
        """Write one tensor, whole or not at all.

        Args:
            captured: The tensor, with the layer, part and order that `tp.keep.Callback` gives it.

        Raises:
            InputError: When the format cannot hold the tensor.

        Example:
            >>> stream = tp.TensorStream(folder / "stream")
            >>> stream(tp.keep.Captured("layer", "output", 0, torch.rand(2, 3)))
            >>> len(stream)
            1
        """
        number = next(self._numbers)  # atomic: no two threads get the same
        about = {"layer": captured.layer, "part": captured.part, "order": captured.order}
        name = f"{number:08d}-{file_stem(captured.layer)}-{file_stem(captured.part)}.safetensors"
        self._folder.write(name, tensor_bytes({"tensor": captured.tensor}, {_KEY: json.dumps(about)}))

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
            FormatError: When a file is damaged.

        Example:
            >>> stream = tp.TensorStream(folder / "stream")
            >>> stream(tp.keep.Captured("layer", "output", 0, torch.rand(2, 3)))
            >>> [tensor.shape for tensor in stream.read("layer")]
            [torch.Size([2, 3])]
        """
        files = {file: _about(file) for file in self._files().values()}
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
        return map(_tensor, matching)

    def __iter__(self) -> Iterator[Captured]:
        for file in self._files().values():
            yield Captured(**_about(file), tensor=_tensor(file))

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> dict[int, Path]:
        """Return number -> file, in order. Files with other names do not belong to the stream."""
        named = ((_FILE.fullmatch(file.name), file) for file in self._folder.path.iterdir())
        return dict(sorted((int(match[1]), file) for match, file in named if match))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise FormatError(f"{file}: not a tensor of a stream, or damaged ({error})") from error


def _about(file: Path) -> dict[str, Any]:
    """Read the layer, part and order of a file."""
    with _opened(file) as opened:
        about = json.loads((opened.metadata() or {})[_KEY])
        return {"layer": str(about["layer"]), "part": str(about["part"]), "order": int(about["order"])}


def _tensor(file: Path) -> Tensor:
    with _opened(file) as opened:
        tensor: Tensor = opened.get_tensor("tensor")
        return tensor


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
