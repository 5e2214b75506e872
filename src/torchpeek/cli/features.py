"""torchpeek features: what layers return for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek.anatomy import activations, statistics
from torchpeek.anatomy.statistics import LayerStatistics
from torchpeek.cli.console import counted, print_json, print_skipped, print_table, print_written, progress
from torchpeek.cli.drawing import check_grid
from torchpeek.cli.loading import about, check_pictures_fit, loaded_model, remark, titled
from torchpeek.cli.options import ModelOptions, OutputOptions, PictureOptions, layer_names
from torchpeek.cli.output import file_names, output_folder, tensorboard_writer
from torchpeek.cli.pictures import picture_files
from torchpeek.cli.skipped import Skipped
from torchpeek.engine import suggest_layer
from torchpeek.errors import InputError, LayerError, notify
from torchpeek.hooks import containers, select
from torchpeek.integrations.tensorboard import add_features
from torchpeek.models import LoadedModel, model_call_for
from torchpeek.render import feature_grid
from torchpeek.store import OutputFolder, json_text, png_bytes, tensor_bytes


def run(
    pictures: Sequence[Path],
    model: ModelOptions,
    device: str,
    output: OutputOptions,
    *,
    layers: Sequence[str] | None,
    most: int,
    scale: str,
    colormap: str,
    inputs: PictureOptions,
    tensorboard: Path | None,
    json: bool,
) -> int:
    """Show what the layers return for each picture. Returns the exit status."""
    check_grid(most=most, scale=scale, colormap=colormap)
    files = picture_files(pictures, inputs, "torchpeek features cat.jpg --model torchvision:resnet50")
    loaded = loaded_model(model, device, inputs)
    check_pictures_fit(loaded, files, inputs)
    grid_options = {"most": most, "scale": scale, "colormap": colormap}
    stems = file_names({str(file): file.stem for file in files}, reserved="features.json")
    rows: list[dict[str, Any]] = []
    skipped = Skipped()
    results: dict[str, Any] = {"about": about(loaded), "features": rows, "skipped": skipped.why}
    with (
        output_folder(output) as folder,
        tensorboard_writer(tensorboard) as writer,
        progress("looking", len(files)) as advance,
    ):
        try:
            for step, file in enumerate(files):
                try:
                    picture = files.read(loaded, file)
                    selected = layer_names(layers) or [
                        suggest_layer(loaded.module, model_call_for(loaded, picture)).layer
                    ]
                    outputs = _layer_outputs(loaded, picture.tensor, selected)
                except Exception as error:
                    skipped.add(file, error, unless=(LayerError,))
                else:
                    if folder is not None and not rows:
                        _notify_size(outputs, len(files), folder.path)
                    rows += _write(file, stems[str(file)], outputs, folder, loaded, grid_options)
                    if writer is not None:
                        maps = {each.name: each.maps for each in outputs if each.maps is not None}
                        add_features(writer, maps, step, remark=remark(loaded), **grid_options)
                advance(1)
        except BaseException:
            if folder is not None and rows:  # the results so far are not lost
                folder.write("features.json", json_text(results).encode())
            raise
        if not rows:
            skipped.check()
        if folder is not None:
            folder.write("features.json", json_text(results).encode())
    if json:
        print_json(results)
    else:
        header = ("picture", "layer", "shape", "mean", "std", "min", "max", "zeros", "dead", "drawn")
        if rows:
            print_table(header, [_cells(row) for row in rows])
            if call := next((row["layer"] for row in rows if row.get("remark") == _ONE_OF_SEVERAL), None):
                print(f"\nOne of several calls is drawn where it is named, such as --layer '{call.partition(':')[0]}'.")
        print_skipped(skipped.why, len(files))
        if folder is not None:
            drawn = sum("drawn" in row for row in rows)
            values = "features.safetensors of each picture" if rows else ""
            print_written(folder.path, counted(drawn, "grid"), values, "features.json")
    return 1 if skipped else 0


_ONE_OF_SEVERAL = "one of several calls, not drawn"


@dataclass(frozen=True)
class _LayerOutput:
    """What one call of a layer returned for one picture; one of the tensors, if it returned several."""

    row: LayerStatistics
    tensor: Tensor | None  # None where it returned no tensor, or is one of several calls

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.row.name

    @property
    def maps(self) -> Tensor | None:
        """The (1, C, h, w) feature maps, from channels first or last. None where the layer returned something else."""
        tensor = self.tensor
        if tensor is None or ":" in self.name or tensor.ndim != 4 or len(tensor) != 1 or not tensor.numel():
            return None
        assert self.row.output is not None
        return tensor if self.row.output.channels == tensor.shape[1] else tensor.movedim(-1, 1)

    @property
    def remark(self) -> str:
        """Why it is not drawn."""
        if self.row.output is None or self.maps is not None:
            return self.row.remark
        if self.tensor is None:
            return _ONE_OF_SEVERAL
        return "one of several tensors, not drawn" if ":" in self.name else "no grid to draw"


def _layer_outputs(loaded: LoadedModel, inputs: Tensor, selected: list[str]) -> list[_LayerOutput]:
    rows = _statistics(loaded, inputs, selected)
    names = {row.name.partition(":")[0] for row in rows if row.output is not None}
    # The rows of a layer that is called several times are `relu[0]` and so on; one that is named so is drawn, too.
    single = [name for name in select(loaded.module, selected) if name in names]
    tensors = {
        f"{name}:{path}" if path else name: tensor
        for name, output in (activations(loaded, inputs, single) if single else {}).items()
        for path, tensor in containers.leaves(output)
    }
    return [_LayerOutput(row, tensors.get(row.name)) for row in rows]


def _statistics(loaded: LoadedModel, inputs: Tensor, selected: list[str]) -> list[LayerStatistics]:
    try:
        return list(statistics(loaded, inputs, selected, histogram=False))
    except InputError as error:  # a layer has no statistics, such as one that returns complex numbers; try each alone
        layers = select(loaded.module, selected)
        if len(layers) > 1:
            return [row for name in layers for row in _statistics(loaded, inputs, [name])]
        return [
            LayerStatistics(name, type(layer.module).__name__, None, None, str(error)) for name, layer in layers.items()
        ]


def _write(
    file: Path,
    stem: str,
    outputs: list[_LayerOutput],
    folder: OutputFolder | None,
    loaded: LoadedModel,
    grid_options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Write the files of one picture, if there is a folder. Returns the picture's rows."""
    rows = [_row(file, each) for each in outputs]
    if folder is None:
        return rows
    names = file_names({each.name: each.name for each in outputs}, reserved="features")
    for row, each in zip(rows, outputs, strict=True):
        if each.maps is not None:
            image = feature_grid(each.maps, title=titled(each.name, loaded), **grid_options)
            row["drawn"] = str(folder.write(f"{stem}/{names[each.name]}.png", png_bytes(image)))
    tensors = {each.name: each.tensor for each in outputs if each.tensor is not None}
    folder.write(f"{stem}/features.safetensors", tensor_bytes(tensors, about(loaded) | {"picture": str(file)}))
    return rows


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
    return row | ({"remark": output.remark} if output.remark else {})


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max")]
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    shape = " x ".join(map(str, row.get("shape", [])))
    shown = row.get("drawn") or row.get("remark", "")
    return (row["picture"], row["layer"], shape, *numbers, zeros, str(row.get("dead", "")), shown)
