"""Tensors as safetensors: by name in one file, or one after the other into a folder, as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from torchpeek.errors import FormatError
from torchpeek.hooks.keep import Captured
from torchpeek.store.folder import OutputFolder, file_stem

_KEY = "torchpeek-stream"


def tensor_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """What a safetensors file of these holds, with `about` in its header."""
    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(about))


class TensorStream:
    """Writes all that a recording sees to a folder, a file for each tensor, and reads it back.

    `record(model, layers, keep=tp.keep.Callback(tp.TensorStream("folder")))` keeps nothing in memory. The folder has to
    be new or empty; `TensorStream.opened` reads one that was written before.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._folder = OutputFolder.prepared(path)
        self._count = 0

    @classmethod
    def opened(cls, path: str | PathLike[str]) -> TensorStream:
        """The stream that was written to this folder; what is recorded into it comes after what is there."""
        folder = Path(path)
        if not folder.is_dir():
            raise FormatError(f"{path}: no such folder")
        stream = cls.__new__(cls)
        stream._folder = OutputFolder(folder)
        stream._count = 1 + max((int(file.name.split("-")[0]) for file in stream._files()), default=-1)
        return stream

    def __call__(self, captured: Captured) -> None:
        """Write one tensor, whole or not at all."""
        about = {"layer": captured.layer, "part": captured.part, "order": captured.order}
        name = f"{self._count:08d}-{file_stem(captured.layer)}-{file_stem(captured.part)}.safetensors"
        self._folder.write(name, tensor_bytes({"tensor": captured.tensor}, {_KEY: json.dumps(about)}))
        self._count += 1

    def read(self, layer: str, part: str = "output") -> Iterator[Tensor]:
        """The tensors of one layer in the order in which they came, one in memory at a time."""
        for captured in self:
            if (captured.layer, captured.part) == (layer, part):
                yield captured.tensor

    def __iter__(self) -> Iterator[Captured]:
        for file in self._files():
            try:
                with safe_open(file, framework="pt") as opened:
                    about = json.loads((opened.metadata() or {})[_KEY])
                    yield Captured(about["layer"], about["part"], about["order"], opened.get_tensor("tensor"))
            except (SafetensorError, KeyError, ValueError) as error:
                raise FormatError(f"{file}: not a tensor of a stream, or damaged ({error})") from error

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> list[Path]:
        return sorted(self._folder.path.glob("[0-9]*-*.safetensors"))
