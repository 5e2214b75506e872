"""What `torchpeek cam` writes: batches of pictures explained, drawn and written into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from torchpeek.cam import METHODS
from torchpeek.cli.explainer import Explainer, layer_description, report_facts
from torchpeek.cli.options import OverlayOptions
from torchpeek.cli.predictions import Corners, PicturePredictions, Prediction, picture_predictions
from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.errors import InputError
from torchpeek.heatmap import Heatmap
from torchpeek.picture import Picture
from torchpeek.render import extract, mosaic, overlay
from torchpeek.render.report import Report, ReportClass, ReportMap, ReportPicture, embedded, report_html
from torchpeek.render.scale import scale_of, sign_words, with_colorbar
from torchpeek.store import OutputFolder, encodable, file_stem, json_text, png_bytes, save_bytes

_PICTURES_PER_PAGE = 60  # a page with more is slow to open


@dataclass
class CamRun:
    """Explains pictures into a folder, and collects what the report and results.json say of them."""

    explainer: Explainer
    folder: OutputFolder
    overlay: OverlayOptions
    table: list[tuple[str, ...]] = field(default_factory=list)
    """A row for each heatmap: the picture, what is predicted, what is explained, the method, the layer, the overlay."""
    _rows: list[dict[str, Any]] = field(default_factory=list)  # one for each picture
    _skipped: Skipped = field(default_factory=Skipped)
    _page: list[ReportPicture] = field(default_factory=list)
    _facts: dict[str, str] = field(default_factory=dict)
    _layers: dict[str, None] = field(default_factory=dict)  # in the order in which they were used
    _stems: set[str] = field(default_factory=lambda: {"report.html", "results.json"})  # names that are taken

    def add(self, paths: Sequence[Path]) -> None:
        """Explain one batch. A picture that cannot be read or explained is skipped; the others go on.

        An error of the request is raised, unless a picture was explained before.
        """
        pictures: list[tuple[Path, Picture]] = []
        for path in paths:
            try:
                pictures.append((path, self.explainer.loaded.read(path)))
            except Exception as error:
                self._skipped.add(path, error, unless=(InputError,) if self.empty else ())
        for group in _groups_of_one_shape(pictures):
            self._explain(group)

    @property
    def empty(self) -> bool:
        """Whether no picture has been explained yet."""
        return not self._rows

    def finish(self) -> dict[str, Any]:
        """Write report.html and results.json, and return the latter.

        Raises an error where pictures could be read, and none could be explained.
        """
        if self.empty:
            self._skipped.check()
        methods = {name: METHODS[name].summary for name in self.explainer.methods}
        left_out = len(self._rows) - len(self._page)
        facts = {**self._facts, "layer": "; ".join(self._layers)} if self._facts else {}
        page = Report(facts, methods, self._page, self.overlay.drawn_colormap, self._skipped.why, left_out)
        report = self.folder.write("report.html", encodable(report_html(page)).encode())
        results = {"about": facts, "pictures": self._rows, "skipped": self._skipped.why, "report": str(report)}
        self.folder.write("results.json", json_text(results).encode())
        return results

    def _explain(self, group: Sequence[tuple[Path, Picture]]) -> None:
        try:
            trace, heatmaps = self.explainer.explain(torch.cat([picture.tensor for _, picture in group]))
        except Exception as error:
            unless = REQUEST if self.empty else ()
            if len(group) > 1 and not isinstance(error, unless):  # one picture may be the cause; try each alone
                for each in group:
                    self._explain([each])
            else:
                self._skipped.add(group[0][0], error, unless=unless)
            return
        for heatmap in heatmaps.values():
            self._facts = self._facts or report_facts(heatmap.provenance, overlays=str(self.overlay))
            self._layers[layer_description(heatmap.provenance)] = None  # another input size may have another layer
        for n, (path, picture) in enumerate(group):
            predictions = picture_predictions(trace, n, picture, self.explainer.labels)
            self._write(path, picture, {name: heatmap[n] for name, heatmap in heatmaps.items()}, predictions)

    def _write(
        self, path: Path, picture: Picture, heatmaps: dict[str, Heatmap], predictions: PicturePredictions
    ) -> None:
        stem = self._new_stem(path)
        best, explained = predictions.best, predictions.explained
        rows: list[dict[str, Any]] = []
        report_maps: dict[str, list[ReportMap]] = {}
        tiles: list[Image.Image] = []
        for name, heatmap in heatmaps.items():
            raw = self.folder.write(f"{stem}/{file_stem(name)}.safetensors", save_bytes(heatmap))
            for k, prediction in enumerate(explained):
                row, tile = self._draw(picture, heatmap[0, k], stem, prediction)
                rows.append({**row, "heatmap": str(raw)})
                tiles.append(tile)
                report_maps.setdefault(name, []).append(_report_map(prediction, heatmap[0, k], tile))
        captions = [
            f"{row['method']}: {prediction.words}"
            + (f"; {row['remark']}" if row["remark"] and not self.overlay.colorbar else "")
            for row, prediction in zip(rows, [*explained] * len(heatmaps), strict=True)
        ]
        sheet = mosaic(
            tiles,
            captions,
            original=picture,
            prediction=f"predicted: {best[0].words}",
            columns=len(explained) if len(explained) > 1 else None,
        )
        self._rows.append(
            {
                "picture": str(path),
                "notes": list(picture.notes),
                "predictions": [each.as_predicted() for each in best],
                "mosaic": str(self.folder.write(f"{stem}/all.png", png_bytes(sheet))),
                "maps": rows,
            }
        )
        self.table += [
            (str(path), best[0].words, prediction.words, row["method"], row["layer"], row["overlay"])
            for row, prediction in zip(rows, [*explained] * len(heatmaps), strict=True)
        ]
        if len(self._page) < _PICTURES_PER_PAGE:
            # The bars of the page are shares of a whole, and cosine similarities are not.
            bars = [
                ReportClass(each.title, each.value, each.confidence) for each in best if each.quantity != "similarity"
            ]
            photo = embedded(picture.image)
            self._page.append(ReportPicture(picture.name, picture.image.size, picture.notes, photo, bars, report_maps))

    def _draw(
        self, picture: Picture, heatmap: Heatmap, stem: str, prediction: Prediction
    ) -> tuple[dict[str, Any], Image.Image]:
        """Write the overlay of one map. Returns its entry in results.json, and the image."""
        provenance, options = heatmap.provenance, self.overlay
        base = f"{stem}/{file_stem(provenance.method)}.{prediction.stem}"
        image = overlay(
            picture,
            heatmap,
            colormap=options.colormap,
            alpha=options.alpha,
            fade=not options.even,
            signed=options.signed,
        )
        if prediction.box is not None:
            image = _outlined(image, prediction.box, picture)
        if options.colorbar:
            scale = scale_of(heatmap, colormap=options.colormap, limit=None, signed=options.signed)
            image = with_colorbar(image, scale, sign_words(heatmap, scale))
        row = {
            "method": provenance.method,
            **prediction.as_explained(),
            "score": float(heatmap.scores),
            "layer": provenance.layer,
            "layout": provenance.layout,
            "remark": _remark(heatmap, options),
            "overlay": str(self.folder.write(f"{base}.png", png_bytes(image))),
        }
        if options.extract:
            row["extract"] = str(self.folder.write(f"{base}.extract.png", png_bytes(extract(picture, heatmap))))
        return row, image

    def _new_stem(self, path: Path) -> str:
        """A folder name for the picture. Pictures of the same name from two folders get two."""
        stem = next(name for name in _numbered(file_stem(path.stem)) if name not in self._stems)
        self._stems.add(stem)
        return stem


def _report_map(prediction: Prediction, heatmap: Heatmap, image: Image.Image) -> ReportMap:
    low, high = float(heatmap.values.min()), float(heatmap.values.max())
    return ReportMap(prediction.title, prediction.confidence, float(heatmap.scores), low, high, embedded(image))


def _remark(heatmap: Heatmap, options: OverlayOptions) -> str:
    """What a picture of positive values alone hides. Nothing if it is drawn signed."""
    return "" if options.drawn_colormap == "diverging" else heatmap.sign_remark()


def _outlined(image: Image.Image, box: Corners, picture: Picture) -> Image.Image:
    """A copy with the box drawn as a white line between two black lines, which is visible on any picture."""
    copy = image.copy()
    draw, thick = ImageDraw.Draw(copy), max(1, round(min(image.size) / 200))
    scale = [drawn / own for drawn, own in zip(image.size, picture.image.size, strict=True)]  # a small one is enlarged
    left, top, right, bottom = (round(each * scale[axis % 2]) for axis, each in enumerate(box))
    for inset, colour in ((0, "black"), (thick, "white"), (2 * thick, "black")):
        corners = (left + inset, top + inset, max(left + inset, right - inset), max(top + inset, bottom - inset))
        draw.rectangle(corners, outline=colour, width=thick)
    return copy


def _groups_of_one_shape(pictures: Sequence[tuple[Path, Picture]]) -> Iterator[list[tuple[Path, Picture]]]:
    """Consecutive pictures of one shape, which fit into one batch."""
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
