"""Models of timm: the network, its preprocessing and its class names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchpeek.errors import ModelNotFound, WeightsError, closest, notify
from torchpeek.models.fetching import RANDOM, extra, fetched
from torchpeek.models.loaded import LoadedModel
from torchpeek.models.preprocess import Preprocess


def timm_model(name: str, weights: str | None) -> LoadedModel:
    """Load `timm:name`. `weights` is None (pretrained) or "random". Raises ModelNotFound and WeightsError."""
    with extra("timm", "timm"):
        import timm
        from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models()
        raise ModelNotFound(f"timm has no model {name!r}{closest(name, known)}; it has {len(known)}")
    if weights not in (None, RANDOM):
        raise WeightsError(
            f"no weights {weights!r} for timm:{name}; allowed: random, a file, or none for the pretrained ones"
        )
    try:
        module = fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights != RANDOM))
    except RuntimeError as error:  # the architecture has no such tag
        raise ModelNotFound(f"timm has no model {name!r}: {error}") from error
    subset = infer_imagenet_subset(module)
    names = (
        None
        if not subset
        else [info.index_to_description(i) for info in [ImageNetInfo(subset)] for i in range(info.num_classes())]
    )
    config: Any = module.pretrained_cfg
    tag = str(config.get("tag") or "pretrained")
    return LoadedModel(
        module,
        timm_preprocess(f"timm:{name}", resolve_model_data_config(module)),
        names,
        weights=RANDOM if weights == RANDOM else tag,
    )


def timm_preprocess(spec: str, config: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing of timm's `create_transform` for evaluation, from a model's data config."""
    _, height, width = config["input_size"]
    mode = config["crop_mode"]
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    keeps_aspect = mode == "center" and height == width  # else each side is scaled on its own
    if not keeps_aspect and mode != "squash":
        notify(f"{spec} asks for crop mode {mode!r} to {height} x {width}; pictures are squashed instead")
    return Preprocess(
        resize=scaled[0] if keeps_aspect else scaled,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bilinear",
    )
