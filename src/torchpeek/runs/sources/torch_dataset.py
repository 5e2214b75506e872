"""A torch Dataset: the user's object, or what a callable of the user's module returns."""

from __future__ import annotations

import importlib
import operator
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from torchpeek.errors import InputError, PictureError, closest, shown, type_shown
from torchpeek.runs.labels import Classes, FoundLabels, known_synsets
from torchpeek.runs.samples import Sample
from torchpeek.store.regular_files import read_regular
from torchpeek.store.upright_images import upright_rgb
from torchpeek.system_errors import is_from_outside

_CALLABLE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_ALLOWED = "a PIL image, a path, the bytes of a file, or (one of these, label)"


class DatasetSource:
    """The items of a torch Dataset: PIL images, paths, bytes, or pairs of one of these and a label.

    Args:
        dataset: The Dataset; None for that of a finished run. It is not imported to open a run.
        spec: `package.module:callable`, if it came from there.
        kind: The name of its class.
        class_names: The names of the model's classes.
    """

    def __init__(self, dataset: Any, spec: str | None, kind: str, class_names: Sequence[str] | None = None) -> None:
        self._dataset, self._spec, self._kind, self._class_names = dataset, spec, kind, class_names
        self._imports = dataset is not None and spec is not None
        self._labels: FoundLabels | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What has a name in a module is imported again on another machine; other objects travel."""
        dataset = None if self._imports else self._dataset
        return {**self.__dict__, "_dataset": dataset, "_class_names": None, "_labels": None}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "dataset", "callable": self._spec, "type": self._kind}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the Dataset {self._spec or self._kind}"

    @property
    def labels_from(self) -> str:
        """What the items say. It is known when all samples were listed."""
        words = "" if self._labels is None else self._labels.words
        return words and f"the Dataset has {words}"

    @property
    def _items(self) -> Any:
        items = self._dataset
        if items is None and self._imports:
            items = self._dataset = _imported(str(self._spec))
        if items is None:
            raise PictureError(
                f"{self.words} is code, which is not imported to read a run. Next: give the Dataset as data="
            )
        return items

    def samples(self) -> Iterator[Sample]:
        """The samples, item by item. Their labels are the attribute `targets` where there is one, else each is read."""
        items = self._items
        numbered = getattr(items, "classes", None)
        is_named = isinstance(numbered, (list, tuple)) and all(isinstance(each, str) for each in numbered)
        classes = Classes(self._class_names, known_synsets(self._class_names))
        self._labels = FoundLabels(classes, numbered if is_named else None)
        targets: Any = getattr(items, "targets", None)
        count = len(items)
        if targets is not None and not (is_dataset(targets) and len(targets) == count):
            targets = None
        are_pairs = targets is None
        for number in range(count):
            label = None
            if targets is not None:
                label = targets[number]
            elif are_pairs:
                label, was_read = self._label(number)
                are_pairs = label is not None or not was_read
            index, name = self._labels.added(label, f"{self.words}, item {number}")
            yield Sample(str(number), "", index, name)

    def _label(self, number: int) -> tuple[Any, bool]:
        """The label of an item, and whether the item could be read."""
        try:
            return _parts(self._item(number))[1], True
        except PictureError as error:
            if is_from_outside(error):
                raise
            return None, False  # it fails again when it is read, and is a row of errors then

    def _item(self, number: int) -> Any:
        items = self._items
        try:
            return items[number]
        except Exception as error:  # the user's code may raise anything
            if is_from_outside(error):
                raise
            raise PictureError(f"item {number} of {self.words}: {type(error).__name__}: {error}") from error

    def read(self, sample: Sample) -> bytes:
        """The bytes of the file; of a PIL image, its pixels as a PPM file, which are the same on every machine."""
        if not sample.key.isdecimal():
            raise PictureError(f"{sample.key}: is no number of an item of {self.words}")
        number = int(sample.key)
        return _picture_bytes(_parts(self._item(number))[0], f"item {number} of {self.words}")

    def read_mask(self, sample: Sample) -> bytes | None:
        """None: a Dataset has no masks that are known by their type."""
        return None


def _parts(item: Any) -> tuple[Any, Any]:
    """Picture and label of an item."""
    if isinstance(item, Mapping):
        return item.get("image", item.get("path")), item.get("label")
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    return item, None


def _picture_bytes(picture: Any, words: str) -> bytes:
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, (str, PathLike)):
        return read_regular(os.fspath(picture), PictureError)
    if isinstance(picture, Image.Image):
        rgb = upright_rgb(picture).image
        return b"P6\n%d %d\n255\n" % rgb.size + rgb.tobytes()
    has_shape = " Next: give the Dataset without the transform that makes tensors; torchpeek preprocesses" * hasattr(
        picture, "shape"
    )
    raise PictureError(f"{words} is {type_shown(picture)}; allowed: {_ALLOWED}.{has_shape}")


def is_dataset(data: Any) -> bool:
    """Whether this has a length, and items by number."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def is_callable_spec(text: str) -> bool:
    """Whether a text is package.module:callable."""
    return _CALLABLE.fullmatch(text) is not None


def dataset_source(data: Any, class_names: Sequence[str] | None, spec: str | None = None) -> DatasetSource:
    """The source for a Dataset.

    Args:
        data: The Dataset.
        class_names: The names of the model's classes.
        spec: `package.module:callable`, if it came from there.

    Raises:
        InputError: When it has no length or no items by number, or its first item is none that can be read.
    """
    if not is_dataset(data):
        raise InputError(f"data is {type_shown(data)}; a Dataset needs __len__ and __getitem__, so that it can go on")
    kind = f"{type(data).__module__}.{type(data).__qualname__}"
    source = DatasetSource(data, spec, kind, class_names)
    try:
        count = operator.index(len(data))
    except (TypeError, NotImplementedError) as error:
        if is_from_outside(error):
            raise
        raise InputError(f"data is {type_shown(data)}, whose length is unknown; give a Dataset that has one") from error
    if count:
        try:
            picture = _parts(data[0])[0]
        except Exception as error:
            if is_from_outside(error):
                raise
            return source  # a bad item is a row of errors, and never a stop
        if not isinstance(picture, (bytes, bytearray, memoryview, str, PathLike, Image.Image)):
            try:
                _picture_bytes(picture, f"item 0 of {source.words}")
            except PictureError as error:
                if is_from_outside(error):
                    raise
                raise InputError(str(error)) from error
    return source


def called_dataset_source(spec: str, class_names: Sequence[str] | None) -> DatasetSource:
    """The source for `package.module:callable`, which is imported, also from the working directory, and called.

    Raises:
        InputError: When there is no such module or callable, or it gives no Dataset.
    """
    return dataset_source(_imported(spec), class_names, spec)


def _imported(spec: str) -> Any:
    match = _CALLABLE.fullmatch(spec)
    if match is None:
        raise InputError(f"data is {shown(spec)}; allowed: package.module:callable")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        attribute: Any = importlib.import_module(match["module"])
        for part in match["name"].split("."):
            attribute = getattr(attribute, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{match['module']}.".startswith(f"{error.name}."):
            raise  # the user's module exists, and one of its imports does not
        raise InputError(
            f"no module {error.name!r} for the data {spec}, neither installed nor in the working directory"
        ) from error
    except AttributeError as error:
        raise InputError(
            f"module {match['module']!r} has no {match['name']!r}{closest(match['name'], dir(attribute))}"
        ) from error
    finally:
        sys.path.remove(here)
    return attribute() if callable(attribute) and not is_dataset(attribute) else attribute
