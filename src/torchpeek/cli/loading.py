"""Load the model that the options name, and say in results and on pictures which one it is."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.cli.console import counted
from torchpeek.cli.model_output import class_count
from torchpeek.cli.option_values import parsed_numbers
from torchpeek.cli.options import InputOptions, ModelOptions
from torchpeek.cli.pictures import PictureFiles
from torchpeek.cli.signals import start_running
from torchpeek.engine import ModelCall, check_fits, inspectable_module, run
from torchpeek.errors import InputError, OptionError, notify
from torchpeek.models import LoadedModel, Preprocess, PreprocessChanges, load_model, model_call_for
from torchpeek.store import read_class_names


def loaded_model(
    options: ModelOptions,
    device: str | None = None,
    inputs: InputOptions | None = None,
    *,
    own_preprocess: bool = True,
) -> LoadedModel:
    """The model, moved to the device if there is one.

    Args:
        options: Which model.
        device: Where it runs; None for the CPU.
        inputs: How pictures become its input; None for the model's own way.
        own_preprocess: Whether anything is read of the model's own preprocessing. Without, nothing is said of what is
            assumed of it.

    Raises:
        OptionError: When the device cannot be used.
    """
    start_running()
    inputs = inputs or InputOptions()
    names = None if inputs.class_names is None else read_class_names(inputs.class_names)
    loaded = load_model(
        options.model,
        None if options.weights is None else str(options.weights),
        trust_pickle=options.trust_pickle,
        trust_remote_code=options.trust_remote_code,
        preprocess=_changes(inputs) if own_preprocess else Preprocess(),
        class_names=names,
        seed=options.seed,
    )
    if device is not None:
        try:
            torch.empty(0, device=torch.device(device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise OptionError(f"--device {device!r} cannot be used here ({reason}); cpu always can") from error
        loaded.module.to(device)
    if loaded.seed is not None:
        notify(f"{loaded.spec} has {remark(loaded)}")
    return loaded


def _changes(inputs: InputOptions) -> PreprocessChanges | None:
    """What the options change of the model's preprocessing; None if that is nothing."""
    size, mean, std = (parsed_numbers(each) for each in (inputs.input_size, inputs.mean, inputs.std))
    if not (size or mean or std or inputs.grey):
        return None
    channels = [int(size[0])] if len(size) == 3 else []
    if len(size) > 3 or channels not in ([], [1], [3]) or (inputs.grey and channels == [3]):
        raise OptionError(
            f"--input-size is {' '.join(f'{each:g}' for each in size)}{' with --grey' * inputs.grey}; allowed: HEIGHT "
            "WIDTH, one number for a square, or CHANNELS HEIGHT WIDTH with 1 channel (grey) or 3 (RGB)"
        )
    height_and_width = (int(size[-2]), int(size[-1])) if len(size) > 1 else (int(size[0]),) * 2 if size else None
    return PreprocessChanges(height_and_width, inputs.grey or channels == [1], tuple(mean) or None, tuple(std) or None)


def check_pictures_fit(loaded: LoadedModel, files: PictureFiles, inputs: InputOptions) -> None:
    """Raise InputError where the model takes no pictures as its preprocessing makes them, by the first that is read.

    Raises OptionError where --classes names another number of classes than the model returns.
    """
    for file in files:
        try:
            call = model_call_for(loaded, files.read(loaded, file))
        except Exception:  # an error of this picture; it is reported when its turn comes
            continue
        _check_fits(loaded, call, f"{file}: ", _OTHER_PREPROCESSING)
        check_class_names(loaded, call, inputs)
        return


def check_size_fits(loaded: LoadedModel, inputs: Tensor) -> None:
    """Raise InputError where the model takes no inputs of the size that --input-size, or its preprocessing, says."""
    next_step = "say what it takes with --input-size, such as --input-size 1 28 28"
    _check_fits(loaded, model_call_for(loaded, inputs), "", next_step)


_OTHER_PREPROCESSING = (
    "give a model with a preprocessing that makes such a tensor of a picture, or say it with --grey, --input-size, "
    "--mean and --std; a package.module:callable may also return tp.LoadedModel(network, preprocess)"
)


def _check_fits(loaded: LoadedModel, call: ModelCall, start: str, next_step: str) -> None:
    """Raise InputError where the model takes no such inputs, with what to do in a shell in place of Python."""
    try:
        check_fits(inspectable_module(loaded.module), call)
    except InputError as error:
        raise InputError(f"{start}{str(error).partition(' Next: ')[0]} Next: {next_step}") from error


def check_class_names(loaded: LoadedModel, call: ModelCall, inputs: InputOptions) -> None:
    """Raise OptionError where --classes names another number of classes than the model returns for this call."""
    file = inputs.class_names
    if file is None or loaded.class_names is None:
        return
    with torch.no_grad():
        count = class_count(run(loaded.module, call.copied()))
    if count is not None and count != len(loaded.class_names):
        raise OptionError(
            f"--classes {file}: has {counted(len(loaded.class_names), 'name')}, and the model returns {count} "
            f"class{'es' * (count != 1)}; allowed: a name for each class, in the order of the output"
        )


def about(loaded: LoadedModel) -> dict[str, str]:
    """What every result depends on."""
    return {"model": loaded.spec, "weights": loaded.weights_label or "the model's own"}


def remark(loaded: LoadedModel) -> str:
    """The words that every picture by a model with random weights carries."""
    return f"random weights{loaded.weights_label.removeprefix('random')}" if loaded.weights == "random" else ""


def titled(title: str, loaded: LoadedModel) -> str:
    """The title of a picture, with the `remark`."""
    return f"{title} ({words})" if (words := remark(loaded)) else title
