"""The region of the object in each picture: from --boxes or --masks to the keywords of tp.evaluate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from torchpeek.errors import InputError, OptionError
from torchpeek.metrics import METRICS
from torchpeek.picture import Picture
from torchpeek.store import find_masks, read_boxes, read_mask

Boxes: TypeAlias = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Regions:
    """The file of the mask, or the boxes, of each picture that has one."""

    source: str = ""
    regions: Mapping[Path, Path | Boxes] | None = None  # None where no metric needs a region

    def keywords(self, file: Path, picture: Picture) -> dict[str, Any]:
        """The keywords of `tp.evaluate`. Raises InputError where there is no region, or it does not fit the picture."""
        if self.regions is None:
            return {}
        if file not in self.regions:
            raise InputError(f"{self.source} does not say where its object is")
        region = self.regions[file]
        if isinstance(region, Path):
            mask = torch.from_numpy(read_mask(region))
            _check_size(region, mask.shape, picture)
            return {"masks": mask.unsqueeze(0)}
        for box in region:
            _check_inside(box, picture)
        return {"boxes": [region]}


def read_regions(pictures: Sequence[Path], metrics: Iterable[str], boxes: Path | None, masks: Path | None) -> Regions:
    """The regions of these pictures, if a metric needs them.

    Raises OptionError for options that do not fit each other or the pictures, and FileError for a file that cannot be
    read.
    """
    needing = [name for name in metrics if METRICS[name].needs == "region"]
    named = [name for name, value in (("--boxes", boxes), ("--masks", masks)) if value is not None]
    if len(named) > 1:
        raise OptionError("--boxes and --masks both say where the object is; give one")
    if needing and not named:
        raise OptionError(
            f"{', '.join(needing)} {'needs' if len(needing) == 1 else 'need'} the region of the object; give it with "
            "--boxes FILE or --masks FOLDER, or name other metrics"
        )
    if named and not needing:
        names = ", ".join(name for name, metric in METRICS.items() if metric.needs == "region")
        raise OptionError(
            f"{named[0]} is for metrics that need the region of the object, and --metric names none of them: {names}"
        )
    if boxes is not None:
        return Regions(str(boxes), _boxes_of(pictures, boxes))
    return Regions(str(masks), _masks_of(pictures, masks)) if masks is not None else Regions()


def _boxes_of(pictures: Sequence[Path], source: Path) -> dict[Path, Path | Boxes]:
    """The boxes of each picture, by its path, or else by its file name."""
    boxes = read_boxes(source)
    by_path = {os.path.abspath(name): each for name, each in boxes.items() if os.path.basename(name) != name}
    regions: dict[Path, Path | Boxes] = {}
    by_name = []
    for file in pictures:
        if (path := os.path.abspath(file)) in by_path:
            regions[file] = by_path[path]
        elif file.name in boxes:
            regions[file] = boxes[file.name]
            by_name.append(file)
    _check_distinct(by_name, lambda file: file.name, f"{source}: name them by their paths")
    if not regions:
        raise OptionError(
            f"--boxes {source}: has none of the {len(pictures)} pictures, such as {pictures[0].name!r}; it has "
            f"{', '.join(map(repr, list(boxes)[:3])) or 'none at all'}. Next: name them by file name, or path"
        )
    return regions


def _masks_of(pictures: Sequence[Path], source: Path) -> dict[Path, Path | Boxes]:
    masks = find_masks(source)
    masked = [file for file in pictures if file.stem in masks]
    _check_distinct(masked, lambda file: file.stem, f"{source}: evaluate them one folder after the other")
    for file in masked:
        if len(masks[file.stem]) > 1:
            listed = ", ".join(each.name for each in masks[file.stem])
            raise OptionError(f"--masks {source}: {listed} are all masks of {file.name}; leave one there")
        if file.exists() and file.samefile(masks[file.stem][0]):
            raise OptionError(f"--masks {source}: has {file.name} itself, and not its mask; give the masks' folder")
    if not masked:
        raise OptionError(
            f"--masks {source}: has a mask of none of the {len(pictures)} pictures, such as {pictures[0].stem!r}; it "
            f"has {', '.join(map(repr, list(masks)[:3]))}. Next: give each mask the name of its picture"
        )
    return {file: masks[file.stem][0] for file in masked}


def _check_distinct(files: Sequence[Path], name_of: Callable[[Path], str], advice: str) -> None:
    """Raise OptionError where two pictures of one name would get the same region."""
    for name, count in Counter(map(name_of, files)).items():
        if count > 1:
            raise OptionError(
                f"{count} pictures are called {name!r}, and the region of one is not the others', {advice}"
            )


def _check_size(file: Path, shape: torch.Size, picture: Picture) -> None:
    width, height = picture.original_geometry.size
    if tuple(shape) != (height, width):
        raise InputError(f"its mask {file} is {shape[1]} x {shape[0]}, and the picture {width} x {height}")


def _check_inside(box: Sequence[float], picture: Picture) -> None:
    left, top, right, bottom = box
    width, height = picture.original_geometry.size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise InputError(f"its box {list(box)} lies outside of the picture, which is {width} x {height}")
