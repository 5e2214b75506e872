"""Tar archives in webdataset's layout: `key.jpg` with `key.cls`, `key.json`, `key.txt` and `key.mask.png` beside it."""

from __future__ import annotations

import fnmatch
import itertools
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from torchpeek.errors import FormatError, InputError, PictureError, shown
from torchpeek.runs.labels import Classes, FoundLabels, known_synsets
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources.file_places import (
    MOST_BYTES,
    FilePlace,
    FolderPlace,
    IsWanted,
    UrlPlace,
    picture_names,
    place_of,
)
from torchpeek.runs.sources.known_boxes import known_boxes
from torchpeek.runs.sources.tar_members import TarMember, tar_members
from torchpeek.store.json_values import parsed_json

_MOST_TEXT = 16 << 20  # bytes of the files beside a picture
_LOCATION = re.compile(r"(?P<tar>.+\.tar):(?P<start>\d{1,18})\+(?P<size>\d{1,18})", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000  # that braces may stand for


class TarSource:
    """The pictures in tar archives.

    Args:
        place: The folder of the archives.
        patterns: Their names there, which may have wildcards.
        class_names: The names of the model's classes.
    """

    def __init__(
        self, place: FolderPlace | UrlPlace, patterns: Sequence[str], class_names: Sequence[str] | None = None
    ) -> None:
        self.place, self.patterns = place, list(patterns)
        self._labels = FoundLabels(Classes(class_names, known_synsets(class_names)))

    def __getstate__(self) -> dict[str, Any]:
        """Workers read, and list nothing."""
        return {**self.__dict__, "_labels": FoundLabels(Classes(None))}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "tar", "path": self.place.address, "patterns": self.patterns}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the tar archives {', '.join(self.patterns[:3])} in {self.place.address}"

    @property
    def labels_from(self) -> str:
        """What the files beside the pictures say. It is known when all samples were listed."""
        words = self._labels.words
        return words and f"the files beside the pictures have {words}"

    def archives(self) -> list[str]:
        """The names of the archives, sorted.

        Raises:
            InputError: When a pattern matches none.
        """
        found: set[str] = set()
        for pattern in self.patterns:
            if not _has_wildcard(pattern):
                found.add(pattern)
                continue
            names = self.place.files() if "/" not in pattern else list(self.place.names(lambda name: True))
            matches = fnmatch.filter((name for name in names if name.endswith(".tar")), pattern)
            if not matches:
                raise InputError(f"{self.place.address}/{pattern}: matches no file that ends in .tar")
            found.update(matches)
        return sorted(found)

    def samples(self) -> Iterator[Sample]:
        """The samples, archive by archive, in the sequence of their members."""
        archives, is_picture = self.archives(), picture_names()
        for archive in archives:
            with self.place.open(archive) as file:
                keys: dict[str, int] = {}
                for members in _groups(tar_members(file, f"{self.place.address}/{archive}")):
                    for sample in self._of_group(file, archive, members, is_picture):
                        key = sample.key.encode(errors="backslashreplace").decode()
                        if len(archives) > 1:
                            key = f"{archive}/{key}"
                        keys[key] = count = keys.get(key, 0) + 1
                        yield Sample(
                            key if count == 1 else f"{key}#{count}",
                            *(
                                sample.location,
                                sample.label,
                                sample.label_name,
                                sample.boxes,
                                sample.mask,
                                sample.split,
                            ),
                        )

    def _of_group(
        self, file: BinaryIO, archive: str, members: Mapping[str, TarMember], is_picture: IsWanted
    ) -> Iterator[Sample]:
        """The samples of members that share what comes before the first dot: a sample for each picture."""
        for extension, member in members.items():
            stem = extension.rpartition(".")[0]
            is_hidden = posixpath.basename(member.name).startswith(".")  # macOS packs "._key.jpg" beside each file
            if is_hidden or not is_picture(f"x.{extension}") or stem.rpartition(".")[2] in ("mask", "seg"):
                continue
            where = f"{self.place.address}/{archive}: {member.name}"
            if member.size > MOST_BYTES:
                raise FormatError(f"{where}: has {member.size:,} bytes; allowed: at most {MOST_BYTES:,}")
            beside = {
                name: members[each]
                for name in ("cls", "json", "txt", "mask.png", "seg.png")
                for each in (name, f"{stem}.{name}")
                if each in members
            }
            label: Any = None
            boxes: Any = None
            split = None
            if "json" in beside:
                value = self._json(file, archive, beside["json"])
                label, boxes, split = value.get("label", value.get("cls")), value.get("boxes"), value.get("split")
            if "cls" in beside:
                label = self._text(file, archive, beside["cls"]).strip()
            elif label is None and "txt" in beside:
                # A caption is no label: a text counts only where it is a class of the model.
                text = self._text(file, archive, beside["txt"]).strip()
                label = text if self._labels.is_class(text) else None
            mask = beside.get("mask.png") or beside.get("seg.png")
            index, name = self._labels.added(label, where)
            yield Sample(
                member.name,
                _location(archive, member),
                index,
                name,
                known_boxes(boxes, where),
                None if mask is None else _location(archive, mask),
                None if split is None else str(split),
            )

    def _text(self, file: BinaryIO, archive: str, member: TarMember) -> str:
        where = f"{self.place.address}/{archive}: {member.name}"
        if member.size > _MOST_TEXT:
            raise FormatError(f"{where}: has {member.size:,} bytes; allowed: at most {_MOST_TEXT:,}")
        file.seek(member.start)  # the archive is open: another request for each would take longer
        return file.read(member.size).decode(errors="replace")

    def _json(self, file: BinaryIO, archive: str, member: TarMember) -> Mapping[str, Any]:
        where = f"{self.place.address}/{archive}: {member.name}"
        value = parsed_json(self._text(file, archive, member), where, allowed="an object with label and boxes")
        if not isinstance(value, dict):
            raise FormatError(f"{where}: is {shown(value)}; allowed: an object with label and boxes")
        return value

    def read(self, sample: Sample) -> bytes:
        """The bytes of the member."""
        return _member_bytes(self.place, sample.location, sample.key)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask's member."""
        return None if sample.mask is None else _member_bytes(self.place, sample.mask, sample.key)


