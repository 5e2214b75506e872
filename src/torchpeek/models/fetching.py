"""What all sources of models share: optional packages, fetched weights, and an assumed preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.error import URLError

from torchpeek.errors import ModelNotFound, WeightsError, notify
from torchpeek.models.preprocess import Preprocess

RANDOM = "random"
T = TypeVar("T")


@contextmanager
def extra(package: str, name: str) -> Iterator[None]:
    """Import `package`, which the extra torchpeek[name] installs. Raises ModelNotFound if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModelNotFound(f"{package} is not installed; next: pip install 'torchpeek[{name}]'") from error


def fetched(spec: str, build: Callable[[], T]) -> T:
    """Return what `build` fetches. Raises WeightsError if that fails."""
    try:
        return build()
    except (URLError, OSError) as error:
        raise WeightsError(
            f"the pretrained weights of {spec} could not be fetched ({error}). Next: try again online, give a file "
            "with --weights FILE, or take --weights random for the untrained network"
        ) from error


def assumed(
    spec: str, preprocess: Preprocess | None = None, why: str = "does not say how pictures become its input"
) -> Preprocess:
    """Return ImageNet's preprocessing, in the model's own size if that is known, with a notice."""
    preprocess = preprocess or Preprocess()
    notify(f"{spec} {why}; ImageNet's way is used: {preprocess}")
    return preprocess
