"""LoadedModel: a network with its preprocessing and its class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from torchpeek.argument_types import Allowed, PixelCount, Seed
from torchpeek.errors import InputError, ModelError, shown, type_shown
from torchpeek.hooks import checked_model
from torchpeek.keywords import checked_class
from torchpeek.models.detectors import detector_preprocess
from torchpeek.models.preprocess import Preprocess
from torchpeek.picture import Geometry, Picture
from torchpeek.printable import printable
from torchpeek.store import read_image, upright_rgb

PreprocessFunction: TypeAlias = Annotated[
    Callable[[Image.Image], Any], Allowed("a function from a PIL image to a tensor, such as tp.Preprocess()")
]
"""From a PIL image to (tensor (1, C, H, W), Geometry), like Preprocess, or to a tensor (C, H, W) or (1, C, H, W)."""

TextFunction: TypeAlias = Callable[[Sequence[str], torch.device], Tensor]
"""From K texts and a device to the embeddings (K, D) on that device."""


TAKEN_AS_WHOLE = "the input is taken to show the whole picture, because the preprocessing returns no Geometry"


@checked_class
@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network with its preprocessing and its class names.

    Args:
        module: The network.
        preprocess: From a PIL image to (tensor (1, C, H, W), Geometry), like `Preprocess`, or to a tensor (C, H, W) or
            (1, C, H, W). If it is omitted, a detector that resizes and pads pictures itself gets its own, and any other
            model gets ImageNet's.
        class_names: The name of each class, in the order of the logits, or None.
        spec: Where the model comes from, as in `load_model`.
        weights: Name of the weights: "random", a name or a file's name. Printed with every picture.
        texts: From K texts and a device to their embeddings (K, D), for a model that compares pictures with texts.
        seed: The seed that random weights were drawn with; None if it is not known, or the weights are not random.

    Raises:
        InputError: When `module` is no nn.Module, or `class_names` is not a sequence of strings.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> tp.LoadedModel(network, tp.Preprocess(resize=32, crop=(32, 32)), ["cat", "dog"])
        LoadedModel(Sequential, weights its own, 2 classes)
    """

    module: nn.Module
    preprocess: PreprocessFunction = None  # type: ignore[assignment]  # only until __post_init__
    class_names: Sequence[str] | None = None
    spec: str = ""
    weights: str = ""
    texts: TextFunction | None = None
    seed: Seed | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            checked_model(self.module)  # raises, and says what to give
        if self.preprocess is None:
            object.__setattr__(self, "preprocess", detector_preprocess(self.module) or Preprocess())
        names = self.class_names
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise InputError(
                f"class_names is {type_shown(names)} with other entries than names; give a list of strings"
            )
        if names is not None and (wrong := [name for name in names if not _is_unicode(name)]):
            raise InputError(
                f"class_names has {shown(wrong[0])} with a lone surrogate, which no file can hold. Next: "
                "read the names with the encoding that they were written in"
            )

    def read(
        self,
        picture: str | PathLike[str] | BinaryIO | Image.Image,
        *,
        max_size: PixelCount | None = None,
    ) -> Picture:
        """Read a picture: upright, in RGB, with its tensor on the device and in the dtype of the model.

        If the preprocessing returns no Geometry, the input is taken to show the whole image, and the Picture's notes
        say so.

        Args:
            picture: Path of a file, a file that is opened in binary mode, or a PIL image.
            max_size: Largest width and height, in pixels. A larger picture is reduced in its proportions before the
                preprocessing, which sees the reduced picture; a JPEG file already while it is decoded. Heatmaps are
                drawn on the reduced picture. A smaller picture stays as it is. None: no picture is reduced.

        Returns:
            The Picture. Its tensor is (1, C, H, W). If it was reduced, its notes say so, and `original_size` is set.

        Raises:
            InputError: When `picture` is something else, the preprocessing returns something else than allowed, or
                `max_size` is no positive integer.
            PictureError: When the file cannot be read. The message names it.

        Example:
            >>> from PIL import Image
            >>> loaded = tp.LoadedModel(nn.Conv2d(3, 2, 3), tp.Preprocess(resize=24, crop=(24, 24)))
            >>> loaded.read(Image.new("RGB", (64, 48))).tensor.shape
            torch.Size([1, 3, 24, 24])
            >>> loaded.read(Image.new("RGB", (640, 480)), max_size=64).notes
            ('reduced from 640 x 480 to 64 x 48',)
        """
        if not isinstance(picture, (str, PathLike, Image.Image)) and not (
            hasattr(picture, "read") and hasattr(picture, "seek")
        ):
            raise InputError(
                f"picture is {type_shown(picture)}; allowed: a path or a PIL image, or an open binary file"
            )
        if isinstance(picture, Image.Image):
            image, notes, original_size = upright_rgb(picture, max_size)
            name = str(getattr(picture, "filename", "") or "picture")
        else:
            image, notes, original_size = read_image(picture, max_size)
            name = str(picture) if isinstance(picture, (str, PathLike)) else str(getattr(picture, "name", "picture"))
        result = self.preprocess(image)
        if isinstance(result, Tensor):
            tensor, geometry = (result if result.ndim == 4 else result.unsqueeze(0)), Geometry.whole(image.size)
            notes = (*notes, TAKEN_AS_WHOLE)
        elif isinstance(result, tuple) and [type(each) for each in result] == [Tensor, Geometry]:
            tensor, geometry = result
        else:
            raise InputError(f"preprocess gave {type_shown(result)}; allowed: a tensor, or (tensor, Geometry)")
        reduced_from = None if image.size == original_size else original_size
        read = Picture(image, tensor.to(self.device, self.dtype), geometry, Path(name).name, notes, reduced_from)
        return replace(read, notes=(read.reduction, *notes)) if read.reduction else read

    def embed(self, texts: str | Sequence[str]) -> Tensor:
        """Return the embeddings of texts, to compare pictures with: `tp.targets.Similarity(to=...)`.

        They come from the text half of a CLIP or SigLIP checkpoint that was loaded as `hf:NAME_OR_FOLDER`. They are not
        normalised and have no graph.

        Args:
            texts: One text, or K texts.

        Returns:
            (K, D), on the model's device.

        Raises:
            ModelError: When the model has no text half, or no tokenizer.
            InputError: When `texts` is empty, or an entry is not a text or is too long.

        Example:
            >>> loaded = tp.LoadedModel(nn.Identity(), texts=lambda texts, device: torch.ones(len(texts), 4))
            >>> loaded.embed(["a cat", "a dog"]).shape
            torch.Size([2, 4])
        """
        if self.texts is None:
            raise ModelError(
                f"{self.spec or type(self.module).__name__} has no text half; CLIP and SigLIP checkpoints have one if "
                "they are loaded as hf:NAME_OR_FOLDER with their own weights. Next: load one, or give "
                "tp.targets.Similarity an embedding of your own"
            )
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
            raise InputError(f"texts is {texts!r}; allowed: a text, or a list of at least one text, none of them empty")
        return self.texts(listed, self.device)

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter; the CPU if it has none."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's first floating-point parameter; float32 if it has none."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def weights_label(self) -> str:
        """The name of the weights, with the seed of random ones: "random, seed 0"; empty if they have no name.

        Example:
            >>> tp.LoadedModel(nn.Conv2d(3, 2, 3), weights="random", seed=7).weights_label
            'random, seed 7'
        """
        return self.weights if self.seed is None else f"{self.weights}, seed {self.seed}"

    def __repr__(self) -> str:
        classes = "no class names" if self.class_names is None else f"{len(self.class_names)} classes"
        name = self.spec or type(self.module).__name__
        return printable(f"LoadedModel({name}, weights {self.weights_label or 'its own'}, {classes})")


def _is_unicode(text: str) -> bool:
    """Whether the text can be written in UTF-8; a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
