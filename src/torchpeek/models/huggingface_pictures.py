"""The preprocessing of a model of transformers: its image processor, translated into a Preprocess.

An image processor returns the input, but not which part of the picture it shows. So its settings are translated into a
Preprocess, and both are applied to test pictures. If the results differ, the processor itself is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchpeek.engine.attempts import NEVER_REFUSALS
from torchpeek.errors import InputError, TorchpeekError, type_shown
from torchpeek.models.checkpoint import Checkpoint, first_line
from torchpeek.models.fetching import Assumed
from torchpeek.models.loaded import PreprocessFunction
from torchpeek.models.preprocess import Preprocess, TensorsOnly
from torchpeek.models.timm_models import timm_preprocess
from torchpeek.system_errors import is_from_outside

# In levels of 255. torchvision's backend resizes with other fixed-point numbers than Pillow: they differ by up to 2.
_MOST_APART, _MEAN_APART = 3.0, 0.5


@dataclass(frozen=True, eq=False)
class ProcessorCall:
    """Calls an image processor of transformers. It does not return which part of the picture its output shows."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the input (1, C, H, W)."""
        pixels = self.processor(image, return_tensors="pt")["pixel_values"]
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != 1:
            got = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type_shown(pixels)
            raise InputError(f"{self} made {got} of a picture; allowed: a tensor (1, C, H, W)")
        return pixels

    def masks(self) -> bool:
        """Return whether it pads some pictures and returns a mask of the padding."""
        masks = (self.processor(image, return_tensors="pt").get("pixel_mask") for image in _test_pictures())
        return any(isinstance(mask, Tensor) and not bool(mask.all()) for mask in masks)

    def __str__(self) -> str:
        return type(self.processor).__name__


def checkpoint_preprocess(checkpoint: Checkpoint, config: Any, *, masked: bool) -> PreprocessFunction:
    """Return the preprocessing of the checkpoint's image processor; an Assumed if it has none.

    `masked` says whether the model takes a mask of the padding, which a Picture cannot hold. If the processor cannot be
    made, reading a picture raises InputError. Raises ModelError if the processor needs code of the checkpoint.
    """
    import transformers

    # Prefer the backend that uses Pillow, like Preprocess and the training of most models.
    before_version_5 = int(transformers.__version__.split(".")[0]) < 5
    backend: dict[str, Any] = {"use_fast": False} if before_version_5 else {"backend": "pil"}
    with checkpoint.quietly():
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                checkpoint.name, **backend, **checkpoint.options
            )
        except Exception as error:
            if is_from_outside(error):
                raise
            if checkpoint.refused(error):
                raise checkpoint.untrusted() from error
            if isinstance(error, OSError) and not checkpoint.has("preprocessor_config.json", "processor_config.json"):
                # For a name on the hub, transformers does not tell a missing file from a missing network.
                why = {} if checkpoint.local else {"why": "has no image processor, or none that could be fetched"}
                return Assumed(_of_size(config), **why)
            return TensorsOnly(
                f"the image processor of {checkpoint.spec} cannot be made: {first_line(error)}. Next: pip install "
                "'torchpeek[vision]', if it needs torchvision; or tp.LoadedModel(loaded.module, tp.Preprocess(...))"
            )
        own = ProcessorCall(processor)
        try:
            outputs = [own(image) for image in _test_pictures()]
        except NEVER_REFUSALS:
            raise
        except Exception as error:  # it needs more than a picture, and may raise anything
            if is_from_outside(error):
                raise
            why_not = first_line(error)
            return TensorsOnly(f"{own}, of {checkpoint.spec}, makes no input of a picture ({why_not}); give a tensor")
        if masked and own.masks():
            return TensorsOnly(
                f"{own}, of {checkpoint.spec}, pads pictures, and the model needs the mask of the padding: give both "
                "that it makes, {'pixel_values': ..., 'pixel_mask': ...}"
            )
        try:
            preprocess = translated(processor)
            return preprocess if preprocess is not None and agrees(preprocess, outputs) else own
        except (KeyError, TypeError, ValueError, TorchpeekError):  # its settings have another meaning
            return own


