"""torchpeek features: what layers return for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from torchpeek.anatomy import statistics
from torchpeek.anatomy.statistics_table import LayerStatistics
from torchpeek.cli.console import counted, print_json, print_skipped, print_table, print_written, progress
from torchpeek.cli.drawing import feature_grid_options
from torchpeek.cli.features_page import FeaturesPage
from torchpeek.cli.loading import about, check_pictures_fit, loaded_model, remark, titled
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import FeatureMapOptions, ModelOptions, OutputOptions, PictureOptions, TargetOptions
from torchpeek.cli.output import file_names, output_folder, saved_on_failure, tensorboard_writer, write_results
from torchpeek.cli.page import PAGE, page_facts, write_page
from torchpeek.cli.pictures import picture_files
from torchpeek.cli.skipped import Skipped
from torchpeek.cli.targets import check_target, make_target
from torchpeek.engine import Layout, Target, Trace, inspectable_module, layout_of, suggest_layer
from torchpeek.errors import LayerError, OptionError, PassError, TargetError, TorchpeekError, notify
from torchpeek.explanation import trace
from torchpeek.hooks import Recording, call_name, containers, record, select
from torchpeek.integrations.tensorboard import add_features
from torchpeek.models import LoadedModel, model_call_for
from torchpeek.render import feature_grid
from torchpeek.render.feature_maps import returned_maps
from torchpeek.store import OutputFolder, png_bytes, tensor_bytes
from torchpeek.text_table import percentage


def run(
    pictures: Sequence[Path],
    model: ModelOptions,
    device: str,
    output: OutputOptions,
    target: TargetOptions,
    drawing: FeatureMapOptions,
    *,
    layers: Sequence[str] | None,
    inputs: PictureOptions,
    tensorboard: Path | None,
    json: bool,
) -> int:
    """Show what the layers return for each picture. Returns the exit status."""
    check_target(target)
    grid_options = feature_grid_options(drawing, target)
    files = picture_files(pictures, inputs, "torchpeek features cat.jpg --model torchvision:resnet50")
    loaded = loaded_model(model, device, inputs)
    check_pictures_fit(loaded, files, inputs)
    score = make_target(target, loaded) if drawing.sort == "contribution" else None
    stems = file_names({str(file): file.stem for file in files}, reserved=("features.json", PAGE))
    rows: list[dict[str, Any]] = []
    skipped = Skipped()
    page = FeaturesPage(len(files))
    facts = page_facts(loaded, files, **_options(drawing, layers, target))
    results: dict[str, Any] = {"about": about(loaded), "features": rows, "skipped": skipped.why}

    def write(folder: OutputFolder) -> None:
        write_results(folder, "features.json", results)
        write_page(folder, page.report(facts, skipped.why))

    def save(folder: OutputFolder) -> bool:
        if rows:
            write(folder)
        return bool(rows)

    with (
        output_folder(output) as folder,
        tensorboard_writer(tensorboard) as writer,
        progress("looking", len(files)) as advance,
    ):
        with saved_on_failure(folder, save):
            for step, file in enumerate(files):
                try:
                    picture = files.read(loaded, file)
                    selected = layer_names(layers) or [
                        suggest_layer(loaded.module, model_call_for(loaded, picture)).layer
                    ]
                    outputs = _layer_outputs(loaded, picture.tensor, selected, score)
                except Exception as error:
                    skipped.add(file, error, unless=(LayerError, TargetError))
                else:
                    _check_channels(outputs, grid_options["channels"])
                    if folder is not None and not rows:
                        _notify_size(outputs, len(files), folder.path)
                    rows_and_grids = _write(file, stems[str(file)], outputs, folder, loaded, grid_options)
                    rows += rows_and_grids[0]
                    if folder is not None:
                        page.add(picture, file, stems[str(file)], *rows_and_grids)
                    if writer is not None:
                        for each in outputs:
                            if each.drawable is not None:
                                options = each.layout_option | grid_options
                                drawn = {each.name: each.drawable}
                                add_features(writer, drawn, step, remark=remark(loaded), **options)
                advance(1)
        if not rows:
            skipped.check()
        if folder is not None:
            write(folder)
    if json:
        print_json(results)
    else:
        header = ("picture", "layer", "shape", "mean", "std", "min", "max", "zeros", "dead", "drawn")
        if rows:
            print_table(header, [_cells(row) for row in rows])
        print_skipped(skipped.why, len(files))
        if folder is not None:
            grids = counted(sum("drawn" in row for row in rows), "grid")
            values = "features.safetensors of each picture" if rows else ""
            print_written(folder.path, grids, values, "features.json", page=PAGE)
    return 1 if skipped else 0


@dataclass(frozen=True)
class _LayerOutput:
    """What one call of a layer returned for one picture; one of the tensors, if it returned several.

    Args:
        row: Its statistics.
        tensor: The tensor. None where it returned none.
        layout: The layout of the tensor, where it has a grid.
        trace: The trace that its contributions to the score are read from, where they are asked for.
        remark: Why it has no statistics, or is not drawn.
    """

    row: LayerStatistics
    tensor: Tensor | None = None
    layout: Layout | None = None
    trace: Trace | None = None
    remark: str = ""

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.row.name

    @property
    def drawable(self) -> Tensor | Trace | None:
        """What `feature_grid` draws. None where there is nothing to draw."""
        return None if self.remark else self.trace or self.tensor

    @property
    def layout_option(self) -> dict[str, Any]:
        """The layout for `feature_grid`, which a trace knows by itself."""
        return {} if self.trace else {"layout": self.layout}


def _layer_outputs(
    loaded: LoadedModel, inputs: Tensor, selected: list[str], target: Target | None
) -> list[_LayerOutput]:
    with record(inspectable_module(loaded.module), selected, snapshot="clone") as tape:
        rows = list(statistics(loaded, inputs, selected, histogram=False))
    with_statistics = {row.name.partition(":")[0] for row in rows if row.output is not None}
    tensors = {
        f"{call}:{path}" if path else call: tensor
        for call, output in _named_outputs(tape).items()
        if call in with_statistics
        for path, tensor in containers.leaves(output)
    }
    return [_layer_output(loaded, inputs, row, tensors.get(row.name), target) for row in rows]


def _named_outputs(tape: Recording) -> dict[str, Any]:
    """What each call returned in the last pass, by the names in statistics: `relu[0]` and so on for several calls."""
    return {
        name if len(tape[name]) == 1 else call_name(name, number): call.output
        for name in tape
        for number, call in enumerate(tape[name])
    }


def _layer_output(
    loaded: LoadedModel, inputs: Tensor, row: LayerStatistics, tensor: Tensor | None, target: Target | None
) -> _LayerOutput:
    if row.output is None:
        return _LayerOutput(row, tensor, remark=row.remark)
    if ":" in row.name:
        return _LayerOutput(row, tensor, remark="one of several tensors, not drawn")
    layout = _layout(loaded, inputs, row, tensor)
    if layout is None:
        return _LayerOutput(row, tensor, remark="no grid to draw")
    if target is None:
        return _LayerOutput(row, tensor, layout)
    try:
        found = trace(loaded, inputs, layer=row.name, layout=layout, target=target).first(1)  # without the graph
    except (LayerError, PassError) as error:  # the score may be read from another part of the model
        return _LayerOutput(row, tensor, layout, remark=str(error))
    return _LayerOutput(row, tensor, layout, found)


def _layout(loaded: LoadedModel, inputs: Tensor, row: LayerStatistics, tensor: Tensor | None) -> Layout | None:
    """The layout of the tensor by a dry run, otherwise with two axes of a grid, as its statistics read it."""
    if tensor is None or not tensor.numel() or tensor.ndim < 3:
        return None
    with suppress(TorchpeekError):  # of a model whose layouts cannot be inferred
        [layer] = select(loaded.module, row.name).values()
        layout = layout_of(loaded.module, model_call_for(loaded, inputs), layer)
        if layout is not None and layout.fits(tensor, 1):
            return layout
    if tensor.ndim != 4 or len(tensor) != 1:
        return None
    assert row.output is not None
    if row.output.channels == tensor.shape[1]:
        return Layout("channels-first", tuple(tensor.shape[2:]))
    return Layout("channels-last", tuple(tensor.shape[1:3]))


def _check_channels(outputs: list[_LayerOutput], channels: list[int] | None) -> None:
    """Raise OptionError for a channel that an output does not have, also where nothing is drawn."""
    for each in outputs:
        if channels is not None and each.tensor is not None and each.drawable is not None:
            try:
                returned_maps(each.tensor, each.layout, None).chosen(channels, len(channels), "index")
            except OptionError as error:
                raise OptionError(f"layer {each.name!r}: {error}") from error


def _write(
    file: Path,
    stem: str,
    outputs: list[_LayerOutput],
    folder: OutputFolder | None,
    loaded: LoadedModel,
    grid_options: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Image.Image]]:
    """Write the files of one picture, if there is a folder. Returns the picture's rows, and the grids by layer."""
    rows = [_row(file, each) for each in outputs]
    grids: dict[str, Image.Image] = {}
    if folder is None:
        return rows, grids
    with folder.part() as part:
        grids = _write_files(file, stem, outputs, rows, part, loaded, grid_options)
    return rows, grids


