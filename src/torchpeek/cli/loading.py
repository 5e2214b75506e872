"""Load the model that the options name, and say in results and on pictures which one it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from torchpeek.cli.options import ModelOptions
from torchpeek.engine import ModelCall, check_fits, inspectable_module
from torchpeek.errors import InputError, OptionError
from torchpeek.models import LoadedModel, load_model, model_call_for


def loaded_model(options: ModelOptions, device: str | None = None) -> LoadedModel:
    """The model, moved to the device if there is one. Raises OptionError for a device that cannot be used."""
    loaded = load_model(
        options.model,
        options.weights,
        trust_pickle=options.trust_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    if device is not None:
        try:
            torch.empty(0, device=torch.device(device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise OptionError(f"--device {device!r} cannot be used here ({reason}); cpu always can") from error
        loaded.module.to(device)
    return loaded


def check_max_size(max_size: int | None) -> None:
    """Raise OptionError for a --max-size that no picture can have."""
    if max_size is not None and max_size < 1:
        raise OptionError(f"--max-size is {max_size}; allowed: a number of pixels, 1 or more")


def check_pictures_fit(loaded: LoadedModel, files: Iterable[Path], max_size: int | None) -> None:
    """Raise InputError where the model takes no pictures as its preprocessing makes them, by the first that is read."""
    for file in files:
        try:
            call = model_call_for(loaded, loaded.read(file, max_size=max_size))
        except Exception:  # an error of this picture; it is reported when its turn comes
            continue
        _check_fits(loaded, call, f"{file}: ", _OTHER_PREPROCESSING)
        return


def check_size_fits(loaded: LoadedModel, inputs: Tensor) -> None:
    """Raise InputError where the model takes no inputs of the size that --input-size, or its preprocessing, says."""
    next_step = "say what it takes with --input-size, such as --input-size 1 28 28"
    _check_fits(loaded, model_call_for(loaded, inputs), "", next_step)


_OTHER_PREPROCESSING = (
    "give a model with a preprocessing that makes such a tensor of a picture; a package.module:callable may return "
    "tp.LoadedModel(network, preprocess)"
)


def _check_fits(loaded: LoadedModel, call: ModelCall, start: str, next_step: str) -> None:
    """Raise InputError where the model takes no such inputs, with what to do in a shell in place of Python."""
    try:
        check_fits(inspectable_module(loaded.module), call)
    except InputError as error:
        raise InputError(f"{start}{str(error).partition(' Next: ')[0]} Next: {next_step}") from error


def about(loaded: LoadedModel) -> dict[str, str]:
    """What every result depends on."""
    return {"model": loaded.spec, "weights": loaded.weights or "the model's own"}


def remark(loaded: LoadedModel) -> str:
    """The words that every picture by a model with random weights carries."""
    return "random weights" if loaded.weights == "random" else ""


def titled(title: str, loaded: LoadedModel) -> str:
    """The title of a picture, with the `remark`."""
    return f"{title} ({words})" if (words := remark(loaded)) else title