def translated(processor: Any) -> Preprocess | None:
    """Translate the settings of an image processor into a Preprocess; None if they are not the usual ones.

    `agrees` then checks whether the processor does what its settings say.
    """
    if hasattr(processor, "data_config"):  # the processor of a timm model
        return timm_preprocess(type(processor).__name__, processor.data_config)
    settings = processor.to_dict()
    size = _size(settings.get("size")) if settings.get("do_resize") else {}
    crop = _size(settings.get("crop_size")) if settings.get("do_center_crop") else {}
    pad = _size(settings.get("pad_size")) if settings.get("do_pad") else {}
    shorter, longest = size.get("shortest_edge"), size.get("longest_edge")
    resize: int | tuple[int, int] | None = shorter
    cropped = (crop["height"], crop["width"]) if crop.keys() >= {"height", "width"} else None
    if size.keys() >= {"height", "width"}:
        resize = (size["height"], size["width"])
        # It cuts nothing off, and makes the Preprocess say how large the model's input is.
        cropped = cropped or resize
    elif shorter is not None and settings.get("crop_pct"):  # ConvNeXt: small pictures are cropped, large ones squashed
        cropped = (shorter, shorter)
        resize = int(shorter / settings["crop_pct"]) if shorter < 384 else cropped
    elif settings.get("do_resize") and shorter is None:
        return None
    mean, std = _per_channel(settings)
    return Preprocess(
        resize=resize,
        crop=cropped,
        mean=mean,
        std=std,
        # One of the names that the field allows, which mypy cannot see.
        interpolation=Image.Resampling(int(settings.get("resample", 2))).name.lower(),  # type: ignore[arg-type]
        longest=longest if isinstance(resize, int) else None,
        pad=(pad["height"], pad["width"]) if pad.keys() >= {"height", "width"} else None,
        bgr=bool(settings.get("do_flip_channel_order")),
        rounding="down",
    )


def agrees(preprocess: Preprocess, outputs: Sequence[Tensor]) -> bool:
    """Return whether the preprocessing gives a processor's outputs for the test pictures, up to the way of resizing."""
    for image, theirs in zip(_test_pictures(), outputs, strict=True):
        ours, _ = preprocess(image)
        if ours.shape != theirs.shape:
            return False
        # Padding is 0 in both. Other differences are measured in levels of the picture.
        apart = (ours - theirs).abs() * torch.tensor(preprocess.std).view(-1, 1, 1) * 255
        if apart.max() > _MOST_APART or apart.mean() > _MEAN_APART:
            return False
    return True


def _test_pictures() -> list[Image.Image]:
    """Return pictures of odd sizes, a wide and a high one, so that every rounding rule and longest side shows."""
    return [_chequered(131, 87), _chequered(61, 150)]


def _chequered(width: int, height: int) -> Image.Image:
    """Return a picture with sharp edges that repeats nowhere: blocks of several sizes and colours on a ramp."""
    x, y = torch.arange(width).repeat(height, 1), torch.arange(height)[:, None].repeat(1, width)
    blocks = [((x // size + y // size) % 2) * 90 for size in (3, 7, 16)]
    ramps = [x * 165 // width, y * 165 // height, (x + y) * 165 // (width + height)]
    pixels = torch.stack([ramp + block for ramp, block in zip(ramps, blocks, strict=True)], dim=-1)  # (H, W, 3)
    return Image.fromarray(pixels.byte().numpy())


def _size(setting: Any) -> dict[str, int]:
    return {key: int(value) for key, value in dict(setting or {}).items() if value is not None}


def _per_channel(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for pictures in [0, 1]. They include a scale other than 1 / 255."""
    scale = 255 * (settings["rescale_factor"] if settings.get("do_rescale") else 1)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if settings.get("do_normalize"):
        mean, std = (
            tuple(each) if isinstance(each, (list, tuple)) else (float(each),)
            for each in (settings["image_mean"], settings["image_std"])
        )
    channels = max(3, len(mean), len(std))
    mean, std = (each * channels if len(each) == 1 else each for each in (mean, std))
    return tuple(each / scale for each in mean), tuple(each / scale for each in std)


def _of_size(config: Any) -> Preprocess:
    """Return ImageNet's preprocessing, in the size of the config if it has one."""
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    if isinstance(size, int):
        return Preprocess(resize=round(size / 0.875), crop=(size, size))
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return Preprocess(resize=(size[0], size[1]), crop=(size[0], size[1]))
    return Preprocess()
