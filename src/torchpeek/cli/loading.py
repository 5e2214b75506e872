"""What the commands have in common: which model, on which device, with which pictures, into which folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from cyclopts import Parameter

from torchpeek.errors import OptionError
from torchpeek.models import LoadedModel, load_model
from torchpeek.store import OutputFolder, file_stem

Flag: TypeAlias = Annotated[bool, Parameter(negative="")]
Many: TypeAlias = Annotated[list[str] | None, Parameter(negative="")]
Out: TypeAlias = Annotated[Path | None, Parameter(name=["--out", "-o"])]


def loaded_model(model: str, weights: str | None, *, trust_pickle: bool, device: str) -> LoadedModel:
    """The model on its device. Raises OptionError for a device that is not there."""
    found = load_model(model, weights, trust_pickle=trust_pickle)
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can"
        ) from error
    found.module.to(where)
    return found


def about(loaded: LoadedModel) -> dict[str, str]:
    """What every result depends on."""
    return {"model": loaded.spec, "weights": loaded.weights or "the model's own"}


def titled(layer: str, loaded: LoadedModel) -> str:
    """A picture's title: random weights are said on every one."""
    return f"{layer} (random weights)" if loaded.weights == "random" else layer


def selection(layers: Sequence[str] | None) -> list[str] | None:
    """Names and globs, also several in one option, with commas between them."""
    return None if not layers else [name.strip() for each in layers for name in each.split(",")]


@contextmanager
def output_folder(out: Path | None, *, overwrite: bool) -> Iterator[OutputFolder | None]:
    """The folder to write to, if there is to be one; not left behind empty by what failed."""
    folder = None if out is None else OutputFolder.prepared(out, overwrite=overwrite)
    try:
        yield folder
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise


def file_names(named: Mapping[str, str]) -> dict[str, str]:
    """For each key a file name made of its text, without an ending: different ones, also where letters are lost."""
    taken: dict[str, str] = {}
    for key, text in named.items():
        stem = own = file_stem(text)
        number = 2
        while own in taken.values():
            own, number = f"{stem}-{number}", number + 1
        taken[key] = own
    return taken


@contextmanager
def tensorboard_writer(folder: Path | None) -> Iterator[Any]:
    """A SummaryWriter for that folder, or None. Raises OptionError where TensorBoard is not installed."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError("--tensorboard needs TensorBoard; pip install tensorboard") from error
    with SummaryWriter(str(folder)) as writer:
        yield writer
