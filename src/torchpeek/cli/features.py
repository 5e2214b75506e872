"""torchpeek features: what layers make of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek.anatomy import activations
from torchpeek.cli.console import json_text, print_json, print_skipped, print_table, progress
from torchpeek.cli.loading import (
    Flag,
    Many,
    Out,
    about,
    file_names,
    loaded_model,
    output_folder,
    selection,
    tensorboard_writer,
    titled,
)
from torchpeek.engine import suggest_layer
from torchpeek.errors import FileError, LayerError, OptionError
from torchpeek.hooks.running import RunningStatistics
from torchpeek.integrations.tensorboard import add_features
from torchpeek.models import LoadedModel
from torchpeek.render import COLORMAPS, feature_grid
from torchpeek.store import OutputFolder, find_pictures, png_bytes, tensor_bytes


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
    device: str = "cpu",
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show what layers return for each picture: shape, spread, share of zeros, dead channels, and the feature maps.

    With --out it writes, for each picture, a grid of feature maps for every layer and features.safetensors, with all
    the values; and features.json, with the table.

    Example: torchpeek features cat.jpg --model torchvision:alexnet --layer "features.*" -o features/

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, or package.module:callable.
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
    device
        cpu, cuda, cuda:1, mps.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    if not pictures:
        raise OptionError("no pictures; give files, folders or globs: torchpeek features cat.jpg --model ...")
    if colormap not in COLORMAPS:
        raise OptionError(f"--colormap is one of {', '.join(COLORMAPS)}; got {colormap}")
    files = find_pictures(pictures)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device=device)
    looks = {"most": most, "scale": scale, "colormap": colormap}
    stems = file_names({str(file): file.stem for file in files})
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    results: dict[str, Any] = {"about": about(loaded), "features": rows, "skipped": skipped}
    with (
        output_folder(out, overwrite=overwrite) as folder,
        tensorboard_writer(tensorboard) as writer,
        progress("looking", len(files)) as advance,
    ):
        for step, file in enumerate(files):
            try:
                picture = loaded.read(file)
                wanted = selection(layer) or [suggest_layer(loaded.module, picture.tensor).layer]
                found = activations(loaded, picture, wanted)
            except LayerError:
                raise  # so would every other picture
            except Exception as error:
                skipped[str(file)] = str(error) if isinstance(error, FileError) else f"{type(error).__name__}: {error}"
            else:
                rows += _written(file, stems[str(file)], found, folder, loaded, looks)
                if writer is not None:
                    add_features(writer, found, step, **looks)
            advance(1)
        if folder is not None and rows:
            folder.write("features.json", json_text(results).encode())
        if not rows:
            reasons = "; ".join(skipped.values())
            raise OptionError(f"none of the {len(files)} pictures could be used: {reasons}")
    if json:
        print_json(results)
    else:
        header = ("picture", "layer", "shape", "mean", "std", "min", "max", "zeros", "dead", "drawn")
        print_table(header, [_cells(row) for row in rows])
        print_skipped(skipped, len(files))
    return 1 if skipped else 0


def _written(
    file: Path,
    stem: str,
    found: dict[str, Any],
    folder: OutputFolder | None,
    loaded: LoadedModel,
    looks: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of one picture, and its files."""
    rows = []
    names = file_names({name: name for name in found})
    for layer, activation in found.items():
        row: dict[str, Any] = {"picture": str(file), "layer": layer}
        rows.append(row)
        if not isinstance(activation, Tensor):
            row["remark"] = f"returned a {type(activation).__name__}; choose a layer in it"
            continue
        statistics = RunningStatistics(histogram=False)
        statistics.update(activation)
        whole = statistics.summary()
        row |= {"shape": list(activation.shape)} | {
            key: getattr(whole, key) for key in ("mean", "std", "min", "max", "zero_share", "dead", "nan", "inf")
        }
        if folder is None:
            continue
        if activation.ndim == 4:
            image = feature_grid(activation, title=titled(layer, loaded), **looks)
            row["drawn"] = str(folder.write(f"{stem}/{names[layer]}.png", png_bytes(image)))
        else:
            row["remark"] = "no grid to draw"
    if folder is not None:
        kept = {name: each for name, each in found.items() if isinstance(each, Tensor)}
        folder.write(f"{stem}/features.safetensors", tensor_bytes(kept, about(loaded) | {"picture": str(file)}))
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max")]
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    shape = " x ".join(map(str, row.get("shape", [])))
    shown = row.get("drawn") or row.get("remark", "")
    return (row["picture"], row["layer"], shape, *numbers, zeros, str(row.get("dead", "")), shown)
