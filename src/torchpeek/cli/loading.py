"""What the commands have in common: which model, on which device, with which pictures, into which folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from cyclopts import Parameter

from torchpeek.errors import OptionError
from torchpeek.models import LoadedModel, load_model
from torchpeek.render import COLORMAPS
from torchpeek.store import OutputFolder, file_stem

Flag: TypeAlias = Annotated[bool, Parameter(negative="")]
Many: TypeAlias = Annotated[list[str] | None, Parameter(negative="")]
Out: TypeAlias = Annotated[Path | None, Parameter(name=["--out", "-o"])]


def loaded_model(
    model: str, weights: str | None, *, trust_pickle: bool, device: str, trust_remote_code: bool = False
) -> LoadedModel:
    """The model on its device. Raises OptionError for a device that is not there."""
    found = load_model(model, weights, trust_pickle=trust_pickle, trust_remote_code=trust_remote_code)
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


def remark(loaded: LoadedModel) -> str:
    """Random weights are said on every picture."""
    return "random weights" if loaded.weights == "random" else ""


def titled(what: str, loaded: LoadedModel) -> str:
    """A picture's title, with the `remark`."""
    return f"{what} ({said})" if (said := remark(loaded)) else what


def check_looks(*, most: int, scale: str, colormap: str = "viridis") -> None:
    """Before the work starts. Raises OptionError."""
    if most < 1:
        raise OptionError(f"--most is {most}; allowed: 1 or more")
    if scale not in ("shared", "each"):
        raise OptionError(f"no scale {scale!r}; allowed: --scale shared, --scale each")
    if colormap not in COLORMAPS:
        raise OptionError(f"--colormap is one of {', '.join(COLORMAPS)}; got {colormap}")


def selection(layers: Sequence[str] | None) -> list[str] | None:
    """Names and globs, also several in one option, with commas between them."""
    return [name.strip() for each in layers or [] for name in each.split(",") if name.strip()] or None


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


def file_names(named: Mapping[str, str], *, reserved: str) -> dict[str, str]:
    """For each key a file name made of its text, without an ending: different ones, also where letters are lost.

    None of them is `reserved`, which is the name of something else there.
    """
    names: dict[str, str] = {}
    taken = {reserved}
    for key, text in named.items():
        stem = own = file_stem(text)
        number = 2
        while own in taken:
            own, number = f"{stem}-{number}", number + 1
        names[key] = own
        taken.add(own)
    return names


@contextmanager
def tensorboard_writer(folder: Path | None) -> Iterator[Any]:
    """A SummaryWriter for that folder, or None. Raises OptionError where TensorBoard is not installed.

    The folder is made when there is something to write. Raises FolderError where that cannot be done.
    """
    if folder is None:
        yield None
        return
    OutputFolder.prepared(folder, overwrite=True).abandon()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError("--tensorboard needs TensorBoard; pip install tensorboard") from error
    late = _LateWriter(lambda: SummaryWriter(str(folder)))
    with closing(late):
        yield late


class _LateWriter:
    """Makes the writer that it stands for as that is first used."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)

    def close(self) -> None:
        """If it was made."""
        if self._made is not None:
            self._made.close()
