"""A folder of pictures, here or behind a URL, whose sub-folders may be classes, and parts such as train and val."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchpeek.runs.labels import ClassFolders, are_splits, class_folders, known_synsets
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources.file_places import FolderPlace, UrlPlace, picture_names

_RAW = "bytes:"  # before the hexadecimal digits of a path that is no UTF-8


class FolderSource:
    """The pictures of a folder and of its sub-folders, sorted by name within each folder.

    Args:
        place: The folder.
        classes: Which class the name of a sub-folder stands for; None where folders are no classes.
        has_splits: Whether the folders right below are parts of the data set.
    """

    def __init__(
        self, place: FolderPlace | UrlPlace, classes: ClassFolders | None = None, has_splits: bool = False
    ) -> None:
        self.place, self.classes, self.has_splits = place, classes, has_splits

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "folder", "path": self.place.address}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the folder {self.place.address}"

    @property
    def labels_from(self) -> str:
        """How the folders were matched with classes."""
        return "" if self.classes is None else self.classes.words

    def samples(self) -> Iterator[Sample]:
        """The samples, folder by folder."""
        above, label, label_name, split = None, None, None, None
        for name in self.place.names(picture_names()):
            folder, _, _ = name.rpartition("/")
            if folder != above:
                above = folder
                split = folder.partition("/")[0] if self.has_splits and folder else None
                label, label_name = (None, None) if self.classes is None else self.classes.of(name)
            key = name.encode(errors="backslashreplace").decode()
            location = "" if key == name else _RAW + os.fsencode(name).hex()
            yield Sample(key, location, label, label_name, split=split)

    def read(self, sample: Sample) -> bytes:
        """The bytes of the file. Raises PictureError where it would lie outside of the folder."""
        name = sample.location or sample.key
        if name.startswith(_RAW):
            name = os.fsdecode(bytes.fromhex(name.removeprefix(_RAW)))
        return self.place.read(name)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask's file."""
        return None if sample.mask is None else self.place.read(sample.mask)


def folder_source(place: FolderPlace | UrlPlace, class_names: Sequence[str] | None) -> FolderSource:
    """The source for a folder: its sub-folders, or those of its parts, are matched with the classes of the model.

    Args:
        place: The folder.
        class_names: The names of the model's classes.

    Returns:
        The source, whose `labels_from` says how they were matched.
    """
    folders = place.folders()
    if has_splits := are_splits(folders):
        below = [type(place)(f"{place.address}/{folder}") for folder in folders]
        folders = sorted({name for each in below for name in each.folders()})
    return FolderSource(place, class_folders(folders, class_names, known_synsets(class_names)), has_splits)
