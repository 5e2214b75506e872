"""torchpeek layers: what a network is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from torchpeek.anatomy import layers
from torchpeek.cli.console import print_json, print_table, print_written
from torchpeek.cli.loading import check_max_size, check_pictures_fit, check_size_fits, loaded_model
from torchpeek.cli.options import ModelOptions, OutputOptions
from torchpeek.cli.output import output_folder
from torchpeek.errors import InputError
from torchpeek.models import Preprocess
from torchpeek.store import json_text


def run(
    model: ModelOptions,
    output: OutputOptions,
    *,
    picture: Path | None,
    input_size: Sequence[int] | None,
    max_size: int | None,
    json: bool,
) -> int:
    """List the layers of the model. Returns the exit status."""
    if picture is not None and input_size:
        raise InputError("--picture and --input-size both say what the input is; give one")
    check_max_size(max_size)
    loaded = loaded_model(model)
    if picture is not None:
        check_pictures_fit(loaded, [picture], max_size)
        inputs = loaded.read(picture, max_size=max_size).tensor
    else:
        shape = input_size or _input_size(loaded.preprocess)
        inputs = torch.zeros(1, *shape, device=loaded.device, dtype=loaded.dtype)
        check_size_fits(loaded, inputs)
    with output_folder(output) as folder:
        table = layers(loaded, inputs)
        suggested = table.suggested and {"layer": table.suggested.layer, "reason": table.suggested.reason}
        results = {"model": model.model, "suggested": suggested, "layers": [asdict(row) for row in table]}
        if folder is not None:
            folder.write("layers.json", json_text(results).encode())
            folder.write("layers.txt", f"{table}\n".encode())
    if json:
        print_json(results)
    else:
        print_table(table.header, table.cells())
        if table.footer:
            print(f"\n{table.footer}")
        if folder is not None:
            print_written(folder.path, "layers.json", "layers.txt")
    return 0


def _input_size(preprocess: object) -> tuple[int, ...]:
    crop = preprocess.crop if isinstance(preprocess, Preprocess) else None
    if crop is None:
        raise InputError("the model does not say how large its input is; give --picture FILE or --input-size 3 224 224")
    assert isinstance(preprocess, Preprocess)
    return (len(preprocess.mean), *crop)
