"""Models of torchvision: the network, its preprocessing and its class names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from torch import nn

from torchpeek.errors import ModelNotFound, WeightsError, closest
from torchpeek.models.detectors import detector_preprocess
from torchpeek.models.fetching import RANDOM, Assumed, extra, fetched
from torchpeek.models.loaded import LoadedModel, PreprocessFunction
from torchpeek.models.preprocess import Preprocess, TensorsOnly


def torchvision_model(name: str, weights: str | None) -> LoadedModel:
    """Load `torchvision:name`.

    `weights` is None (pretrained), "random", or the name of an entry of its weights. Raises ModelNotFound and
    WeightsError.
    """
    with extra("torchvision", "vision"):
        from torchvision.models import get_model_weights, list_models
    known = list_models()
    if name not in known:
        raise ModelNotFound(f"torchvision has no model {name!r}{closest(name, known)}; it has {len(known)}")
    entries = list(get_model_weights(name))
    chosen = entries[0] if entries else None  # random weights take the preprocessing and the class names from it
    if weights not in (None, RANDOM):
        named = {entry.name: entry for entry in entries} | {"DEFAULT": get_model_weights(name).DEFAULT}
        if weights not in named:
            raise WeightsError(
                f"torchvision:{name} has no weights {weights!r}, and no such file exists; allowed: random, a file, "
                + ", ".join(named)
            )
        chosen = named[weights]
    module = fetched(f"torchvision:{name}", lambda: _module(name, None if weights == RANDOM else chosen))
    return LoadedModel(
        module,
        torchvision_preprocess(f"torchvision:{name}", chosen, module),
        None if chosen is None else chosen.meta.get("categories"),
        weights=RANDOM if weights == RANDOM or chosen is None else chosen.name,
    )


def _module(name: str, weights: Any) -> nn.Module:
    from torchvision.models import get_model, get_model_builder

    # Networks for segmentation and detection fetch a backbone's weights by default.
    has_backbone = "weights_backbone" in signature(get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if weights is None and has_backbone else {}
    with warnings.catch_warnings():
        # GoogLeNet and Inception warn of a change of their random initialisation at every call.
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return get_model(name, weights=weights, **backbone)  # type: ignore[no-any-return]  # torchvision has no types


def torchvision_preprocess(spec: str, weights: Any, module: nn.Module | None = None) -> PreprocessFunction:
    """Return the preprocessing of an entry of torchvision's weights. A detector has its own."""
    if module is not None and (own := detector_preprocess(module)) is not None:
        return own
    transform: Any = None if weights is None else weights.transforms()
    translate = _BY_TRANSFORM.get(type(transform).__name__)
    return Assumed() if translate is None else translate(spec, weights, transform)


def _of_classification(spec: str, weights: Any, transform: Any) -> Preprocess:
    (resize,), crop = transform.resize_size, transform.crop_size
    return _preprocess(transform, resize, (crop[0], crop[-1]))


def _of_segmentation(spec: str, weights: Any, transform: Any) -> Preprocess:
    (resize,) = transform.resize_size or (None,)
    return _preprocess(transform, resize, None)


def _of_video(spec: str, weights: Any, transform: Any) -> TensorsOnly:
    height, width = transform.crop_size
    least = weights.meta.get("min_temporal_size")
    frames = f", of at least {least} frames" if least else ""
    return TensorsOnly(f"{spec} takes videos; give a tensor (N, 3, frames, {height}, {width}){frames}")


def _of_optical_flow(spec: str, weights: Any, transform: Any) -> TensorsOnly:
    return TensorsOnly(
        f"{spec} takes two pictures, each a tensor (N, 3, H, W) in -1..1 with H and W multiples of 8. "
        "Next: give both, as tp.Arguments((first, second))"
    )


_BY_TRANSFORM: Mapping[str, Callable[[str, Any, Any], PreprocessFunction]] = {
    "ImageClassification": _of_classification,
    "SemanticSegmentation": _of_segmentation,
    "VideoClassification": _of_video,
    "OpticalFlow": _of_optical_flow,
}
"""Class of torchvision's transforms -> function (spec, weights, transform) that returns the preprocessing."""


def _preprocess(transform: Any, resize: int | None, crop: tuple[int, int] | None) -> Preprocess:
    return Preprocess(
        resize=resize,
        crop=crop,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