def _write_files(
    file: Path,
    stem: str,
    outputs: list[_LayerOutput],
    rows: list[dict[str, Any]],
    folder: OutputFolder,
    loaded: LoadedModel,
    grid_options: dict[str, Any],
) -> dict[str, Image.Image]:
    """Write the files of one picture, and add them to its rows. Returns the grids by layer."""
    grids: dict[str, Image.Image] = {}
    names = file_names({each.name: each.name for each in outputs}, reserved=["features"])
    for row, each in zip(rows, outputs, strict=True):
        if each.drawable is not None:
            image = feature_grid(each.drawable, title=titled(each.name, loaded), **each.layout_option, **grid_options)
            row["drawn"] = str(folder.write(f"{stem}/{names[each.name]}.png", png_bytes(image)))
            grids[each.name] = image
    tensors = {each.name: each.tensor for each in outputs if each.tensor is not None}
    folder.write(f"{stem}/features.safetensors", tensor_bytes(tensors, about(loaded) | {"picture": str(file)}))
    return grids


def _options(drawing: FeatureMapOptions, layers: Sequence[str] | None, target: TargetOptions) -> dict[str, Any]:
    """What was asked, for the page."""
    scored = drawing.sort == "contribution"
    named = [*(target.classes or ()), *(target.texts or ()), *(f"box {rank}" for rank in target.boxes or ())]
    return {
        "layers": layer_names(layers) or "the layer that cam uses",
        "channels": layer_names(drawing.channels),
        "drawn": f"at most {drawing.most} feature maps of a layer",
        "sort": f"contribution to the score of {named[0] if named else 'what is predicted'}" if scored else None,
        "scale": drawing.scale,
        "clip": None if drawing.clip is None else "percentiles {:g} to {:g}".format(*drawing.clip),
        "colormap": drawing.colormap,
    }


