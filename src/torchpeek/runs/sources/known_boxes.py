"""The boxes of a sample, checked."""

from __future__ import annotations

import json
from typing import Any

from torchpeek.errors import InputError, shown
from torchpeek.runs.samples import Box
from torchpeek.system_errors import is_from_outside


def known_boxes(value: Any, key: str) -> tuple[Box, ...]:
    """The boxes of a sample, from a box, a list of boxes, or their JSON.

    Args:
        value: Left, top, right and bottom in pixels, a list of such boxes, their JSON, or None for no boxes.
        key: What the sample is called in errors.

    Raises:
        InputError: When it is something else.
    """
    if value is None:
        return ()
    error = InputError(f"the boxes of {shown(key)} are {shown(value)}; allowed: left, top, right, bottom in pixels")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as reason:
            if is_from_outside(reason):
                raise
            raise error from reason
    try:
        listed = list(value)
        if listed and isinstance(listed[0], (int, float)):
            listed = [listed]
        boxes = [tuple(map(float, box)) for box in listed]
    except (TypeError, ValueError) as reason:
        if is_from_outside(reason):
            raise
        raise error from reason
    if any(len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]) for box in boxes):
        raise error
    return tuple((box[0], box[1], box[2], box[3]) for box in boxes)
