"""torchpeek gradients: what one training step would send back through a network."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchpeek.anatomy import GradientFlow, gradient_flow
from torchpeek.cli.console import print_json, print_skipped, print_table, print_written
from torchpeek.cli.loading import (
    Flag,
    Many,
    Out,
    about,
    loaded_model,
    output_folder,
    selection,
    tensorboard_writer,
    titled,
)
from torchpeek.cli.skipped import Skipped
from torchpeek.errors import FileError, OptionError
from torchpeek.integrations.tensorboard import add_gradient_flow
from torchpeek.models import LoadedModel
from torchpeek.render import gradient_flow as gradient_flow_plot
from torchpeek.store import figure_bytes, find_pictures, json_text


def gradients(
    *pictures: str,
    model: str,
    class_: str | None = None,
    layer: Many = None,
    train: Flag = False,
    out: Out = None,
    overwrite: Flag = False,
    tensorboard: Path | None = None,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    device: str = "cpu",
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show how large the gradients are that one training step on these pictures, as a batch, gives each layer.

    The loss is the cross entropy of --class, or of the class that is predicted for each picture. The step is not taken.
    With --out it writes gradient-flow.png and gradients.json.

    Example: torchpeek gradients cat.jpg --model torchvision:mobilenet_v2 --class "tiger cat" -o gradients/

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable.
    class_
        The class of the pictures, by name or index.
    layer
        A name or glob; several times for several. Without it, every layer with parameters.
    train
        In train mode: BatchNorm normalises with the statistics of the batch, Dropout drops.
    out
        The folder to write to. Without it, only the table is printed.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    tensorboard
        Write the numbers for TensorBoard to this folder, too.
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
        raise OptionError("no pictures; give files, folders or globs: torchpeek gradients cat.jpg --model ...")
    files = find_pictures(pictures)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device=device, trust_remote_code=trust_remote_code)
    target = int(class_) if class_ is not None and class_.isascii() and class_.isdigit() else class_
    mode = "train" if train else "eval"
    with output_folder(out, overwrite=overwrite) as folder, tensorboard_writer(tensorboard) as writer:
        skipped = Skipped()
        batch = _batch(loaded, files, skipped)
        flow = None if batch is None else _flow(loaded, batch, target, layers=selection(layer), train=train)
        results: dict[str, Any] = {
            "about": about(loaded) | {"mode": mode, "pictures": len(files) - len(skipped)},
            "loss": None if flow is None else flow.loss,
            "total_norm": None if flow is None else flow.total_norm,
            "gradients": [asdict(row) for row in flow or ()],
            "skipped": skipped.why,
        }
        if folder is not None:
            if flow is not None:
                title = f"{titled(loaded.spec, loaded)}, {_named(target, loaded)}, loss {flow.loss:.4g}, {mode} mode"
                plot = figure_bytes(gradient_flow_plot(flow.rows, title=title))
                results["plot"] = str(folder.write("gradient-flow.png", plot))
            folder.write("gradients.json", json_text(results).encode())
        if writer is not None and flow is not None:
            add_gradient_flow(writer, flow)
    if json:
        print_json(results)
    else:
        if flow is not None:
            print_table(flow.header, flow.cells())
            print(flow.footer)
        print_skipped(skipped.why, len(files))
        if folder is not None:
            print_written(folder.path, "" if flow is None else "gradient-flow.png", "gradients.json")
    return 1 if skipped else 0


def _flow(
    loaded: LoadedModel, batch: Tensor, target: int | str | None, *, layers: list[str] | None, train: bool
) -> GradientFlow:
    loaded.module.train(train)
    return gradient_flow(loaded, batch, target, layers=layers)


def _named(target: int | str | None, loaded: LoadedModel) -> str:
    if target is None:
        return "the predicted class"
    known = loaded.class_names
    name = f" ({known[target]})" if isinstance(target, int) and known and target < len(known) else ""
    return f"class {target}{name}"


def _batch(loaded: LoadedModel, files: list[Path], skipped: Skipped) -> Tensor | None:
    """The pictures that can be read, if any; why the others cannot is added to `skipped`."""
    tensors = []
    for file in files:
        try:
            tensors.append(loaded.read(file).tensor)
        except FileError as error:
            skipped.add(file, error)
    if not tensors:
        return None
    shapes = Counter(tuple(tensor.shape[1:]) for tensor in tensors)
    if len(shapes) > 1:
        raise OptionError(f"the pictures give inputs of different shapes, {list(shapes)}; give one at a time")
    return torch.cat(tensors)
