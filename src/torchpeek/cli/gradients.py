"""torchpeek gradients: the gradients of one training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchpeek.anatomy import GradientFlow, gradient_flow
from torchpeek.cli.console import print_json, print_skipped, print_table, print_written
from torchpeek.cli.gradients_page import gradients_report
from torchpeek.cli.loading import about, check_pictures_fit, loaded_model, titled
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import ModelOptions, OutputOptions, PictureOptions
from torchpeek.cli.output import output_folder, saved_on_failure, tensorboard_writer, write_results
from torchpeek.cli.page import PAGE, page_facts, write_page
from torchpeek.cli.pictures import PictureFiles, picture_files
from torchpeek.cli.skipped import Skipped
from torchpeek.cli.terminal import print_text
from torchpeek.errors import FileError, OptionError
from torchpeek.integrations.tensorboard import add_gradient_flow
from torchpeek.models import LoadedModel
from torchpeek.render import gradient_flow as gradient_flow_plot
from torchpeek.store import figure_bytes


def run(
    pictures: Sequence[Path],
    model: ModelOptions,
    device: str,
    output: OutputOptions,
    *,
    target: str | None,
    layers: Sequence[str] | None,
    train: bool,
    inputs: PictureOptions,
    tensorboard: Path | None,
    json: bool,
) -> int:
    """Show the gradients of one training step on the pictures. Returns the exit status."""
    files = picture_files(pictures, inputs, "torchpeek gradients cat.jpg --model torchvision:resnet50")
    loaded = loaded_model(model, device, inputs)
    check_pictures_fit(loaded, files, inputs)
    label = int(target) if target is not None and target.isascii() and target.isdigit() else target
    mode = "train" if train else "eval"
    with output_folder(output) as folder, tensorboard_writer(tensorboard) as writer:
        skipped = Skipped()
        batch = _batch(loaded, files, skipped)
        flow = None if batch is None else _flow(loaded, batch, label, layers=layer_names(layers), train=train)
        results: dict[str, Any] = {
            "about": about(loaded) | {"mode": mode, "pictures": len(files) - len(skipped)},
            "loss": None if flow is None else flow.loss,
            "total_norm": None if flow is None else flow.total_norm,
            "gradients": [asdict(row) for row in flow or ()],
            "skipped": skipped.why,
        }
        if folder is not None:
            plot = b""
            with saved_on_failure(folder, lambda folder: write_results(folder, "gradients.json", results)):
                if flow is not None:
                    title = f"{titled(loaded.spec, loaded)}, {_named(label, loaded)}, loss {flow.loss:.4g}, {mode} mode"
                    plot = figure_bytes(gradient_flow_plot(flow.rows, title=title))
                    results["plot"] = str(folder.write("gradient-flow.png", plot))
            write_results(folder, "gradients.json", results)
            facts = page_facts(
                loaded, files, loss=f"cross entropy of {_named(label, loaded)}", mode=mode, layers=layer_names(layers)
            )
            used = [str(file) for file in files if str(file) not in skipped.why]
            write_page(folder, gradients_report(flow, facts, plot, used, skipped.why))
        if writer is not None and flow is not None:
            add_gradient_flow(writer, flow)
    if json:
        print_json(results)
    else:
        if flow is not None:
            print_table(flow.header, flow.cells())
            print_text(*flow.footer.split("\n"))
        print_skipped(skipped.why, len(files))
        if folder is not None:
            print_written(folder.path, "" if flow is None else "gradient-flow.png", "gradients.json", page=PAGE)
    return 1 if skipped else 0


def _flow(
    loaded: LoadedModel, batch: Tensor, label: int | str | None, *, layers: list[str] | None, train: bool
) -> GradientFlow:
    loaded.module.train(train)
    return gradient_flow(loaded, batch, label, layers=layers)


def _named(label: int | str | None, loaded: LoadedModel) -> str:
    if label is None:
        return "the predicted class"
    names = loaded.class_names
    name = f" ({names[label]})" if isinstance(label, int) and names and label < len(names) else ""
    return f"class {label}{name}"


def _batch(loaded: LoadedModel, files: PictureFiles, skipped: Skipped) -> Tensor | None:
    """The pictures that can be read, as one batch, or None. The others are added to `skipped`."""
    tensors = []
    for file in files:
        try:
            tensors.append(files.read(loaded, file).tensor)
        except FileError as error:
            skipped.add(file, error)
    if not tensors:
        return None
    shapes = Counter(tuple(tensor.shape[1:]) for tensor in tensors)
    if len(shapes) > 1:
        raise OptionError(f"the pictures give inputs of different shapes, {list(shapes)}; give one at a time")
    return torch.cat(tensors)
