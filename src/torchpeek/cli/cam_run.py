"""What `torchpeek cam` writes: pictures explained batch by batch, into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from torchpeek.cam import METHODS
from torchpeek.cli.explainer import Explaining, facts_of, looked_at
from torchpeek.cli.predictions import Answer, Answers, Corners, answers
from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.errors import InputError
from torchpeek.heatmap import Heatmap
from torchpeek.picture import Picture
from torchpeek.render import extract, mosaic, overlay
from torchpeek.render.report import Report, ReportClass, ReportMap, ReportPicture, embedded, report_html
from torchpeek.store import OutputFolder, encodable, file_stem, json_text, png_bytes, save_bytes

_ON_ONE_PAGE = 60  # pictures; a page of more is slow to open


@dataclass(frozen=True)
class Looks:
    """How overlays are drawn."""

    colormap: str = "viridis"
    alpha: float = 0.5
    fade: bool = False
    extracts: bool = False

    @property
    def said(self) -> str:
        """For a report."""
        return f"{self.colormap}, alpha {self.alpha:g}{', fading with the value' if self.fade else ''}"


@dataclass
class Gallery:
    """Explains pictures into a folder, and remembers what it wrote."""

    explaining: Explaining
    folder: OutputFolder
    looks: Looks
    _rows: list[dict[str, Any]] = field(default_factory=list)  # one for each picture
    _cells: list[tuple[str, ...]] = field(default_factory=list)  # one for each map
    _skipped: Skipped = field(default_factory=Skipped)
    _page: list[ReportPicture] = field(default_factory=list)
    _facts: dict[str, str] = field(default_factory=dict)
    _layers: dict[str, None] = field(default_factory=dict)
    _stems: set[str] = field(default_factory=lambda: {"report.html", "results.json"})  # names that are taken

    def add(self, paths: Sequence[Path]) -> None:
        """One batch. A picture that cannot be read or explained is noted, and the others are done.

        An error that is the request's and not the picture's is raised, unless a picture was done in spite of it.
        """
        pictures: list[tuple[Path, Picture]] = []
        for path in paths:
            try:
                pictures.append((path, self.explaining.loaded.read(path)))
            except Exception as error:
                self._skipped.add(path, error, unless=(InputError,) if self.empty else ())
        for group in _of_one_shape(pictures):
            self._explain(group)

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """A row for each map: the picture, what is predicted, what is explained, the method, the layer, the overlay."""
        return self._cells

    @property
    def empty(self) -> bool:
        """Whether nothing has been explained so far."""
        return not self._rows

    def finish(self) -> dict[str, Any]:
        """Write what speaks of all the pictures, report.html and results.json, and return the latter.

        Raises InputError where none could be explained, though some could be read.
        """
        if self.empty:
            self._skipped.check()
        methods = {name: METHODS[name].summary for name in self.explaining.methods}
        left_out = len(self._rows) - len(self._page)
        facts = {**self._facts, "layer": "; ".join(self._layers)} if self._facts else {}
        page = Report(facts, methods, self._page, self.looks.colormap, self._skipped.why, left_out)
        report = self.folder.write("report.html", encodable(report_html(page)).encode())
        results = {"about": facts, "pictures": self._rows, "skipped": self._skipped.why, "report": str(report)}
        self.folder.write("results.json", json_text(results).encode())
        return results

    def _explain(self, group: Sequence[tuple[Path, Picture]]) -> None:
        try:
            kept, maps = self.explaining.of(torch.cat([picture.tensor for _, picture in group]))
        except Exception as error:
            unless = REQUEST if self.empty else ()
            if len(group) > 1 and not isinstance(error, unless):  # because of one of them, or some: each on its own
                for each in group:
                    self._explain([each])
            else:
                self._skipped.add(group[0][0], error, unless=unless)
            return
        for heatmap in maps.values():
            made = heatmap.provenance
            self._facts = self._facts or facts_of(made, overlays=self.looks.said)
            self._layers[looked_at(made)] = None  # it may be another one for another size
        for n, (path, picture) in enumerate(group):
            said = answers(kept, n, picture, self.explaining.names)
            self._write(path, picture, {name: heatmap[n] for name, heatmap in maps.items()}, said)

    def _write(self, path: Path, picture: Picture, maps: dict[str, Heatmap], said: Answers) -> None:
        stem = self._new_stem(path)
        rows: list[dict[str, Any]] = []
        shown: dict[str, list[ReportMap]] = {}
        tiles: list[Image.Image] = []
        for name, heatmap in maps.items():
            raw = self.folder.write(f"{stem}/{file_stem(name)}.safetensors", save_bytes(heatmap))
            for k, answer in enumerate(said.asked):
                one = heatmap[0, k]
                row, tile = self._drawn(picture, one, stem, answer)
                rows.append({**row, "heatmap": str(raw)})
                tiles.append(tile)
                shown.setdefault(name, []).append(_report_map(answer, one, tile))
        captions = [f"{name}: {answer.title}" for name in maps for answer in said.asked]
        sheet = mosaic(tiles, captions, columns=len(said.asked) if len(said.asked) > 1 else None)
        self._rows.append(
            {
                "picture": str(path),
                "notes": list(picture.notes),
                "predictions": [each.facts("name") for each in said.predicted],
                "mosaic": str(self.folder.write(f"{stem}/all.png", png_bytes(sheet))),
                "maps": rows,
            }
        )
        self._cells += [
            (str(path), said.predicted[0].words, answer.words, row["method"], row["layer"], row["overlay"])
            for row, answer in zip(rows, [*said.asked] * len(maps), strict=True)
        ]
        if len(self._page) < _ON_ONE_PAGE:
            # The page's bars are shares of a whole, which cosines are not.
            best = [
                ReportClass(each.title, each.value, each.said) for each in said.predicted if each.kind != "similarity"
            ]
            photo = embedded(picture.image)
            self._page.append(ReportPicture(picture.name, picture.image.size, picture.notes, photo, best, shown))

    def _drawn(self, picture: Picture, one: Heatmap, stem: str, answer: Answer) -> tuple[dict[str, Any], Image.Image]:
        """One map's overlay, and what results.json says of it."""
        made = one.provenance
        base = f"{stem}/{file_stem(made.method)}.{answer.stem}"
        image = overlay(picture, one, colormap=self.looks.colormap, alpha=self.looks.alpha, fade=self.looks.fade)
        if answer.box is not None:
            image = _outlined(image, answer.box)
        row = {
            "method": made.method,
            **answer.facts("class_name" if answer.kind != "similarity" else "name"),
            "score": float(one.scores),
            "layer": made.layer,
            "layout": made.layout,
            "overlay": str(self.folder.write(f"{base}.png", png_bytes(image))),
        }
        if self.looks.extracts:
            row["extract"] = str(self.folder.write(f"{base}.extract.png", png_bytes(extract(picture, one))))
        return row, image

    def _new_stem(self, path: Path) -> str:
        """A folder name for the picture; pictures of one name from two folders get two."""
        stem = next(name for name in _numbered(file_stem(path.stem)) if name not in self._stems)
        self._stems.add(stem)
        return stem


def _report_map(answer: Answer, one: Heatmap, image: Image.Image) -> ReportMap:
    low, high = float(one.values.min()), float(one.values.max())
    return ReportMap(answer.title, answer.said, float(one.scores), low, high, embedded(image))


def _outlined(image: Image.Image, box: Corners) -> Image.Image:
    """With the box drawn in white between two black lines, which shows on anything."""
    copy = image.copy()
    draw, thick = ImageDraw.Draw(copy), max(1, round(min(image.size) / 200))
    left, top, right, bottom = (round(each) for each in box)
    for inset, colour in ((0, "black"), (thick, "white"), (2 * thick, "black")):
        corners = (left + inset, top + inset, max(left + inset, right - inset), max(top + inset, bottom - inset))
        draw.rectangle(corners, outline=colour, width=thick)
    return copy


def _of_one_shape(pictures: Sequence[tuple[Path, Picture]]) -> Iterator[list[tuple[Path, Picture]]]:
    group: list[tuple[Path, Picture]] = []
    for each in pictures:
        if group and group[0][1].tensor.shape != each[1].tensor.shape:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1
