"""torchpeek kernels: the weights of a network's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchpeek.anatomy import kernels
from torchpeek.cli.console import counted, print_json, print_table, print_written
from torchpeek.cli.drawing import check_grid
from torchpeek.cli.kernels_page import EmbeddedGrid, embedded_grid, kernels_report
from torchpeek.cli.loading import about, loaded_model, remark, titled
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import ModelOptions, OutputOptions
from torchpeek.cli.output import file_names, output_folder, saved_on_failure, tensorboard_writer, write_results
from torchpeek.cli.page import PAGE, page_facts, write_page
from torchpeek.cli.terminal import print_text
from torchpeek.integrations.tensorboard import add_kernels
from torchpeek.norms import mean_and_std
from torchpeek.render import kernel_grid
from torchpeek.store import png_bytes, tensor_bytes


def run(
    model: ModelOptions,
    output: OutputOptions,
    *,
    layers: Sequence[str] | None,
    most: int | None,
    scale: str,
    tensorboard: Path | None,
    json: bool,
) -> int:
    """List and draw the kernels of the model. Returns the exit status."""
    check_grid(scale=scale)
    loaded = loaded_model(model, "cpu", own_preprocess=False)
    weights = kernels(loaded, layer_names(layers))
    drawn = {name: each for name, each in weights.by_output().items() if 3 <= each.ndim <= 5 and not each.is_complex()}
    # A kernel of size 1 x 1 has no shape to look at.
    larger = {name: each for name, each in drawn.items() if each[0, 0].numel() > 1} or drawn
    first = {name: weight[0].unsqueeze(1) for name, weight in larger.items()}  # (in, 1, *kernel) each
    files = file_names({name: name for name in drawn}, reserved=["first-kernels"])
    rows = {name: _row(name, weight) for name, weight in weights.items()}
    results: dict[str, Any] = {
        "about": about(loaded),
        "layers": list(rows.values()),
        "by_shape": {" x ".join(map(str, shape)) or "1": list(each) for shape, each in weights.by_shape().items()},
    }
    with output_folder(output) as folder, tensorboard_writer(tensorboard) as writer:
        if folder is not None:
            grids: dict[str, EmbeddedGrid] = {}
            first_grid: Image.Image | None = None
            with saved_on_failure(folder, lambda folder: write_results(folder, "kernels.json", results)):
                for name in (name for name in rows if name in drawn):
                    title = titled(name, loaded)
                    image = kernel_grid(drawn[name], most=most, most_channels=most, scale=scale, title=title)
                    grids[name] = embedded_grid(image, len(rows))
                    rows[name]["picture"] = str(folder.write(f"{files[name]}.png", png_bytes(image)))
                if first:
                    title = titled(_first_title(len(drawn) - len(first)), loaded)
                    first_grid = kernel_grid(first, scale="each", most_channels=most, title=title)
                    results["first"] = str(folder.write("first-kernels.png", png_bytes(first_grid)))
                results["weights"] = str(folder.write("kernels.safetensors", tensor_bytes(weights, about(loaded))))
            write_results(folder, "kernels.json", results)
            facts = page_facts(loaded, **_options(layers, most, scale))
            write_page(folder, kernels_report(results, facts, grids, first_grid))
        if writer is not None:
            add_kernels(writer, weights, remark=remark(loaded), most=most, most_channels=most, scale=scale)
    if json:
        print_json(results)
        return 0
    header = ("layer", "kernels", "mean", "std", "min", "max", "zeros", *(["picture"] if folder else []))
    print_table(header, [_cells(row, pictures=folder is not None) for row in rows.values()])
    for shape, names in results["by_shape"].items():
        print_text(f"{shape}: {counted(len(names), 'layer')}")
    if folder is not None:
        pictures = len(drawn) + bool(first)
        print_written(folder.path, counted(pictures, "picture"), "kernels.safetensors", "kernels.json", page=PAGE)
    return 0


def _options(layers: Sequence[str] | None, most: int | None, scale: str) -> dict[str, Any]:
    """What was asked, for the page."""
    drawn = None if most is None else f"at most {most} kernels of a layer, and {most} input channels of a kernel"
    return {"layers": layer_names(layers) or "every convolution", "drawn": drawn, "scale": scale}


def _first_title(left_out: int) -> str:
    """The title of the picture of the first kernels."""
    words = f", without {counted(left_out, 'layer')} of kernels of size 1" if left_out else ""
    return f"the first kernels{words}"


def _row(name: str, weight: Tensor) -> dict[str, Any]:
    row = {"layer": name, "shape": list(weight.shape)}
    if weight.is_complex():
        return row | {"remark": "complex numbers, which are not drawn"}
    values = weight.double()
    mean, std = mean_and_std(values)
    return row | {
        "mean": mean,
        "std": std,
        "min": float(values.min()),
        "max": float(values.max()),
        "zero_share": float((values == 0).double().mean()),
        "not_finite": int((~torch.isfinite(values)).sum()),
    }


def _cells(row: dict[str, Any], *, pictures: bool) -> tuple[str, ...]:
    spread = (f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max"))
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    shown = row.get("picture") or row.get("remark", "")
    return (row["layer"], " x ".join(map(str, row["shape"])), *spread, zeros, *([shown] if pictures else []))