def _notify_size(outputs: list[_LayerOutput], pictures: int, folder: Path) -> None:
    """Say how much will be written, from the tensors of the first picture, where it is 10 MB or more."""
    size = sum(each.tensor.nbytes for each in outputs if each.tensor is not None) * pictures
    if size >= 10_000_000:
        notify(f"about {size / 1e6:,.0f} MB of values will be written to {folder}; --layer selects fewer layers")


def _row(file: Path, output: _LayerOutput) -> dict[str, Any]:
    row: dict[str, Any] = {"picture": str(file), "layer": output.name}
    if output.tensor is not None:
        row["shape"] = list(output.tensor.shape)
    if output.row.output is not None and output.row.output.channels:
        summary = output.row.output.summary()
        row |= {key: getattr(summary, key) for key in ("mean", "std", "min", "max", "zero_share", "dead", "nan", "inf")}
    if output.layout is not None and output.layout.flat:
        row["layout"] = str(output.layout)
    if output.trace is not None:
        row["score"] = float(output.trace.scores[0, 0])
        row["contributions"] = output.trace.contributions[0, 0].tolist()
    return row | ({"remark": output.remark} if output.remark else {})


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max")]
    zeros = percentage(row["zero_share"]) if "zero_share" in row else ""
    shape = " x ".join(map(str, row.get("shape", [])))
    shown = row.get("drawn") or row.get("remark", "")
    return (row["picture"], row["layer"], shape, *numbers, zeros, str(row.get("dead", "")), shown)
