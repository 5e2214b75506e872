"""Safetensors files with a checksum of everything in them. They are read whole, and no damage goes unnoticed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO
from zlib import crc32

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from torchpeek.errors import FormatError
from torchpeek.signal_gate import is_of_handler
from torchpeek.store.json_values import parsed_json
from torchpeek.store.records import encodable
from torchpeek.store.regular_files import open_regular
from torchpeek.system_errors import is_of_system

CHECKSUM = "torchpeek-crc32"
"""The key of the checksum in the metadata of a file."""

_MOST_HEADER = 32 << 20  # bytes; a file of 10,000 tensors has about 1 MB


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Args:
        tensors: Name -> tensor, on the CPU; empty where only the metadata were read.
        metadata: The texts in its header, without the checksum.
        checked: Whether the file has a checksum. Those of older versions of torchpeek have none.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    checked: bool


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file, whose metadata gain a checksum.

    Args:
        tensors: Name -> tensor, contiguous and on the CPU.
        metadata: Texts for the header.

    Returns:
        The bytes, always the same for the same tensors and texts.
    """
    texts = {name: encodable(text) for name, text in metadata.items()}
    return _with_sorted_texts(to_bytes(dict(tensors), {**texts, CHECKSUM: _checksum(texts, tensors)}))


def _with_sorted_texts(data: bytes) -> bytes:
    """The same file with the texts of its header sorted: safetensors writes them in another sequence each time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns the tensors
    return len(text).to_bytes(8, "little") + text + memoryview(data)[8 + length :]


def read_tensor_file(path: str | PathLike[str], key: str, what: str, *, data: bool = True) -> TensorFile:
    """Read a file that `packed` made.

    The file is opened once, and nothing of it is mapped into memory: another process may replace it or cut it short
    meanwhile, or later.

    Args:
        path: Path of the file.
        key: A key of its metadata, which says that it is a file of this kind.
        what: What such a file holds, for the error text: "a heatmap".
        data: Whether to read the tensors, and not the metadata alone.

    Returns:
        The TensorFile.

    Raises:
        FormatError: When there is no such file, it holds something else, or it is damaged.
    """
    with open_regular(path) as file:
        return read_open_tensor_file(file, str(path), key, what, data=data)


def read_open_tensor_file(file: BinaryIO, path: str, key: str, what: str, *, data: bool = True) -> TensorFile:
    """Read a file that `packed` made, as `read_tensor_file` does.

    Args:
        file: The file, open at its beginning.
        path: Its path or URL, for the error text.
        key: A key of its metadata, which says that it is a file of this kind.
        what: What such a file holds, for the error text.
        data: Whether to read the tensors, and not the metadata alone.
    """
    with _named_errors(path, what):
        entries, metadata = _header(file, path, what)
        if key not in metadata:
            raise FormatError(f"{path}: a safetensors file, but not {what} of torchpeek")
        tensors = _tensors(file, entries) if data else {}
        return _checked(tensors, metadata, key, path, what, data=data)


def read_safetensors(file: BinaryIO, path: str, what: str) -> dict[str, Tensor]:
    """Read a safetensors file that any program made.

    Args:
        file: The file, open at its beginning.
        path: Its path, for the error text.
        what: What such a file holds, for the error text: "weights".

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        FormatError: When it holds something else, or is damaged.
    """
    with _named_errors(path, what):
        entries, _ = _header(file, path, what)
        return _tensors(file, entries)


def read_row(file: BinaryIO, path: str, name: str, row: int, what: str) -> tuple[Tensor, Mapping[str, str]]:
    """Read one row of a tensor, and the metadata. The rest of the file is not read, and its checksum is not compared.

    Args:
        file: The file, open at its beginning.
        path: Its path or URL, for the error text.
        name: The name of the tensor, (rows, ...).
        row: The index of the row.
        what: What such a file holds, for the error text.

    Returns:
        The row, and the texts in the header.

    Raises:
        FormatError: When there is no such file, tensor or row, or the header is damaged.
    """
    with _named_errors(path, what):
        entries, metadata = _header(file, path, what)
        data = file.tell()
        entry = entries[name]
        first, last = (int(each) for each in entry["data_offsets"])
        dtype, (rows, *shape) = _DTYPES[entry["dtype"]], [int(length) for length in entry["shape"]]
        size = math.prod(shape) * dtype.itemsize
        if rows * size != last - first or min(shape, default=0) < 0 or not 0 <= row < rows:
            raise ValueError(f"{name!r:.60} has {rows} rows of {shape[:_MOST_AXES]}, and row {row} was asked for")
        file.seek(data + first + row * size)
        read = bytearray(file.read(size))
        return torch.frombuffer(read, dtype=dtype).view(shape), metadata


@contextmanager
def _named_errors(path: str, what: str) -> Iterator[None]:
    """Raise FormatError with the path for what a damaged file makes of its reading."""
    try:
        yield
    except OSError as error:
        if not is_of_system(error):
            raise
        raise FormatError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        if is_of_handler(error):
            raise
        raise FormatError(f"{path}: not {what}, or damaged ({error})") from error


def _header(file: BinaryIO, path: str, what: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the header. Returns its entry of each tensor, and the metadata. Raises FormatError where it does not fit."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MOST_HEADER):
        raise FormatError(f"{path}: not {what}, or damaged (no header of safetensors in its {size:,} bytes)")
    text = file.read(length)
    header = parsed_json(text, path, allowed=f"not {what}, or damaged", object_pairs_hook=_without_repeated_keys)
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise FormatError(f"{path}: not {what}, or damaged (its header is no table of tensors)")
    end = max((int(each["data_offsets"][1]) for each in header.values()), default=0)
    if size != 8 + length + end:
        raise FormatError(f"{path}: damaged: it has {size:,} bytes, and its header says {8 + length + end:,}")
    return header, metadata


# The types of safetensors that torch has.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def _tensors(file: BinaryIO, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that follow the header into one block of memory, which they share. Raises ValueError."""
    places = {name: (int(each["data_offsets"][0]), int(each["data_offsets"][1])) for name, each in entries.items()}
    end = 0
    for name, (first, last) in sorted(places.items(), key=lambda item: item[1]):
        if first != end or last < first:
            raise ValueError(f"the data of {name!r:.60} begin at {first}, and those before end at {end}")
        end = last
    data = torch.empty(end, dtype=torch.uint8, device="cpu")
    read = file.readinto(data.numpy().data) if end else 0  # type: ignore[attr-defined]  # a BufferedReader has it
    if read != end:
        raise ValueError(f"{read} bytes of data in place of {end}")
    tensors = {}
    for name, entry in entries.items():
        first, last = places[name]
        dtype, shape = _DTYPES[entry["dtype"]], [int(length) for length in entry["shape"]]
        if len(shape) > _MOST_AXES or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != last - first:
            raise ValueError(f"{name!r:.60} has {last - first} bytes for the shape {shape[:_MOST_AXES]} of {dtype}")
        own = data[first:last]
        own = own.clone() if first % dtype.itemsize else own
        tensors[name] = own.view(dtype).view(shape)
    return tensors


