"""torchpeek cam: which part of each picture decided."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from PIL import Image

from torchpeek._version import __version__
from torchpeek.cam import METHODS, find_method
from torchpeek.cli.console import print_json, print_table, progress
from torchpeek.engine import Trace
from torchpeek.engine.targets import Classes, Predicted, TopClasses, as_target, class_logits
from torchpeek.errors import FileError, NotFinite, OptionError
from torchpeek.explain import compare, trace
from torchpeek.heatmap import Heatmap
from torchpeek.models import LoadedModel, load_model
from torchpeek.picture import Picture
from torchpeek.render import COLORMAPS, extract, mosaic, overlay
from torchpeek.render.report import Report, ReportClass, ReportMap, ReportPicture, report_html
from torchpeek.store import OutputFolder, file_stem, find_pictures, save_bytes
from torchpeek.store.pictures import read_image

_ON_ONE_PAGE = 60  # pictures; a page of more is slow to open
Flag = Annotated[bool, Parameter(negative="")]


@dataclass(frozen=True)
class _Options:
    methods: Sequence[str]
    colormap: str
    alpha: float
    fade: bool
    extracts: bool
    seed: int


def cam(
    *pictures: str,
    model: str,
    method: Annotated[list[str], Parameter(negative="")] = ["gradcam"],  # noqa: B006  cyclopts shows it as the default
    class_: Annotated[list[str] | None, Parameter(name="--class", negative="")] = None,
    top: int | None = None,
    layer: str | None = None,
    out: Path = Path("peek"),
    overwrite: Flag = False,
    weights: str | None = None,
    trust_pickle: Flag = False,
    colormap: str = "viridis",
    alpha: float = 0.5,
    fade: Flag = False,
    extract: Flag = False,
    batch_size: int = 8,
    device: str = "cpu",
    seed: int = 0,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show which part of each picture decided, with one method or several.

    Writes, for each picture, an overlay for every method and class, a sheet of them side by side, and the raw heatmaps
    (safetensors, with everything they depend on); and, for all of them, report.html, which needs no other file, and
    results.json. Prints a table of what it wrote.

    Example: torchpeek cam cat.jpg holiday/ --model torchvision:resnet50 --method gradcam --method layercam --class
    "tiger cat"

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, or package.module:callable (also from the working directory).
    method
        Give it several times for several methods, which share one pass; "torchpeek methods" lists them. "all" is every
        one that this model and layer allow.
    class_
        The class to explain, by name or index; several times for several. Without it, the predicted class.
    top
        Explain the TOP most probable classes of each picture, side by side.
    layer
        The layer to look at; "torchpeek layers" lists them. Without it, the last one with a grid.
    out
        The folder to write to.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    weights
        "random", a file (.safetensors, or a state_dict of torch.save), or the name of torchvision's weights. Without
        it, the pretrained ones.
    trust_pickle
        Load a weights file that may run code.
    colormap
        viridis, inferno, turbo, jet; or diverging, which also shows what speaks against the class.
    alpha
        How much of the heat is mixed into the picture, 0 to 1.
    fade
        Mix in less of it where the value is low.
    extract
        Write also the picture times the heatmap, which keeps only what mattered.
    batch_size
        How many pictures go through the model at once.
    device
        cpu, cuda, cuda:1, mps.
    seed
        For methods that draw random numbers.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    if not pictures:
        raise OptionError(
            "no pictures; give files, folders or globs: torchpeek cam cat.jpg --model torchvision:resnet50"
        )
    if batch_size < 1 or (top is not None and class_):
        raise OptionError(
            "--batch-size is at least 1" if batch_size < 1 else "--top and --class both choose classes; give one"
        )
    if colormap not in COLORMAPS or not 0 <= alpha <= 1:
        raise OptionError(
            f"--colormap is one of {', '.join(COLORMAPS)}, and --alpha 0 to 1; got {colormap} and {alpha}"
        )
    names = list(METHODS) if "all" in method else list(dict.fromkeys(find_method(name).name for name in method))
    found = find_pictures(pictures)
    loaded = load_model(model, weights, trust_pickle=trust_pickle)
    loaded.module.to(_device(device))
    target = as_target(_target(class_, top), loaded.class_names)
    if "all" in method:
        names = _applicable(loaded, found, names, layer, target)
    folder = OutputFolder.prepared(out, overwrite=overwrite)
    run = _Run(loaded, folder, layer, target, _Options(names, colormap, alpha, fade, extract, seed))
    with progress("explaining", len(found)) as advance:
        for start in range(0, len(found), batch_size):
            run.explain(found[start : start + batch_size])
            advance(len(found[start : start + batch_size]))
    run.finish()
    if json:
        print_json(run.results())
    else:
        run.print()
    return 1 if run.skipped else 0


@dataclass
class _Run:
    """Explains pictures batch by batch, and remembers what it wrote."""

    loaded: LoadedModel
    folder: OutputFolder
    layer: str | None
    target: Any
    options: _Options
    skipped: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # one for each picture
    shown: list[ReportPicture] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    report: Path | None = None
    stems: set[str] = field(default_factory=set)

    def explain(self, paths: Sequence[Path]) -> None:
        """One batch. A picture that cannot be read is noted, and the others are done."""
        pictures: list[tuple[Path, Picture]] = []
        for path in paths:
            try:
                pictures.append((path, self.loaded.read(path)))
            except FileError as error:
                self.skipped[str(path)] = str(error).removeprefix(f"{path}: ")
        for group in _of_one_shape(pictures):
            self._explain_group(group)

    def _explain_group(self, group: Sequence[tuple[Path, Picture]]) -> None:
        try:
            kept = trace(
                self.loaded,
                torch.cat([picture.tensor for _, picture in group]),
                layer=self.layer,
                target=self.target,
                gradients=any(METHODS[name].needs == "gradients" for name in self.options.methods),
            )
            maps = compare(kept, methods={name: self._method_options(name) for name in self.options.methods})
        except NotFinite as error:
            if len(group) == 1:
                self.skipped[str(group[0][0])] = str(error)
            else:  # one of them, or some: each on its own
                for each in group:
                    self._explain_group([each])
            return
        for n, (path, picture) in enumerate(group):
            self._write(path, picture, kept, {name: heatmap[n] for name, heatmap in maps.items()}, n)

    def _write(self, path: Path, picture: Picture, kept: Trace, maps: dict[str, Heatmap], n: int) -> None:
        stem = self._stem(path)
        options = self.options
        predictions = self._predictions(kept, n)
        written: list[dict[str, Any]] = []
        tiles: list[Image.Image] = []
        captions: list[str] = []
        shown: dict[str, list[ReportMap]] = {}
        for name, heatmap in maps.items():
            raw = self.folder.write(f"{stem}/{file_stem(name)}.safetensors", save_bytes(heatmap))
            for k in range(heatmap.scores.shape[1]):
                one = heatmap[0, k]
                class_name = one.provenance.class_name(one.label())
                image = overlay(picture, one, colormap=options.colormap, alpha=options.alpha, fade=options.fade)
                base = f"{stem}/{file_stem(name)}.{one.label()}-{file_stem(class_name)}"
                row = {
                    "method": name,
                    "class": one.label(),
                    "class_name": class_name,
                    "score": float(one.scores),
                    "layer": kept.layer,
                    "overlay": str(self.folder.write(f"{base}.png", _png(image))),
                    "heatmap": str(raw),
                }
                if options.extracts:
                    row["extract"] = str(self.folder.write(f"{base}.extract.png", _png(extract(picture, one))))
                written.append(row)
                tiles.append(image)
                captions.append(f"{name}: {class_name}")
                low, high = float(one.values.min()), float(one.values.max())
                shown.setdefault(name, []).append(
                    ReportMap(name, class_name, float(one.scores), low, high, kept.layer, image)
                )
        sheet = mosaic(tiles, captions, columns=len(shown[next(iter(shown))]) if len(tiles) > len(shown) else None)
        self.rows.append(
            {
                "picture": str(path),
                "notes": list(picture.notes),
                "predictions": predictions,
                "mosaic": str(self.folder.write(f"{stem}/all.png", _png(sheet))),
                "maps": written,
            }
        )
        if len(self.shown) < _ON_ONE_PAGE:
            classes = [ReportClass(each["name"], each["probability"]) for each in predictions]
            self.shown.append(ReportPicture(picture.name, picture.notes, picture.image, classes, shown))
        self.facts = self.facts or _facts(next(iter(maps.values())), kept)

    def finish(self) -> None:
        """Write what speaks of all the pictures."""
        methods = {name: METHODS[name].summary for name in self.options.methods}
        left_out = len(self.rows) - len(self.shown)
        page = Report(self.facts, methods, self.shown, self.options.colormap, self.skipped, left_out)
        self.report = self.folder.write("report.html", report_html(page).encode())
        import json as json_format

        self.folder.write("results.json", json_format.dumps(self.results(), indent=2, ensure_ascii=False).encode())

    def results(self) -> dict[str, Any]:
        """What was done, for machines."""
        return {"about": self.facts, "pictures": self.rows, "skipped": self.skipped, "report": str(self.report)}

    def print(self) -> None:
        """What was done, for people."""
        rows = [
            (
                row["picture"],
                f"{row['predictions'][0]['name']} {row['predictions'][0]['probability']:.1%}",
                each["class_name"],
                each["method"],
                each["layer"],
                each["overlay"],
            )
            for row in self.rows
            for each in row["maps"]
        ]
        if rows:
            print_table(("picture", "predicted", "explained", "method", "layer", "overlay"), rows)
        for file, why in self.skipped.items():
            print(f"skipped {file}: {why}")  # noqa: T201
        if self.skipped:
            print(f"{len(self.skipped)} of {len(self.skipped) + len(self.rows)} pictures skipped")  # noqa: T201
        print(f"report: {self.report}")  # noqa: T201

    def _method_options(self, name: str) -> dict[str, Any]:
        return {"seed": self.options.seed} if "seed" in METHODS[name].options else {}

    def _predictions(self, kept: Trace, n: int, most: int = 5) -> list[dict[str, Any]]:
        probabilities = class_logits(kept.output)[n].detach().softmax(0)
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

    def _stem(self, path: Path) -> str:
        """A folder name for the picture; pictures of one name from two folders get two."""
        wanted = file_stem(path.stem)
        stem = next(s for s in _numbered(wanted) if s not in self.stems)
        self.stems.add(stem)
        return stem


def _facts(heatmap: Heatmap, kept: Trace) -> dict[str, str]:
    made = heatmap.provenance
    return {
        "model": made.model,
        "weights": made.weights or "the model's own",
        "layer": f"{made.layer}: {made.layer_reason}",
        "preprocessing": made.preprocess,
        "score": f"{made.score} of the class",
        "computed": f"in {made.dtype} on {made.device}, torch {made.torch}, torchpeek {__version__}",
    }


def _target(classes: list[str] | None, top: int | None) -> Any:
    if top is not None:
        return TopClasses(top)
    if classes:
        return Classes([int(each) if each.isascii() and each.isdigit() else each for each in classes])
    return Predicted()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"--device {name!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can"
        ) from error
    return device


def _applicable(loaded: LoadedModel, found: list[Path], names: list[str], layer: str | None, target: Any) -> list[str]:
    """All methods but those that the model's head rules out, tried on the first picture that can be read."""
    for path in found:
        try:
            read_image(path)
        except FileError:
            continue
        kept = trace(loaded, path, layer=layer, target=target, gradients=False)
        return [name for name in names if METHODS[name].needs != "head" or kept.head is not None]
    return names


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


def _png(image: Image.Image) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()
