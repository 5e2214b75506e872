"""LoadedModel: a network, how pictures become its input, and what its classes are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from torchpeek.errors import InputError, ModelError
from torchpeek.models.detectors import detector_preprocess
from torchpeek.models.preprocess import Preprocess
from torchpeek.picture import Geometry, Picture
from torchpeek.store import read_image, upright_rgb

PreprocessFunction: TypeAlias = Callable[[Image.Image], Any]
"""From a PIL image to (tensor (1, C, H, W), Geometry), as Preprocess does, or to a tensor (C, H, W) or (1, C, H, W)."""

TextFunction: TypeAlias = Callable[[Sequence[str], torch.device], Tensor]
"""From K texts to their embeddings (K, D), on that device."""


TAKEN_AS_WHOLE = "the input is taken to show the whole picture: its preprocessing does not say"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network with what is needed to feed it pictures and to name its classes.

    `preprocess`, where it is left out, is that of a detector which resizes and pads pictures itself; else ImageNet's.
    """

    module: nn.Module
    preprocess: PreprocessFunction = None  # type: ignore[assignment]  # only until __post_init__
    class_names: Sequence[str] | None = None
    spec: str = ""
    weights: str = ""  # "random", a name, or a file's; printed with every picture
    texts: TextFunction | None = None  # the text half of a model that compares pictures with texts

    def __post_init__(self) -> None:
        if self.preprocess is None:
            object.__setattr__(self, "preprocess", detector_preprocess(self.module) or Preprocess())
        names = self.class_names
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise InputError(f"class_names is a {type(names).__name__} of more than names; give a list of strings")

    def read(self, picture: str | PathLike[str] | Image.Image) -> Picture:
        """A file, or a PIL image, as a Picture: upright, in RGB, with its tensor on the model's device.

        A preprocessing that does not return its Geometry is taken to show the whole image, which the Picture's notes
        say. Raises PictureError, which names the file, for one that cannot be read.
        """
        if not isinstance(picture, (str, PathLike, Image.Image)):
            raise InputError(f"picture is a {type(picture).__name__}; allowed: a path or a PIL image")
        if isinstance(picture, Image.Image):
            image, notes = upright_rgb(picture)
            name = str(getattr(picture, "filename", "") or "picture")
        else:
            image, notes = read_image(picture)
            name = str(picture)
        result = self.preprocess(image)
        if isinstance(result, Tensor):
            tensor, geometry = (result if result.ndim == 4 else result.unsqueeze(0)), Geometry.whole(image.size)
            notes = (*notes, TAKEN_AS_WHOLE)
        elif isinstance(result, tuple) and [type(each) for each in result] == [Tensor, Geometry]:
            tensor, geometry = result
        else:
            raise InputError(f"preprocess gave a {type(result).__name__}; allowed: a tensor, or (tensor, Geometry)")
        return Picture(image, tensor.to(self.device, self.dtype), geometry, Path(name).name, notes)

    def embed(self, texts: str | Sequence[str]) -> Tensor:
        """(K, D): the embeddings of texts, to compare those of pictures with: `tp.targets.Similarity(to=...)`.

        Of the text half of CLIP and SigLIP checkpoints that were loaded as `hf:NAME_OR_FOLDER`, as it gives them,
        without a graph. Raises ModelError where there is none, or no tokenizer, and InputError for what is no text.
        """
        if self.texts is None:
            raise ModelError(
                f"{self.spec or type(self.module).__name__} has no text half; CLIP and SigLIP checkpoints have one, "
                "loaded whole as hf:NAME_OR_FOLDER and with their own weights. Next: load one, or give "
                "tp.targets.Similarity an embedding that you have"
            )
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
            raise InputError(f"texts is {texts!r}; allowed: a text, or a list of at least one, none of them empty")
        return self.texts(listed, self.device)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's first floating-point parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    def __repr__(self) -> str:
        classes = "no class names" if self.class_names is None else f"{len(self.class_names)} classes"
        return f"LoadedModel({self.spec or type(self.module).__name__}, weights {self.weights or 'its own'}, {classes})"
