"""A source whose samples get labels, boxes and masks from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import PurePosixPath
from typing import Any

from torchpeek.engine.targets.naming import class_index
from torchpeek.errors import FormatError, InputError, shown
from torchpeek.runs.labels import Classes, FoundLabels, known_synsets, parsed_label
from torchpeek.runs.samples import Box, Sample
from torchpeek.runs.sources.file_places import FolderPlace, UrlPlace, place_and_name, place_of
from torchpeek.runs.sources.known_boxes import known_boxes
from torchpeek.runs.sources.source import Source
from torchpeek.runs.sources.table_rows import class_names_of_table, table_columns, table_format, table_rows
from torchpeek.store.json_values import parsed_json

Labels = Mapping[str, tuple[int | None, str | None]]


@dataclass(frozen=True)
class AnnotatedSource:
    """Samples of another source, with what else is known of them.

    Args:
        source: The other source.
        labels: Key -> class index and the name that was given; None where the labels are the source's own.
        labels_words: Where these come from, for the user.
        boxes: Key -> boxes.
        masks: A folder with a mask for each picture, of the same path without what comes after the last dot.
    """

    source: Source
    labels: Labels | None = None
    labels_words: str = ""
    boxes: Mapping[str, tuple[Box, ...]] | None = None
    masks: FolderPlace | UrlPlace | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Workers read: labels and boxes are in the list of samples."""
        return {**self.__dict__, "labels": None, "boxes": None}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it. Labels and boxes are in the list of samples."""
        return {**self.source.description, **({} if self.masks is None else {"masks": self.masks.address})}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return self.source.words

    @property
    def labels_from(self) -> str:
        """Where the labels come from."""
        return self.labels_words or self.source.labels_from

    def samples(self) -> Iterator[Sample]:
        """The samples, with what is known of them.

        Raises:
            InputError: When labels, boxes or masks are of no sample at all.
        """
        masks = None if self.masks is None else _masks(self.masks)
        unused = {"labels": self.labels, "boxes": self.boxes, "masks": masks}
        sample = None
        for sample in self.source.samples():
            if self.labels is not None:
                label, name = self.labels.get(sample.key, (None, None))
                sample = replace(sample, label=label, label_name=name)
            if self.boxes is not None:
                sample = replace(sample, boxes=self.boxes.get(sample.key, ()))
            if masks is not None:
                sample = replace(sample, mask=masks.get(_stem(sample.key)))
            for what, key in (("labels", sample.key), ("boxes", sample.key), ("masks", _stem(sample.key))):
                if key in (unused.get(what) or ()):
                    del unused[what]
            yield sample
        for what, known in unused.items():
            if known and sample is not None:
                first = shown(next(iter(known)))
                raise InputError(
                    f"{what}: none of {len(known):,} is of a picture of {self.words}; the first is of {first}, and the "
                    f"last picture is {shown(sample.key)}"
                )

    def read(self, sample: Sample) -> bytes:
        """The bytes of the picture."""
        return self.source.read(sample)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask."""
        if self.masks is None or sample.mask is None:
            return self.source.read_mask(sample)
        return self.masks.read(sample.mask)


def _stem(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _masks(folder: FolderPlace | UrlPlace) -> dict[str, str]:
    """Path without its ending -> path, of the files of a folder."""
    return {_stem(name): name for name in folder.names(lambda name: True)}


def annotated(
    source: Source, class_names: Sequence[str] | None, *, labels: Any = None, boxes: Any = None, masks: Any = None
) -> Source:
    """A source with labels, boxes and masks, as `run` takes them. The source itself where there are none.

    Args:
        source: The source.
        class_names: The names of the model's classes.
        labels: Key -> class index or name, or the path of a table with the columns path and label.
        boxes: Key -> boxes, or the path of a JSON file with them.
        masks: A folder with a mask for each picture.

    Returns:
        The source.

    Raises:
        InputError: When they cannot be read.
    """
    if labels is None and boxes is None and masks is None:
        return source
    found, words = (None, "") if labels is None else _labels(labels, class_names, source)
    return AnnotatedSource(
        source, found, words, None if boxes is None else _boxes(boxes), None if masks is None else _mask_folder(masks)
    )


def _mask_folder(masks: Any) -> FolderPlace | UrlPlace:
    if isinstance(masks, (str, PathLike)):
        place = place_of(os.fspath(masks))
        if place.is_folder():
            return place
    raise InputError(f"masks is {shown(masks)}; allowed: a folder with a mask for each picture")


def _labels(labels: Any, class_names: Sequence[str] | None, source: Source) -> tuple[Labels, str]:
    if isinstance(labels, (str, PathLike)):
        return _labels_of_table(os.fspath(labels), class_names, source)
    if not isinstance(labels, Mapping):
        raise InputError(
            f"labels is {shown(labels)}; allowed: a dict from the key of a picture to its class, or the path of a "
            "table with the columns path and label"
        )
    return {str(key): _known_label(key, value, class_names) for key, value in labels.items()}, "labels= gives them"


def _known_label(key: Any, value: Any, class_names: Sequence[str] | None) -> tuple[int | None, str | None]:
    label = parsed_label(value, f"labels of {shown(key)}")
    if label is None:
        return None, None
    index = class_index(label, class_names)
    if isinstance(label, str):
        return index, label
    Classes(class_names).check_index(index, f"labels of {shown(key)}")
    return index, None if class_names is None else class_names[index]


def _labels_of_table(path: str, class_names: Sequence[str] | None, source: Source) -> tuple[Labels, str]:
    if table_format(path) is None:
        raise InputError(f"labels is {shown(path)}; allowed: a table that ends in .csv, .tsv, .jsonl or .parquet")
    place, name = place_and_name(path)
    columns = table_columns(place, name)
    if missing := {"path", "label"} - set(columns):
        raise InputError(f"{path}: has no column {sorted(missing)[0]!r}; needed: the columns path and label")
    found = FoundLabels(Classes(class_names, known_synsets(class_names)), class_names_of_table(place, name))
    root = f"{source.description.get('path', '')}/"
    labels = {
        str(row["path"]).removeprefix(root).removeprefix("./"): found.added(row.get("label"), f"{path}, row {number}")
        for number, _, row in table_rows(place, name, ("path", "label"))
        if row.get("path")
    }
    return labels, f"the column label of {path} has {found.words or 'nothing'}"


def _boxes(boxes: Any) -> dict[str, tuple[Box, ...]]:
    if isinstance(boxes, (str, PathLike)):
        place, name = place_and_name(os.fspath(boxes))
        text = place.read(name, FormatError)
        boxes = parsed_json(text, str(boxes), allowed="an object from the path of a picture to its boxes")
    if not isinstance(boxes, Mapping):
        raise InputError(
            f"boxes is {shown(boxes)}; allowed: a dict from the key of a picture to its boxes, or a JSON file"
        )
    return {str(key): known_boxes(value, str(key)) for key, value in boxes.items()}
