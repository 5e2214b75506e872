"""What all sources of models share: optional packages, fetched weights, and an assumed preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image
from torch import Tensor

from torchpeek.errors import ModelNotFound, WeightsError
from torchpeek.models.preprocess import Preprocess
from torchpeek.picture import Geometry
from torchpeek.system_errors import is_of_library

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
    except OSError as error:  # URLError is one
        if not is_of_library(error):
            raise
        raise WeightsError(
            f"the pretrained weights of {spec} could not be fetched ({error}). Next: try again online, give a file "
            "with --weights FILE, or take --weights random for the untrained network"
        ) from error


@dataclass(frozen=True)
class Assumed:
    """The preprocessing of a model that says nothing of it: ImageNet's, in the model's own size if that is known."""

    preprocess: Preprocess = field(default_factory=Preprocess)
    why: str = "does not say how pictures become its input"

    def __call__(self, image: Image.Image) -> tuple[Tensor, Geometry]:
        """Make a model's input of an image."""
        return self.preprocess(image)
