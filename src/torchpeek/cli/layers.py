"""torchpeek layers: what a network is made of."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from torchpeek.anatomy import layers
from torchpeek.cli.console import print_json, print_table, print_written
from torchpeek.cli.loading import about, check_class_names, check_pictures_fit, check_size_fits, loaded_model
from torchpeek.cli.option_values import parsed_numbers
from torchpeek.cli.options import InputOptions, ModelOptions, OutputOptions
from torchpeek.cli.output import output_folder, write_results
from torchpeek.cli.pictures import one_picture
from torchpeek.cli.terminal import print_text
from torchpeek.errors import InputError
from torchpeek.models import LoadedModel, Preprocess, model_call_for


def run(
    model: ModelOptions,
    output: OutputOptions,
    *,
    picture: Path | None,
    inputs: InputOptions,
    json: bool,
) -> int:
    """List the layers of the model. Returns the exit status."""
    if picture is None:
        size = parsed_numbers(inputs.input_size)
        complete = len(size) > 2 or (inputs.grey and bool(size))
        loaded = loaded_model(model, inputs=_without_size(inputs), own_preprocess=not complete)
        example = _blank(loaded, inputs)
        check_class_names(loaded, model_call_for(loaded, example), inputs)
    else:
        loaded = loaded_model(model, inputs=inputs)
        files = one_picture(picture, inputs)
        check_pictures_fit(loaded, files, inputs)
        example = files.read(loaded, files[0]).tensor
    with output_folder(output) as folder:
        table = layers(loaded, example)
        suggested = table.suggested and {"layer": table.suggested.layer, "reason": table.suggested.reason}
        results = {**about(loaded), "suggested": suggested, "layers": [asdict(row) for row in table]}
        if folder is not None:
            write_results(folder, "layers.json", results)
            folder.write("layers.txt", f"{table}\n".encode())
    if json:
        print_json(results)
    else:
        print_table(table.header, table.cells())
        if table.footer:
            print_text("", *table.footer.split("\n"))
        if folder is not None:
            print_written(folder.path, "layers.json", "layers.txt")
    return 0


def _without_size(inputs: InputOptions) -> InputOptions:
    """The options without --input-size, which may be any shape where there is no picture."""
    return replace(inputs, input_size=None)


def _blank(loaded: LoadedModel, inputs: InputOptions) -> Tensor:
    """An input of zeros, of the model's own size or of --input-size. Two numbers are a shape, or a height and width."""
    size = [int(each) for each in parsed_numbers(inputs.input_size)]
    own = loaded.preprocess if isinstance(loaded.preprocess, Preprocess) else None
    channels = 1 if inputs.grey else 3 if own is None else len(own.mean)
    if not size:
        if own is None or own.crop is None:
            raise InputError(
                "the model does not say how large its input is; give --picture FILE or --input-size 3 224 224"
            )
        size = [channels, *own.crop]
    shapes = [[channels, size[0], size[0]]] if len(size) == 1 else [size]
    if len(size) == 2:
        shapes.insert(0 if inputs.grey else 1, [channels, *size])
    try:
        blanks = [torch.zeros(1, *shape, device=loaded.device, dtype=loaded.dtype) for shape in shapes]
    except RuntimeError as error:
        text = " x ".join(map(str, size))
        raise InputError(f"--input-size is {text}, for which there is not enough memory; give a smaller one") from error
    for blank in blanks[:-1]:
        with suppress(InputError):
            check_size_fits(loaded, blank)
            return blank
    check_size_fits(loaded, blanks[-1])
    return blanks[-1]
