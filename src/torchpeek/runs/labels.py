"""Which class of a model a label of a data set stands for: the name of a folder, a class name, a synset, a number."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torchpeek.errors import ClassNotFound, InputError, listed_names, shown
from torchpeek.system_errors import ignored

_SYNSET = re.compile(r"n\d{8}")
_INDEX = re.compile(r"-?\d{1,9}(\.0+)?")

_MOST_KNOWN = 100_000  # labels that are not looked up again

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
"""Names of folders that are parts of a data set, and not classes."""


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
    known = Classes(class_names, synsets)
    indices = {name: known.of_name(name) for name in names}
    found = {name: index for name, index in indices.items() if index is not None}
    if all(map(_SYNSET.fullmatch, names)):
        if len(found) == len(names):
            return ClassFolders(found, "the folders are synset numbers")
        if len(names) == len(class_names):
            in_sequence = {name: label for label, name in enumerate(names)}
            return ClassFolders(
                in_sequence, "the folders are synset numbers, as many as classes: sorted, they are these"
            )
        return None
    return ClassFolders(found, "the folders are class names") if len(found) == len(names) else None


def are_splits(folders: Sequence[str]) -> bool:
    """Whether all of these folders are parts of a data set, such as train and val."""
    return bool(folders) and all(name.casefold() in _SPLITS for name in folders)


@dataclass(frozen=True)
class Classes:
    """The classes of a model, found by what data sets call them.

    Args:
        names: The names of the classes, by class index; None where the model has none.
        synsets: Their WordNet numbers, where they are known.
    """

    names: Sequence[str] | None
    synsets: Sequence[str] | None = None
    _by_name: Mapping[str, set[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[str, set[int]] = {}
        for index, name in enumerate(self.names or ()):
            for spelling in _spellings(name):
                by_name.setdefault(spelling, set()).add(index)
        for index, synset in enumerate(self.synsets or ()):
            by_name.setdefault(synset, set()).add(index)
        object.__setattr__(self, "_by_name", by_name)

    def of_name(self, name: str) -> int | None:
        """The index of the one class that this name or synset stands for; None where there is none, or several."""
        for spelling in (name, _plain(name), _plain(name.split(",")[0])):
            found = self._by_name.get(spelling, ())
            if len(found) == 1:
                return next(iter(found))
            if found:
                return None
        return None

    def check_index(self, index: int, where: str) -> int:
        """The index, if there is such a class. Raises ClassNotFound, which says where it stands, if not."""
        if index < 0 or (self.names is not None and index >= len(self.names)):
            most = "" if self.names is None else f"; the model has {len(self.names)}, 0 to {len(self.names) - 1}"
            raise ClassNotFound(f"{where}: no class {index}{most}")
        return index


def _plain(name: str) -> str:
    """The name without what differs between a class name and a folder's: case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def _spellings(name: str) -> set[str]:
    """All that a class is called: some lists give synonyms, as in "tench, Tinca tinca"."""
    return {name, _plain(name), *(_plain(each) for each in name.split(","))}


