"""What `torchpeek cam` writes: pictures explained batch by batch, into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchpeek._version import __version__
from torchpeek.cam import METHODS
from torchpeek.cli.console import json_text
from torchpeek.engine import Target, Trace
from torchpeek.engine.targets import class_logits
from torchpeek.errors import FileError, LayerNotFound, MethodError, OptionError, TargetError
from torchpeek.explain import How, compare, trace
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.models import LoadedModel
from torchpeek.picture import Picture
from torchpeek.render import extract, mosaic, overlay
from torchpeek.render.report import Report, ReportClass, ReportMap, ReportPicture, embedded, report_html
from torchpeek.store import OutputFolder, file_stem, png_bytes, save_bytes

_ON_ONE_PAGE = 60  # pictures; a page of more is slow to open


@dataclass(frozen=True)
class Looks:
    """How overlays are drawn."""

    colormap: str = "viridis"
    alpha: float = 0.5
    fade: bool = False
    extracts: bool = False


@dataclass
class Gallery:
    """Explains pictures into a folder, and remembers what it wrote."""

    loaded: LoadedModel
    folder: OutputFolder
    methods: Mapping[str, Mapping[str, Any]]  # name -> options
    layer: str | list[str] | None
    target: Target
    how: How
    looks: Looks
    _rows: list[dict[str, Any]] = field(default_factory=list)  # one for each picture
    _skipped: dict[str, str] = field(default_factory=dict)  # file -> why
    _page: list[ReportPicture] = field(default_factory=list)
    _facts: dict[str, str] = field(default_factory=dict)
    _layers: dict[str, None] = field(default_factory=dict)
    _errors: list[Exception] = field(default_factory=list)
    _stems: set[str] = field(default_factory=lambda: {"report.html", "results.json"})  # names that are taken

    def add(self, paths: Sequence[Path]) -> None:
        """One batch. A picture that cannot be read or explained is noted, and the others are done.

        An error that is the request's and not the picture's is raised.
        """
        pictures: list[tuple[Path, Picture]] = []
        for path in paths:
            try:
                pictures.append((path, self.loaded.read(path)))
            except FileError as error:
                self._skipped[str(path)] = str(error).removeprefix(f"{path}: ")
        for group in _of_one_shape(pictures):
            self._explain(group)

    @property
    def empty(self) -> bool:
        """Whether nothing has been explained so far."""
        return not self._rows

    def finish(self) -> dict[str, Any]:
        """Write what speaks of all the pictures, report.html and results.json, and return the latter.

        Where none could be explained, though some could be read, the first one's error is raised.
        """
        if self.empty and self._errors:
            raise self._errors[0]
        methods = {name: METHODS[name].summary for name in self.methods}
        left_out = len(self._rows) - len(self._page)
        facts = {**self._facts, "layer": "; ".join(self._layers)} if self._facts else {}
        page = Report(facts, methods, self._page, self.looks.colormap, self._skipped, left_out)
        report = self.folder.write("report.html", report_html(page).encode())
        results = {"about": facts, "pictures": self._rows, "skipped": self._skipped, "report": str(report)}
        self.folder.write("results.json", json_text(results).encode())
        return results

    def _explain(self, group: Sequence[tuple[Path, Picture]]) -> None:
        used = [METHODS[name] for name in self.methods]
        tensor = torch.cat([picture.tensor for _, picture in group])
        try:
            kept = trace(
                self.loaded,
                tensor,
                layer=self.layer,
                target=self.target,
                gradients=any(method.needs == "gradients" for method in used),
                ablations=any(method.ablates for method in used),
            )
            maps = self._maps(kept, tensor)
        except (LayerNotFound, TargetError, MethodError, OptionError):
            raise
        except Exception as error:
            if len(group) > 1:  # because of one of them, or some: each on its own
                for each in group:
                    self._explain([each])
            else:
                self._skipped[str(group[0][0])] = str(error)
                self._errors.append(error)
            return
        for heatmap in maps.values():
            made = heatmap.provenance
            self._facts = self._facts or _facts(made, self.looks)
            self._layers[f"{made.layer} ({made.layer_reason})"] = None  # it may be another one for another size
        for n, (path, picture) in enumerate(group):
            probabilities = class_logits(kept.output)[n].detach().softmax(0)
            self._write(path, picture, {name: heatmap[n] for name, heatmap in maps.items()}, probabilities)

    def _maps(self, kept: Trace, tensor: Tensor) -> dict[str, Heatmap]:
        """From the trace, but for the methods that combine layers, which look at their own if none are named."""
        how: dict[str, Any] = {"fuse": self.how.fuse, "smooth": self.how.smooth, "seed": self.how.seed}
        many = [name for name in self.methods if METHODS[name].layers == "many" or self.how.fuse is not None]
        own = many if self.layer is None else []
        shared = {name: options for name, options in self.methods.items() if name not in own}
        found: dict[str, Heatmap] = {}
        if shared:
            found |= compare(kept, methods=shared, **how)
        if own:
            theirs = {name: self.methods[name] for name in own}
            found |= compare(self.loaded, tensor, methods=theirs, target=self.target, **how)
        return {name: found[name] for name in self.methods}

    def _write(self, path: Path, picture: Picture, maps: dict[str, Heatmap], probabilities: Tensor) -> None:
        stem = self._new_stem(path)
        rows: list[dict[str, Any]] = []
        shown: dict[str, list[ReportMap]] = {}
        tiles: list[Image.Image] = []
        for name, heatmap in maps.items():
            raw = self.folder.write(f"{stem}/{file_stem(name)}.safetensors", save_bytes(heatmap))
            for k in range(heatmap.scores.shape[1]):
                one = heatmap[0, k]
                row, tile = self._drawn(picture, one, stem, float(probabilities[one.label()]))
                rows.append({**row, "heatmap": str(raw)})
                tiles.append(tile)
                shown.setdefault(name, []).append(_report_map(row, one, tile))
        captions = [f"{row['method']}: {row['class_name']}" for row in rows]
        classes = len(rows) // len(maps)
        sheet = mosaic(tiles, captions, columns=classes if classes > 1 else None)
        predictions = self._predictions(probabilities)
        self._rows.append(
            {
                "picture": str(path),
                "notes": list(picture.notes),
                "predictions": predictions,
                "mosaic": str(self.folder.write(f"{stem}/all.png", png_bytes(sheet))),
                "maps": rows,
            }
        )
        if len(self._page) < _ON_ONE_PAGE:
            best = [ReportClass(each["name"], each["probability"]) for each in predictions]
            photo = embedded(picture.image)
            self._page.append(ReportPicture(picture.name, picture.image.size, picture.notes, photo, best, shown))

    def _drawn(
        self, picture: Picture, one: Heatmap, stem: str, probability: float
    ) -> tuple[dict[str, Any], Image.Image]:
        """One map's overlay, and what results.json says of it."""
        made, label = one.provenance, one.label()
        class_name = made.class_name(label)
        base = f"{stem}/{file_stem(made.method)}.{label}-{file_stem(class_name)}"
        image = overlay(picture, one, colormap=self.looks.colormap, alpha=self.looks.alpha, fade=self.looks.fade)
        row = {
            "method": made.method,
            "class": label,
            "class_name": class_name,
            "probability": probability,
            "score": float(one.scores),
            "layer": made.layer,
            "overlay": str(self.folder.write(f"{base}.png", png_bytes(image))),
        }
        if self.looks.extracts:
            row["extract"] = str(self.folder.write(f"{base}.extract.png", png_bytes(extract(picture, one))))
        return row, image

    def _predictions(self, probabilities: Tensor, most: int = 5) -> list[dict[str, Any]]:
        best = probabilities.topk(min(most, len(probabilities)))
        names = self.loaded.class_names
        return [
            {
                "class": label,
                "name": names[label] if names and label < len(names) else f"class {label}",
                "probability": probability,
            }
            for probability, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _new_stem(self, path: Path) -> str:
        """A folder name for the picture; pictures of one name from two folders get two."""
        stem = next(name for name in _numbered(file_stem(path.stem)) if name not in self._stems)
        self._stems.add(stem)
        return stem


def _report_map(row: dict[str, Any], one: Heatmap, image: Image.Image) -> ReportMap:
    low, high = float(one.values.min()), float(one.values.max())
    return ReportMap(row["class_name"], row["probability"], row["score"], low, high, embedded(image))


def _facts(made: Provenance, looks: Looks) -> dict[str, str]:
    """What holds for every picture."""
    return {
        "model": made.model,
        "weights": made.weights or "the model's own",
        "layer": f"{made.layer} ({made.layer_reason})",
        "preprocessing": made.preprocess,
        "score": f"{made.score} of the class",
        "overlays": f"{looks.colormap}, alpha {looks.alpha:g}{', fading with the value' if looks.fade else ''}",
        "computed": f"in {made.dtype} on {made.device}, torch {made.torch}, torchpeek {__version__}",
    }


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