_MOST_AXES = 64  # as many as torch has


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _checked(
    tensors: Mapping[str, Tensor], metadata: dict[str, str], key: str, path: str, what: str, *, data: bool
) -> TensorFile:
    """Compare the checksum, if there is one. Without `data`, that of the metadata alone."""
    expected = metadata.pop(CHECKSUM, None)
    if expected is None:
        # Of an older version, which wrote no other key. A damaged name of the checksum is not taken for none.
        if metadata.keys() != {key}:
            raise FormatError(f"{path}: not {what}, or damaged (its header has {sorted(metadata)[:4]})")
        return TensorFile(tensors, metadata, checked=False)
    found = _checksum(metadata, tensors)
    if found != expected if data else found[:8] != expected[:8]:
        raise FormatError(
            f"{path}: damaged: its checksum is {found if data else found[:8]}, and the file says "
            f"{expected if data else expected[:8]:.20}. Next: make it anew, or take it from a copy"
        )
    return TensorFile(tensors, metadata, checked=True)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The CRC-32 of the metadata, then that of the metadata and the tensors, whatever the sequence in the file."""
    of_metadata = crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    shapes = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in sorted(tensors.items())]
    total = crc32(json.dumps(shapes).encode(), of_metadata)
    for _, tensor in sorted(tensors.items()):
        flat = tensor.reshape(-1)
        flat = flat.clone() if flat.numel() == 1 else flat  # a single number may have a stride that bytes cannot have
        total = crc32(flat.view(torch.uint8).numpy().data, total)
    return f"{of_metadata:08x}-{total:08x}"