def parsed_label(value: Any, where: str) -> int | str | None:
    """What a data set says of a sample: a class index, a name, or None for nothing, as "", -1 and NaN are.

    Raises:
        InputError: When it is something else.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        if not _INDEX.fullmatch(text):
            return text
        value = float(text)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        if hasattr(value, "__index__") and not isinstance(value, (bool, float)):  # a number of NumPy, or a tensor
            return parsed_label(value.__index__(), where)
        raise InputError(f"{where}: the label is {shown(value)}; allowed: a class index or a name")
    return None if value == -1 else int(value)


class FoundLabels:
    """What the labels of a data set are, found by going through all of them.

    Args:
        classes: The classes of the model.
        numbered: The names of the data set's own classes, if its labels are numbers of these.
    """

    def __init__(self, classes: Classes, numbered: Sequence[str] | None = None) -> None:
        self._classes = classes
        self._names: dict[str, int | None] = {}
        self._known: dict[int | str, tuple[int | None, str | None]] = {}
        self._has_indices = False
        self._numbered = numbered
        matched = [] if numbered is None else [classes.of_name(name) for name in numbered]
        self._own = matched if any(index is not None for index in matched) else None
        self._as_they_are = self._own is None and (
            numbered is None or classes.names is None or len(numbered) == len(classes.names)
        )

    def added(self, value: Any, where: str) -> tuple[int | None, str | None]:
        """The same as `of`, and `words` tells of this label. Raises InputError for one that cannot be."""
        label, name = self.of(value, where)
        self._has_indices |= name not in self._names and (label is not None or name is not None)
        return label, name

    def is_class(self, name: str) -> bool:
        """Whether this is the name of a class of the model."""
        return self._classes.of_name(name) is not None

    def of(self, value: Any, where: str) -> tuple[int | None, str | None]:
        """Class index and name of a label, each None where it is not known."""
        if type(value) not in (int, str):
            return self._of(value, where)
        if value not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[value] = self._of(value, where)
        return self._known[value]

    def _of(self, value: Any, where: str) -> tuple[int | None, str | None]:
        label = parsed_label(value, where)
        if label is None:
            return None, None
        if isinstance(value, str) and self._classes.names is not None and value.strip() in self._classes.names:
            label = value.strip()  # digits may be names, too
        if isinstance(label, str):
            if label not in self._names:
                self._names[label] = self._classes.of_name(label)
            return self._names[label], label
        if self._numbered is not None:
            if not 0 <= label < len(self._numbered):
                raise ClassNotFound(f"{where}: no class {label}; the data set has {len(self._numbered)}")
            name = self._numbered[label]
            if self._own is not None:
                return self._own[label], name
            return (label if self._as_they_are else None), name
        self._classes.check_index(label, where)
        return label, None if self._classes.names is None else self._classes.names[label]

    @property
    def words(self) -> str:
        """What they are, for the user; empty where there are none."""
        parts = []
        if self._has_indices and self._numbered is not None:
            parts.append(self._numbered_words())
        elif self._has_indices:
            parts.append("class indices")
        if self._names:
            synsets = all(map(_SYNSET.fullmatch, self._names))
            parts.append(("synset numbers" if synsets else "class names") + _unknown(self._names.items()))
        return " and ".join(parts)

    def _numbered_words(self) -> str:
        names = self._numbered or ()
        if self._own is not None:
            return "the data set's classes, by their names" + _unknown(zip(names, self._own, strict=True))
        if self._as_they_are:
            return "the numbers of the data set's classes, whose names are no classes of the model"
        return f"the data set's {len(names)} classes, of which none is a class of the model"


def _unknown(names: Iterable[tuple[str, int | None]]) -> str:
    listed = list(names)
    unknown = sorted(name for name, index in listed if index is None)
    if not unknown:
        return ""
    return (
        f" ({len(unknown)} of {len(listed)} are no class of the model, or of several: {listed_names(unknown, most=3)})"
    )


def known_synsets(class_names: Sequence[str] | None) -> list[str] | None:
    """The WordNet numbers of a model's classes, where these are those of an ImageNet and timm is installed.

    The names are compared with timm's: a model of as many other classes has no synsets.
    """
    if class_names is None:
        return None
    spec = importlib.util.find_spec("timm")  # it is not imported: that takes seconds, and this is a text file
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "data" / "_info"
    with ignored():
        of_this_length = [each for each in _synset_lists(folder) if len(each) == len(class_names)]
        lemmas = dict(_pairs(folder / "imagenet_synset_to_lemma.txt")) if of_this_length else {}
        for synsets in of_this_length:
            if _agree(class_names, [lemmas.get(each, "") for each in synsets]):
                return synsets
    return None


@cache
def _synset_lists(folder: Path) -> list[list[str]]:
    return [file.read_text().split() for file in sorted(folder.glob("imagenet*_synsets.txt"))]


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        synset, _, lemma = line.partition("\t")
        yield synset, lemma


def _agree(class_names: Sequence[str], lemmas: Sequence[str]) -> bool:
    """Whether nine of ten names are among the lemmas of the same number. Lists of names differ in single words."""
    same = sum(
        not _spellings(name).isdisjoint(_spellings(lemma)) for name, lemma in zip(class_names, lemmas, strict=True)
    )
    return same >= 0.9 * len(class_names)
