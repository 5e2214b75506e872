"""Regions of objects in pictures: a JSON file of boxes, or a folder of masks."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from torchpeek.errors import FormatError
from torchpeek.store.json_values import MOST_BYTES, parsed_json
from torchpeek.store.pictures import find_pictures
from torchpeek.store.regular_files import read_regular

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

_MOST = 2.0**53  # pixels: a larger number is no place in a picture, or infinite

_ALLOWED = '{"cat.jpg": [[left, top, right, bottom], ...], ...}'


def read_boxes(path: str | PathLike[str]) -> dict[str, list[Box]]:
    """Read a JSON file of boxes: name or path of the picture -> boxes. Raises FormatError if it is not one."""
    data = read_regular(path, most=MOST_BYTES)
    boxes_by_name = parsed_json(data, str(path), allowed=f"allowed: {_ALLOWED}", object_pairs_hook=_without_repeated)
    if not isinstance(boxes_by_name, dict):
        raise FormatError(f"{path}: a JSON {type(boxes_by_name).__name__}; allowed: {_ALLOWED}")
    for name, boxes in boxes_by_name.items():
        if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
            raise FormatError(
                f"{path}: the boxes of {name!r} are {json.dumps(boxes)[:200]}; allowed: a list of [left, top, right, "
                "bottom] in pixels, with left < right and top < bottom"
            )
    return {name: [tuple(map(float, box)) for box in boxes] for name, boxes in boxes_by_name.items()}  # type: ignore[misc]  # 4


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r:.80} is there twice")
    return found


def find_masks(folder: str | PathLike[str]) -> dict[str, list[Path]]:
    """Return the pictures in a folder, without subfolders, by their stem.

    Raises FormatError if there is no such folder, and PictureError if it has no pictures.
    """
    if not Path(folder).is_dir():
        raise FormatError(f"{folder}: no such folder; give the folder of the masks")
    masks: dict[str, list[Path]] = {}
    for file in find_pictures([str(folder)]):
        masks.setdefault(file.stem, []).append(file)
    return masks


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) and -_MOST < each < _MOST for each in box):
        return False
    left, top, right, bottom = box
    return bool(left < right and top < bottom)
