"""Where the object is in each picture: from --boxes or --masks to what tp.evaluate is given."""

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
    """For each picture that has one the file of its mask, or its boxes."""

    source: str = ""
    known: Mapping[Path, Path | Boxes] | None = None  # None where no metric asks

    def of(self, file: Path, picture: Picture) -> dict[str, Any]:
        """Keywords of `tp.evaluate`. Raises InputError where there is none, or it is not of that picture."""
        if self.known is None:
            return {}
        if file not in self.known:
            raise InputError(f"{self.source} does not say where its object is")
        found = self.known[file]
        if isinstance(found, Path):
            mask = torch.from_numpy(read_mask(found))
            _check_size(found, mask.shape, picture)
            return {"masks": mask.unsqueeze(0)}
        for box in found:
            _check_inside(box, picture)
        return {"boxes": [found]}


def regions_of(found: Sequence[Path], metrics: Iterable[str], boxes: Path | None, masks: Path | None) -> Regions:
    """Those of the pictures that were found, as far as a metric asks for them.

    Raises OptionError for options that do not go together, or with the pictures, and FileError for what cannot be read.
    """
    asking = [name for name in metrics if METRICS[name].needs == "region"]
    given = [name for name, each in (("--boxes", boxes), ("--masks", masks)) if each is not None]
    if len(given) > 1:
        raise OptionError("--boxes and --masks both say where the object is; give one")
    if asking and not given:
        raise OptionError(
            f"{', '.join(asking)} {'asks' if len(asking) == 1 else 'ask'} where the object is; say so with --boxes "
            "FILE or --masks FOLDER, or ask for other metrics"
        )
    if given and not asking:
        names = ", ".join(name for name, metric in METRICS.items() if metric.needs == "region")
        raise OptionError(
            f"{given[0]} is for metrics that ask where the object is, and none is given: --metric {names}"
        )
    if boxes is not None:
        return Regions(str(boxes), _with_boxes(found, boxes))
    return Regions(str(masks), _with_masks(found, masks)) if masks is not None else Regions()


def _with_boxes(found: Sequence[Path], source: Path) -> dict[Path, Path | Boxes]:
    """By the picture's path, or else by its name."""
    boxes = read_boxes(source)
    by_path = {os.path.abspath(name): each for name, each in boxes.items() if os.path.basename(name) != name}
    known: dict[Path, Path | Boxes] = {}
    by_name = []
    for file in found:
        if (path := os.path.abspath(file)) in by_path:
            known[file] = by_path[path]
        elif file.name in boxes:
            known[file] = boxes[file.name]
            by_name.append(file)
    _check_each_its_own(by_name, lambda file: file.name, f"{source}: name them by their paths")
    if not known:
        raise OptionError(
            f"--boxes {source}: has none of the {len(found)} pictures, such as {found[0].name!r}; it has "
            f"{', '.join(map(repr, list(boxes)[:3])) or 'none at all'}. Next: name them by file name, or path"
        )
    return known


def _with_masks(found: Sequence[Path], source: Path) -> dict[Path, Path | Boxes]:
    masks = find_masks(source)
    with_one = [file for file in found if file.stem in masks]
    _check_each_its_own(with_one, lambda file: file.stem, f"{source}: evaluate them one folder after the other")
    for file in with_one:
        if len(masks[file.stem]) > 1:
            listed = ", ".join(each.name for each in masks[file.stem])
            raise OptionError(f"--masks {source}: {listed} are all masks of {file.name}; leave one there")
        if file.exists() and file.samefile(masks[file.stem][0]):
            raise OptionError(f"--masks {source}: has {file.name} itself, and not its mask; give the masks' folder")
    if not with_one:
        raise OptionError(
            f"--masks {source}: has a mask of none of the {len(found)} pictures, such as {found[0].stem!r}; it has "
            f"{', '.join(map(repr, list(masks)[:3]))}. Next: call each as its picture is called"
        )
    return {file: masks[file.stem][0] for file in with_one}


def _check_each_its_own(files: Sequence[Path], called: Callable[[Path], str], advice: str) -> None:
    """Raise OptionError where two pictures of one name would get the same region."""
    for name, count in Counter(map(called, files)).items():
        if count > 1:
            raise OptionError(
                f"{count} pictures are called {name!r}, and the region of one is not the others', {advice}"
            )


def _check_size(file: Path, shape: torch.Size, picture: Picture) -> None:
    width, height = picture.geometry.size
    if tuple(shape) != (height, width):
        raise InputError(f"its mask {file} is {shape[1]} x {shape[0]}, and the picture {width} x {height}")


def _check_inside(box: Sequence[float], picture: Picture) -> None:
    left, top, right, bottom = box
    width, height = picture.geometry.size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise InputError(f"its box {list(box)} lies outside of the picture, which is {width} x {height}")
