"""torchpeek kernels: what the convolutions of a network weigh their inputs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchpeek.anatomy import kernels as kernels_of
from torchpeek.cli.console import counted, print_json, print_table, print_written
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
from torchpeek.integrations.tensorboard import add_kernels
from torchpeek.render import kernel_grid
from torchpeek.store import json_text, png_bytes, tensor_bytes


def kernels(
    *,
    model: str,
    layer: Many = None,
    out: Out = None,
    overwrite: Flag = False,
    most: int = 64,
    scale: str = "shared",
    tensorboard: Path | None = None,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """List the convolutions of a network with the shape and the spread of their kernels, and draw them.

    With --out it writes a picture for each layer; kernels.safetensors, with all the weights; kernels.json, with the
    table; and first-kernels.png, with the first kernel of each layer.

    Example: torchpeek kernels --model torchvision:mobilenet_v2 --layer "features.0*" -o kernels/

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable.
    layer
        A name or glob; several times for several. Without it, every convolution.
    out
        The folder to write to. Without it, only the table is printed.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    most
        Draw at most so many kernels of a layer, and so many input channels of a kernel; what is left out is said.
    scale
        shared: one scale for all kernels of a layer; each: every tile has its own. The picture says which, in numbers.
    tensorboard
        Write the pictures for TensorBoard to this folder, too.
    weights
        "random", a file, or the name of torchvision's weights.
    trust_pickle
        Load a weights file that may run code.
    trust_remote_code
        Run the code that a checkpoint of transformers brings along.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    check_looks(most=most, scale=scale)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device="cpu", trust_remote_code=trust_remote_code)
    found = kernels_of(loaded, selection(layer))
    drawn = {name: each for name, each in found.by_output().items() if 3 <= each.ndim <= 5 and not each.is_complex()}
    files = file_names({name: name for name in drawn}, reserved="first-kernels")
    results: dict[str, Any] = {
        "about": about(loaded),
        "layers": [_row(name, weight) for name, weight in found.items()],
        "by_shape": {" x ".join(map(str, shape)) or "1": list(each) for shape, each in found.by_shape().items()},
    }
    with output_folder(out, overwrite=overwrite) as folder, tensorboard_writer(tensorboard) as writer:
        if folder is not None:
            for row in results["layers"]:
                if row["layer"] in drawn:
                    title = titled(row["layer"], loaded)
                    looks: dict[str, Any] = {"most": most, "most_channels": most, "scale": scale, "title": title}
                    image = kernel_grid(drawn[row["layer"]], **looks)
                    row["picture"] = str(folder.write(f"{files[row['layer']]}.png", png_bytes(image)))
            if drawn:
                first = {name: weight[0].unsqueeze(1) for name, weight in drawn.items()}  # (in, 1, *kernel) each
                image = kernel_grid(first, scale="each", most_channels=most, title=titled("the first kernels", loaded))
                results["first"] = str(folder.write("first-kernels.png", png_bytes(image)))
            results["weights"] = str(folder.write("kernels.safetensors", tensor_bytes(found, about(loaded))))
            folder.write("kernels.json", json_text(results).encode())
        if writer is not None:
            add_kernels(writer, found, remark=remark(loaded), most=most, most_channels=most, scale=scale)
    if json:
        print_json(results)
        return 0
    header = ("layer", "kernels", "mean", "std", "min", "max", "zeros", *(["picture"] if folder else []))
    print_table(header, [_cells(row, pictures=folder is not None) for row in results["layers"]])
    for shape, names in results["by_shape"].items():
        print(f"{shape}: {len(names)} layer{'s' if len(names) > 1 else ''}")
    if folder is not None:
        pictures = len(drawn) + 1 if drawn else 0
        print_written(folder.path, counted(pictures, "picture"), "kernels.safetensors", "kernels.json")
    return 0


def _row(name: str, weight: Tensor) -> dict[str, Any]:
    row = {"layer": name, "shape": list(weight.shape)}
    if weight.is_complex():
        return row | {"remark": "complex numbers, which are not drawn"}
    wide = weight.double()
    return row | {
        "mean": float(wide.mean()),
        "std": float(wide.std(correction=0)),
        "min": float(wide.min()),
        "max": float(wide.max()),
        "zero_share": float((wide == 0).double().mean()),
        "not_finite": int((~torch.isfinite(wide)).sum()),
    }


def _cells(row: dict[str, Any], *, pictures: bool) -> tuple[str, ...]:
    spread = (f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max"))
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    shown = row.get("picture") or row.get("remark", "")
    return (row["layer"], " x ".join(map(str, row["shape"])), *spread, zeros, *([shown] if pictures else []))
