"""A source whose samples get labels, boxes and masks from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torchpeek.engine.targets.naming import class_index
from torchpeek.errors import FormatError, InputError, PictureError, shown
from torchpeek.runs.samples import Box, Sample
from torchpeek.runs.sources.source import Source
from torchpeek.store.json_values import parsed_json
from torchpeek.store.regular_files import read_regular


@dataclass(frozen=True)
class AnnotatedSource:
    """Samples of another source, with what else is known of them.

    Args:
        source: The other source.
        labels: Key -> class index and the name that was given; None where the labels are the source's own.
        boxes: Key -> boxes.
        masks: A folder with a mask for each picture, of the same path without what comes after the last dot.
    """

    source: Source
    labels: Mapping[str, tuple[int | None, str | None]] | None = None
    boxes: Mapping[str, tuple[Box, ...]] | None = None
    masks: Path | None = None

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it. Labels and boxes are in the list of samples."""
        return {**self.source.description, **({} if self.masks is None else {"masks": str(self.masks)})}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return self.source.words

    @property
    def labels_from(self) -> str:
        """Where the labels come from."""
        return self.source.labels_from if self.labels is None else "labels= gives them"

    def samples(self) -> Iterator[Sample]:
        """The samples, with what is known of them."""
        masks = None if self.masks is None else _masks(self.masks)
        for sample in self.source.samples():
            if self.labels is not None:
                label, name = self.labels.get(sample.key, (None, None))
                sample = replace(sample, label=label, label_name=name)
            if self.boxes is not None:
                sample = replace(sample, boxes=self.boxes.get(sample.key, ()))
            if masks is not None:
                sample = replace(sample, mask=masks.get(_stem(sample.key)))
            yield sample

    def read(self, sample: Sample) -> bytes:
        """The bytes of the picture."""
        return self.source.read(sample)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask."""
        if self.masks is None or sample.mask is None:
            return self.source.read_mask(sample)
        path = Path(sample.mask)
        if path.is_absolute() or ".." in path.parts:
            raise PictureError(f"{sample.mask}: is no path inside of the folder {self.masks}")
        return read_regular(self.masks / path, PictureError)


def _stem(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _masks(folder: Path) -> dict[str, str]:
    """Path without its ending -> path, of the files of a folder."""
    found = {}
    for file in folder.rglob("*"):
        relative = file.relative_to(folder).as_posix()
        found[_stem(relative)] = relative
    return found


def annotated(
    source: Source, class_names: Sequence[str] | None, *, labels: Any = None, boxes: Any = None, masks: Any = None
) -> Source:
    """A source with labels, boxes and masks, as `run` takes them. The source itself where there are none.

    Raises:
        InputError: When they cannot be read.
    """
    if labels is None and boxes is None and masks is None:
        return source
    if masks is not None and not Path(masks).is_dir():
        raise InputError(f"masks is {shown(masks)}; allowed: a folder with a mask for each picture")
    return AnnotatedSource(
        source,
        None if labels is None else _labels(labels, class_names),
        None if boxes is None else _boxes(boxes),
        None if masks is None else Path(masks),
    )


def _labels(labels: Any, class_names: Sequence[str] | None) -> dict[str, tuple[int | None, str | None]]:
    if not isinstance(labels, Mapping):
        raise InputError(f"labels is {shown(labels)}; allowed: a dict from the key of a picture to its class")
    return {str(key): known_label(value, class_names) for key, value in labels.items()}


def known_label(value: Any, class_names: Sequence[str] | None) -> tuple[int | None, str | None]:
    """Class index and name of what a data set says of a sample: an index, a name, or nothing."""
    if value is None or value == "":
        return None, None
    if isinstance(value, str) and not value.lstrip("-").isdecimal():
        return class_index(value, class_names), value
    index = class_index(int(value), class_names)
    return index, None if class_names is None else class_names[index]


def _boxes(boxes: Any) -> dict[str, tuple[Box, ...]]:
    if isinstance(boxes, (str, Path)):
        text = read_regular(boxes, FormatError).decode(errors="replace")
        boxes = parsed_json(text, str(boxes), allowed="an object from the path of a picture to its boxes")
    if not isinstance(boxes, Mapping):
        raise InputError(
            f"boxes is {shown(boxes)}; allowed: a dict from the key of a picture to its boxes, or a JSON file"
        )
    return {str(key): known_boxes(value, str(key)) for key, value in boxes.items()}


def known_boxes(value: Any, key: str) -> tuple[Box, ...]:
    """The boxes of a sample, from a box, a list of boxes, or their JSON."""
    if isinstance(value, str):
        value = json.loads(value) if value else []
    listed = list(value) if value is not None else []
    if listed and isinstance(listed[0], (int, float)):
        listed = [listed]
    try:
        boxes = [tuple(map(float, box)) for box in listed]
    except (TypeError, ValueError) as error:
        raise InputError(f"the boxes of {shown(key)} are {shown(value)}; allowed: left, top, right, bottom") from error
    if any(len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]) for box in boxes):
        raise InputError(f"the boxes of {shown(key)} are {shown(value)}; allowed: left, top, right, bottom in pixels")
    return tuple((box[0], box[1], box[2], box[3]) for box in boxes)
