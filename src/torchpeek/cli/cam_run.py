"""What `torchpeek cam` writes: batches of pictures explained, drawn and written into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from torchpeek.cam import METHODS
from torchpeek.cli.explainer import Explainer, layer_description, report_facts
from torchpeek.cli.options import OverlayOptions
from torchpeek.cli.output import write_results
from torchpeek.cli.page import PAGE, THUMBNAIL, PageItems, outlined, overlay_figure, prediction_bars, write_page
from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.errors import FolderError, InputError, notify
from torchpeek.explanation.predictions import PicturePredictions, Prediction, picture_predictions
from torchpeek.heatmap import Heatmap
from torchpeek.html import fitted
from torchpeek.interrupts import uninterrupted
from torchpeek.picture import Picture
from torchpeek.render import extract, mosaic, overlay
from torchpeek.render.canvas import enlarged
from torchpeek.render.heatmap_report import heatmap_report
from torchpeek.render.report import ReportFigure, ReportItem, ReportRow, embedded
from torchpeek.render.scale import scale_of, sign_words, with_colorbar
from torchpeek.store import OutputFolder, file_stem, json_text, png_bytes, save_bytes

_TILE = 1280  # most pixels of a side of an overlay that waits for the mosaic, which shows it smaller still
_PIXELS_AT_ONCE = 64_000_000  # of decoded pictures, four bytes each; a batch with more is explained in parts
_HUGE = 40_000_000  # pixels of a picture from which on --max-size is worth a word


@dataclass
class CamRun:
    """Explains pictures into a folder, and collects what the report and results.json say of them."""

    explainer: Explainer
    folder: OutputFolder
    overlay: OverlayOptions
    pictures: int = 1
    """The number of pictures that will be added, from which the size of the images in the report follows."""
    table: list[tuple[str, ...]] = field(default_factory=list)
    """A row for each heatmap: the picture, what is predicted, what is explained, the method, the layer, the overlay."""
    _rows: list[dict[str, Any]] = field(default_factory=list)  # one for each picture
    _skipped: Skipped = field(default_factory=Skipped)
    _page: PageItems = field(default_factory=PageItems)
    _huge: bool = False  # whether there was a notice of a huge picture
    _facts: dict[str, str] = field(default_factory=dict)
    _layers: dict[str, None] = field(default_factory=dict)  # in the order in which they were used
    _stems: set[str] = field(default_factory=lambda: {"report.html", "results.json"})  # names that are taken

    def add(self, paths: Sequence[Path]) -> None:
        """Explain one batch. A picture that cannot be read or explained is skipped; the others go on.

        An error of the request is raised, unless a picture was explained before.
        """
        group: list[tuple[Path, Picture]] = []
        for path in paths:
            picture = self._read(path)
            if picture is None:
                continue
            if group and picture.tensor.shape != group[0][1].tensor.shape:
                self._explain(group)
                group = []
            group.append((path, picture))
            del picture  # `group` alone holds pictures, so that emptying it frees them
            if sum(each.image.width * each.image.height for _, each in group) >= _PIXELS_AT_ONCE:
                self._explain(group)
                group = []
        if group:
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
        return self._write_results(self.folder)

    def save(self, folder: OutputFolder) -> bool:
        """Write report.html and results.json of the pictures so far to this folder. False if there are none."""
        if not self.empty:
            self._write_results(folder)
        return not self.empty

    def _write_results(self, folder: OutputFolder) -> dict[str, Any]:
        methods = {name: METHODS[name].summary for name in self.explainer.methods}
        facts = {**self._facts, "layer": "; ".join(self._layers)} if self._facts else {}
        page = heatmap_report(
            facts,
            methods,
            self._page.items,
            self.overlay.drawn_colormap,
            self._skipped.why,
            fade=not self.overlay.even,
            left_out=self._page.left_out,
        )
        report = str(folder.path / PAGE)
        results = {"about": facts, "pictures": self._rows, "skipped": self._skipped.why, "report": report}
        write_results(folder, "results.json", results)
        try:
            write_page(folder, page)
        except FolderError:
            with suppress(FolderError):
                folder.write("results.json", json_text(results | {"report": None}).encode())
            raise
        return results

    def _read(self, path: Path) -> Picture | None:
        """The picture; None, with an entry among those skipped, if it cannot be read."""
        try:
            picture = self.explainer.read(path)
        except Exception as error:
            self._skipped.add(path, error, unless=(InputError,) if self.empty else ())
            return None
        width, height = picture.image.size
        if width * height >= _HUGE and not self._huge:
            self._huge = True
            notify(
                f"{path} has {width} x {height} pixels, and its overlays are drawn in this size, which takes time and "
                "memory. --max-size 4000 reduces such pictures when they are read"
            )
        return picture

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
            self._facts = self._facts or report_facts(
                heatmap.provenance, self.explainer.max_size, overlays=str(self.overlay)
            )
            self._layers[layer_description(heatmap.provenance)] = None  # another input size may have another layer
        for n, (path, picture) in enumerate(group):
            predictions = picture_predictions(trace, n, picture, self.explainer.labels)
            of_picture = {name: _of_picture(picture, heatmap[n]) for name, heatmap in heatmaps.items()}
            with self.folder.part() as folder:
                row, table, item, instead = self._write(folder, path, picture, of_picture, predictions)
            with uninterrupted():
                self._rows.append(row)
                self.table += table
                self._page.add(item, instead=instead)

    def _write(
        self,
        folder: OutputFolder,
        path: Path,
        picture: Picture,
        heatmaps: dict[str, Heatmap],
        predictions: PicturePredictions,
    ) -> tuple[dict[str, Any], list[tuple[str, ...]], ReportItem, str]:
        """Write the files of a picture. Returns its entry in results.json, its rows of the table, its item on the page,
        and the file that is linked where the page is full.
        """
        stem = self._new_stem(path)
        best, explained = predictions.best, predictions.explained
        rows: list[dict[str, Any]] = []
        side = self._page.side(self.pictures, 1 + len(heatmaps) * len(explained))
        figures: list[list[ReportFigure]] = [[] for _ in explained]
        photo = enlarged(fitted(picture.image, _TILE))
        tiles: list[Image.Image] = []
        for name, heatmap in heatmaps.items():
            raw = folder.write(f"{stem}/{file_stem(name)}.safetensors", save_bytes(heatmap))
            for k, prediction in enumerate(explained):
                row, image = self._draw(folder, picture, heatmap[0, k], stem, prediction)
                rows.append({**row, "heatmap": str(raw)})
                tiles.append(fitted(image, _TILE))
                file = str(Path(row["overlay"]).relative_to(folder.path))
                alt = f"{name} of {prediction.title} on {picture.name}"
                uri = embedded(tiles[-1], side)
                figures[k].append(overlay_figure(heatmap[0, k], image.size, uri, alt, file, row["remark"]))
                del image  # it is as large as the picture; one at a time is in memory
        captions = [
            f"{row['method']}: {prediction.words}"
            + (f"; {row['remark']}" if row["remark"] and not self.overlay.colorbar else "")
            for row, prediction in zip(rows, [*explained] * len(heatmaps), strict=True)
        ]
        sheet = mosaic(
            tiles,
            captions,
            original=photo,
            prediction=f"predicted: {best[0].words}",
            columns=len(explained) if len(explained) > 1 else None,
        )
        of_picture: dict[str, Any] = {
            "picture": str(path),
            "notes": list(picture.notes),
            "predictions": [each.as_predicted() for each in best],
            "mosaic": str(folder.write(f"{stem}/all.png", png_bytes(sheet))),
            "maps": rows,
        }
        table: list[tuple[str, ...]] = [
            (str(path), best[0].words, prediction.words, row["method"], row["layer"], row["overlay"])
            for row, prediction in zip(rows, [*explained] * len(heatmaps), strict=True)
        ]
        report_rows = [
            ReportRow(each.title, each.confidence, of_row, prediction_bars(best, each))
            for each, of_row in zip(explained, figures, strict=True)
        ]
        item = ReportItem(
            picture.name,
            str(path),
            picture.notes,
            report_rows,
            embedded(photo, side),
            picture.image.size,
            embedded(photo, THUMBNAIL),
            best[0].words,
        )
        return of_picture, table, item, f"{stem}/all.png"

    def _draw(
        self, folder: OutputFolder, picture: Picture, heatmap: Heatmap, stem: str, prediction: Prediction
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
            image = outlined(image, prediction.box, picture)
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
            "overlay": str(folder.write(f"{base}.png", png_bytes(image))),
        }
        if options.extract:
            row["extract"] = str(folder.write(f"{base}.extract.png", png_bytes(extract(picture, heatmap))))
        return row, image

    def _new_stem(self, path: Path) -> str:
        """A folder name for the picture. Pictures of the same name from two folders get two."""
        stem = next(name for name in _numbered(file_stem(path.stem)) if name not in self._stems)
        self._stems.add(stem)
        return stem


def _of_picture(picture: Picture, heatmap: Heatmap) -> Heatmap:
    """The heatmap, whose provenance says that the picture was reduced if it was."""
    provenance = heatmap.provenance
    return replace(heatmap, provenance=replace(provenance, preprocess=picture.preprocessing(provenance.preprocess)))


def _remark(heatmap: Heatmap, options: OverlayOptions) -> str:
    """What a picture of positive values alone hides. Nothing if it is drawn signed."""
    return "" if options.drawn_colormap == "diverging" else heatmap.sign_remark()


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1
