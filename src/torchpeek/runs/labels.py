"""Which class a folder's name stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a data set whose folders have their names.

    Args:
        labels: Name of a folder -> class index.
        words: How the folders were matched, for the user.
    """

    labels: Mapping[str, int]
    words: str

    def of(self, path: str) -> tuple[int | None, str | None]:
        """The class index and the folder's name, of a path with slashes: the first folder that is a class counts."""
        for folder in path.split("/")[:-1]:
            if folder in self.labels:
                return self.labels[folder], folder
        return None, None


def class_folders(
    folders: Iterable[str], class_names: Sequence[str] | None, synsets: Sequence[str] | None
) -> ClassFolders | None:
    """Match the names of folders with the classes of a model. None where not all of them are classes.

    Args:
        folders: The names.
        class_names: The names of the classes, by class index.
        synsets: The WordNet numbers of the classes, by class index, such as n02123159, where they are known.
    """
    names = sorted(set(folders))
    if not names or class_names is None:
        return None
    if all(map(_SYNSET.fullmatch, names)):
        known = synsets or (names if len(names) == len(class_names) else None)
        if known is None:
            return None
        index = {synset: label for label, synset in enumerate(known)}
        if all(name in index for name in names):
            return ClassFolders({name: index[name] for name in names}, "the folders are synset numbers")
        return None
    index = {}
    for label, name in enumerate(class_names):
        index.setdefault(_plain(name), label)
    if all(_plain(name) in index for name in names):
        return ClassFolders({name: index[_plain(name)] for name in names}, "the folders are class names")
    return None


def _plain(name: str) -> str:
    """The name without what differs between a class name and a folder's: case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_\-]+", " ", name.split(",")[0]).strip().casefold()
