"""torchpeek layers: what a network is made of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from torchpeek.anatomy import layers as layer_table
from torchpeek.cli.console import print_json, print_table, print_written
from torchpeek.cli.loading import Flag, Out, output_folder
from torchpeek.errors import InputError
from torchpeek.models import Preprocess, load_model
from torchpeek.store import json_text


def layers(
    *,
    model: str,
    picture: Path | None = None,
    input_size: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    out: Out = None,
    overwrite: Flag = False,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """List a network's layers: name, type, what each returns, parameters, and which one `cam` would look at.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable.
    picture
        Show the shapes for this picture; without one, for a blank picture of the model's own size.
    input_size
        Show the shapes for a blank input of these sizes, without the batch: --input-size 3 224 224.
    out
        Write layers.json, and layers.txt with the table, to this folder, too.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    weights
        "random", a file, or the name of torchvision's weights. The layers are the same; random needs no download.
    trust_pickle
        Load a weights file that may run code.
    trust_remote_code
        Run the code that a checkpoint of transformers brings along.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    loaded = load_model(model, weights, trust_pickle=trust_pickle, trust_remote_code=trust_remote_code)
    if picture is not None and input_size:
        raise InputError("--picture and --input-size both say what the input is; give one")
    if picture is not None:
        inputs = loaded.read(picture).tensor
    elif input_size:
        inputs = torch.zeros(1, *input_size, device=loaded.device, dtype=loaded.dtype)
    else:
        inputs = torch.zeros(1, *_own_size(loaded.preprocess), device=loaded.device, dtype=loaded.dtype)
    with output_folder(out, overwrite=overwrite) as folder:
        table = layer_table(loaded, inputs)
        suggested = None if table.suggested is None else asdict(table.suggested)
        results = {"model": model, "suggested": suggested, "layers": [asdict(row) for row in table]}
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


def _own_size(preprocess: object) -> tuple[int, ...]:
    crop = preprocess.crop if isinstance(preprocess, Preprocess) else None
    if crop is None:
        raise InputError("the model does not say how large its input is; give --picture FILE or --input-size 3 224 224")
    assert isinstance(preprocess, Preprocess)
    return (len(preprocess.mean), *crop)
