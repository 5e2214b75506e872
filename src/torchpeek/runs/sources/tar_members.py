"""The members of a tar archive, listed one after the other: what they are called, and where their bytes are.

Nothing is allocated by what a header says: Python's own reader takes a name of any length into memory. An archive that
is cut short, or goes on after its end, is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from torchpeek.errors import FormatError, shown

_OCTAL = re.compile(rb"[0-7]+")
_BLOCK = 512
_MOST_HEADER = 1 << 20  # bytes of a long name, or of other extended headers
_RECORD = 20 * _BLOCK  # archives are filled up with zeros to a multiple of it
_FILES = (b"0", b"\0", b"7")
_OTHERS = (b"1", b"2", b"3", b"4", b"5", b"6", b"V")  # links, devices, folders and pipes, and the name of the archive
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarMember:
    """A file in a tar archive.

    Args:
        name: Its name.
        start: Where its bytes begin.
        size: How many they are.
    """

    name: str
    start: int
    size: int


def tar_members(file: BinaryIO, where: str) -> Iterator[TarMember]:
    """The files in a tar archive, of which only the headers are read.

    Args:
        file: The open archive, at its beginning.
        where: What it is called in errors.

    Raises:
        FormatError: When it is no archive, compressed, cut short or damaged, or when the name of a file leads out of
            it. The message names the archive and the member.
    """
    end = file.seek(0, os.SEEK_END)
    position, last, extended = 0, "", dict[str, bytes]()
    while True:
        header = _read(file, position, _BLOCK)
        if len(header) < _BLOCK:
            raise FormatError(f"{where}: cut short after {shown(last) if last else 'nothing'}: it has no end mark")
        if not any(header):
            _check_end(file, position, where, last)
            return
        _check_header(header, where, last)
        size, kind, start = _number(header[124:136], where), header[156:157], position + _BLOCK
        name = _name(header, extended)
        if kind in (b"L", b"x") and size > _MOST_HEADER:
            raise FormatError(
                f"{where}: the member after {shown(last)} has a name or header of {size:,} bytes; allowed: at most "
                f"{_MOST_HEADER:,}"
            )
        if kind in _FILES and b"size" in map(str.encode, extended):
            size = _decimal(extended["size"], where)
        if start + size > end:
            raise FormatError(
                f"{where}: the member {shown(name)} has {size:,} bytes by its header, and the archive only "
                f"{end - start:,} more; it is cut short or damaged"
            )
        position = start + -(-size // _BLOCK) * _BLOCK
        if kind == b"L":
            extended["path"] = _read(file, start, size).rstrip(b"\0")
        elif kind == b"x":
            extended |= _records(_read(file, start, size), where)
        elif kind in _FILES and not name.endswith("/"):
            if any(each.startswith("GNU.sparse") for each in extended):
                raise FormatError(f"{where}: the member {shown(name)} is a sparse file, which is not read")
            yield TarMember(_checked(name, where), start, size)
            last, extended = name, {}
        elif kind in (b"K", b"g"):
            pass  # the target of a link, or what holds for all members
        elif kind in _OTHERS or kind in _FILES:
            last, extended = name, {}
        else:
            raise FormatError(f"{where}: the member {shown(name)} is of the type {kind!r}, which is not read")


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _check_end(file: BinaryIO, position: int, where: str, last: str) -> None:
    rest = _read(file, position, _RECORD)
    if any(rest):
        raise FormatError(
            f"{where}: goes on after its end mark, which follows {shown(last)}. Next: unpack archives that were joined "
            "with tar --ignore-zeros, and pack the files again"
        )


def _check_header(header: bytes, where: str, last: str) -> None:
    digits = header[148:156].strip(b" \0") or b"0"
    if _OCTAL.fullmatch(digits) and int(digits, 8) == sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        return
    for magic, name in _COMPRESSED.items():
        if not last and header.startswith(magic):
            raise FormatError(
                f"{where}: is compressed ({name}), so no file in it can be found. Next: unpack it to .tar"
            )
    after = f"damaged after the member {shown(last)}" if last else "no tar archive"
    raise FormatError(f"{where}: {after} (the checksum of a header is wrong)")


def _number(digits: bytes, where: str) -> int:
    """A number of a header: octal digits, or binary where the first bit is set."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    octal = digits.strip(b" \0") or b"0"
    if not _OCTAL.fullmatch(octal):
        raise FormatError(f"{where}: damaged: a member has the size {digits!r}")
    return int(octal, 8)


def _decimal(digits: bytes, where: str) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise FormatError(f"{where}: damaged: a member has the size {digits[:40]!r}")
    return int(digits)


def _name(header: bytes, extended: dict[str, bytes]) -> str:
    raw = extended.get("path")
    if raw is None:
        raw = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
            raw = prefix + b"/" + raw
    return raw.decode(errors="surrogateescape")


def _records(data: bytes, where: str) -> dict[str, bytes]:
    """The records of a pax header: length, key and value."""
    found = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = _decimal(digits, where) if len(digits) < 9 else 0
        key, equals, value = data[len(digits) + 1 : length].partition(b"=")
        if not len(digits) + 3 < length <= len(data) or not equals:
            raise FormatError(f"{where}: damaged: an extended header cannot be read")
        found[key.decode(errors="replace")] = value.removesuffix(b"\n")
        data = data[length:]
    return found


def _checked(name: str, where: str) -> str:
    """A name, if it is a path inside of the archive."""
    name = name.removeprefix("./")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or any(ord(letter) < 32 for letter in name):
        raise FormatError(
            f"{where}: the member {shown(name)} has a name that leads out of the archive, or letters that no file name "
            "has. Next: do not trust this archive"
        )
    return name
