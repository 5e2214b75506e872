"""torchpeek features: what layers make of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek.anatomy import activations, statistics
from torchpeek.anatomy.statistics import LayerStatistics
from torchpeek.cli.console import counted, print_json, print_skipped, print_table, print_written, progress
from torchpeek.cli.loading import (
    Flag,
    Many,
    Out,
    about,
    check_looks,
    file_names,
    loaded_model,
    output_folder,
    remark,
    selection,
    tensorboard_writer,
    titled,
)
from torchpeek.cli.skipped import Skipped
from torchpeek.engine import suggest_layer
from torchpeek.errors import InputError, LayerError, OptionError
from torchpeek.hooks import containers, select
from torchpeek.integrations.tensorboard import add_features
from torchpeek.models import LoadedModel, model_call_for
from torchpeek.render import feature_grid
from torchpeek.store import OutputFolder, find_pictures, json_text, png_bytes, tensor_bytes


def features(
    *pictures: str,
    model: str,
    layer: Many = None,
    out: Out = None,
    overwrite: Flag = False,
    most: int = 64,
    scale: str = "each",
    colormap: str = "viridis",
    tensorboard: Path | None = None,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    device: str = "cpu",
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show what layers return for each picture: shape, spread, share of zeros, dead channels, and the feature maps.

    With --out it writes, for each picture, a grid of feature maps for every layer and features.safetensors, with all
    the values; and features.json, with the table. Of a layer that is called several times each call has a row,
    `relu[1]` for the second; of one that returns several tensors each of them, `lstm:1.0`; neither is drawn.

    Example: torchpeek features cat.jpg --model torchvision:alexnet --layer "features.*" -o features/

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable.
    layer
        A name or glob; several times for several. Without it, the layer that "cam" would look at.
    out
        The folder to write to. Without it, only the table is printed.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    most
        Draw at most so many feature maps of a layer; what is left out is said.
    scale
        each: every map from its own lowest to its own highest value; shared: one scale for all maps of a layer. The
        picture says which, in numbers.
    colormap
        viridis, inferno, turbo, jet; or diverging, with zero in the middle.
    tensorboard
        Write the pictures for TensorBoard to this folder, too.
    weights
        "random", a file, or the name of torchvision's weights.
    trust_pickle
        Load a weights file that may run code.
    trust_remote_code
        Run the code that a checkpoint of transformers brings along.
    device
        cpu, cuda, cuda:1, mps.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    if not pictures:
        raise OptionError("no pictures; give files, folders or globs: torchpeek features cat.jpg --model ...")
    check_looks(most=most, scale=scale, colormap=colormap)
    files = find_pictures(pictures)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device=device, trust_remote_code=trust_remote_code)
    looks = {"most": most, "scale": scale, "colormap": colormap}
    stems = file_names({str(file): file.stem for file in files}, reserved="features.json")
    rows: list[dict[str, Any]] = []
    skipped = Skipped()
    results: dict[str, Any] = {"about": about(loaded), "features": rows, "skipped": skipped.why}
    with (
        output_folder(out, overwrite=overwrite) as folder,
        tensorboard_writer(tensorboard) as writer,
        progress("looking", len(files)) as advance,
    ):
        try:
            for step, file in enumerate(files):
                try:
                    picture = loaded.read(file)
                    wanted = selection(layer) or [suggest_layer(loaded.module, model_call_for(loaded, picture)).layer]
                    seen = _seen(loaded, picture.tensor, wanted)
                except Exception as error:
                    skipped.add(file, error, unless=(LayerError,))
                else:
                    rows += _written(file, stems[str(file)], seen, folder, loaded, looks)
                    if writer is not None:
                        shown = {each.name: each.maps for each in seen if each.maps is not None}
                        add_features(writer, shown, step, remark=remark(loaded), **looks)
                advance(1)
        except BaseException:
            if folder is not None and rows:  # nothing of what was done is lost
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
        print_skipped(skipped.why, len(files))
        if folder is not None:
            drawn = sum("drawn" in row for row in rows)
            values = "features.safetensors of each picture" if rows else ""
            print_written(folder.path, counted(drawn, "grid"), values, "features.json")
    return 1 if skipped else 0


@dataclass(frozen=True)
class _Seen:
    """One call of a layer for one picture, or one tensor of it where it returns several."""

    row: LayerStatistics
    tensor: Tensor | None  # None where there is none, or one for each of several calls

    @property
    def name(self) -> str:
        """As in the table."""
        return self.row.name

    @property
    def maps(self) -> Tensor | None:
        """(1, C, h, w), if that is what the layer returned; channels that are last are brought there."""
        found = self.tensor
        if found is None or ":" in self.name or found.ndim != 4 or len(found) != 1 or not found.numel():
            return None
        assert self.row.output is not None
        return found if self.row.output.channels == found.shape[1] else found.movedim(-1, 1)

    @property
    def remark(self) -> str:
        """Why it is not drawn."""
        if self.row.output is None or self.maps is not None:
            return self.row.remark
        if self.tensor is None:
            return "one of several calls, not drawn"
        return "one of several tensors, not drawn" if ":" in self.name else "no grid to draw"


def _seen(loaded: LoadedModel, inputs: Tensor, wanted: list[str]) -> list[_Seen]:
    rows = _statistics(loaded, inputs, wanted)
    returned = {row.name.partition(":")[0] for row in rows if row.output is not None}
    once = [name for name in select(loaded.module, wanted) if name in returned]  # those of several calls are `relu[0]`
    tensors = {
        f"{name}:{path}" if path else name: tensor
        for name, output in (activations(loaded, inputs, once) if once else {}).items()
        for path, tensor in containers.leaves(output)
    }
    return [_Seen(row, tensors.get(row.name)) for row in rows]


def _statistics(loaded: LoadedModel, inputs: Tensor, wanted: list[str]) -> list[LayerStatistics]:
    try:
        return list(statistics(loaded, inputs, wanted, histogram=False))
    except InputError as error:  # one of the layers has no such numbers, as it returns complex ones, say: which?
        layers = select(loaded.module, wanted)
        if len(layers) > 1:
            return [row for name in layers for row in _statistics(loaded, inputs, [name])]
        return [LayerStatistics(name, type(layer).__name__, None, None, str(error)) for name, layer in layers.items()]


def _written(
    file: Path,
    stem: str,
    seen: list[_Seen],
    folder: OutputFolder | None,
    loaded: LoadedModel,
    looks: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of one picture, and its files."""
    rows = [_row(file, each) for each in seen]
    if folder is None:
        return rows
    names = file_names({each.name: each.name for each in seen}, reserved="features")
    for row, each in zip(rows, seen, strict=True):
        if each.maps is not None:
            image = feature_grid(each.maps, title=titled(each.name, loaded), **looks)
            row["drawn"] = str(folder.write(f"{stem}/{names[each.name]}.png", png_bytes(image)))
    kept = {each.name: each.tensor for each in seen if each.tensor is not None}
    folder.write(f"{stem}/features.safetensors", tensor_bytes(kept, about(loaded) | {"picture": str(file)}))
    return rows


def _row(file: Path, seen: _Seen) -> dict[str, Any]:
    row: dict[str, Any] = {"picture": str(file), "layer": seen.name}
    if seen.tensor is not None:
        row["shape"] = list(seen.tensor.shape)
    if seen.row.output is not None and seen.row.output.channels:
        whole = seen.row.output.summary()
        row |= {key: getattr(whole, key) for key in ("mean", "std", "min", "max", "zero_share", "dead", "nan", "inf")}
    return row | ({"remark": seen.remark} if seen.remark else {})


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max")]
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    shape = " x ".join(map(str, row.get("shape", [])))
    shown = row.get("drawn") or row.get("remark", "")
    return (row["picture"], row["layer"], shape, *numbers, zeros, str(row.get("dead", "")), shown)