def _location(archive: str, member: TarMember) -> str:
    return f"{archive}:{member.start}+{member.size}"


def _member_bytes(place: FilePlace, location: str, key: str) -> bytes:
    match = _LOCATION.fullmatch(location)
    if match is None or int(match["size"]) > MOST_BYTES:
        raise PictureError(f"{key}: is not in a tar archive: {shown(location)}")
    return place.read_range(match["tar"], int(match["start"]), int(match["size"]))


def _groups(members: Iterator[TarMember]) -> Iterator[dict[str, TarMember]]:
    """The members that follow each other with the same name up to the first dot: extension -> member."""

    def stem(member: TarMember) -> str:
        folder, _, name = member.name.rpartition("/")
        return f"{folder}/{name.partition('.')[0]}"

    for _, group in itertools.groupby(members, key=stem):
        found: dict[str, TarMember] = {}
        for member in group:
            extension = posixpath.basename(member.name).partition(".")[2].lower()
            if extension in found:  # the same sample again
                yield found
                found = {}
            found[extension] = member
        yield found


def _has_wildcard(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def tar_source(addresses: Sequence[str], class_names: Sequence[str] | None) -> TarSource:
    """The source for archives.

    Args:
        addresses: Paths or URLs of archives, which may have wildcards and braces as in val-{000..099}.tar.
        class_names: The names of the model's classes.
    """
    names = [name for address in addresses for name in with_braces_expanded(address)]
    folders = {_folder(name) for name in names}
    common = posixpath.commonpath(folders) if len(folders) > 1 and not any("://" in each for each in folders) else None
    if common is None:
        if len(folders) > 1:
            raise InputError(
                f"the tar archives {shown(sorted(names))} lie in several folders of a store; give one of them"
            )
        (common,) = folders
    start = len(common) + (0 if common.endswith("/") or not common else 1)
    return TarSource(place_of(common or "."), sorted({name[start:] for name in names}), class_names)


def _folder(name: str) -> str:
    """The folder of an archive, up to the first wildcard."""
    parts = name.split("/")
    first = next((i for i, part in enumerate(parts) if _has_wildcard(part)), len(parts) - 1)
    folder = "/".join(parts[: min(first, len(parts) - 1)])
    return folder or ("/" if name.startswith("/") else "")


def with_braces_expanded(text: str) -> list[str]:
    """A text for each alternative in braces, as shells have it: a{1,2} is a1 and a2, and {08..10} is 08, 09 and 10.

    Raises:
        InputError: When they are more than a million.
    """
    texts = [text]
    while any(_BRACES.search(each) for each in texts):
        expanded: list[str] = []
        for each in texts:
            match = _BRACES.search(each)
            if match is None:
                expanded.append(each)
                continue
            before, after = each[: match.start()], each[match.end() :]
            expanded += [f"{before}{middle}{after}" for middle in _alternatives(match[1], text)]
            if len(expanded) > _MOST_NAMES:
                raise InputError(f"{shown(text)}: stands for more than {_MOST_NAMES:,} names")
        texts = expanded
    return texts


def _alternatives(inner: str, text: str) -> list[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        return inner.split(",")
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MOST_NAMES:
        raise InputError(f"{shown(text)}: stands for more than {_MOST_NAMES:,} names")
    width = len(match[1]) if match[1].startswith("0") else 0
    step = 1 if last >= first else -1
    return [str(number).zfill(width) for number in range(first, last + step, step)]
