"""Where models come from: torchvision, timm, a callable of the user's; and weights files."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import nn

from torchpeek.errors import ModelError, ModelNotFound, WeightsError, closest, notify
from torchpeek.models.loaded import LoadedModel
from torchpeek.models.preprocess import Preprocess
from torchpeek.models.weights import load_weights_file

RANDOM = "random"


def load_model(spec: str, weights: str | Path | None = None, *, trust_pickle: bool = False) -> LoadedModel:
    """The model that `spec` names, in eval mode, with its preprocessing and class names.

    `spec` is `torchvision:NAME`, `timm:NAME`, or `package.module:callable`, which is imported (also from the working
    directory) and called without arguments, and returns an nn.Module or a LoadedModel. `weights` is None (pretrained,
    for torchvision and timm), "random", a file (.safetensors, or what torch.save wrote), or the name of a set of
    weights that torchvision has. torchvision's pretrained weights are the first of those it lists, which are those of
    its papers and do not change with its version, not DEFAULT, which does.

    A file is read with `weights_only=True`; one that needs a full pickle, which can run any code, only with
    `trust_pickle`. Raises ModelNotFound and WeightsError.
    """
    source, colon, name = str(spec).partition(":")
    if not colon or not name or not source:
        raise ModelNotFound(
            f"no model {spec!r}; allowed: torchvision:NAME, timm:NAME or package.module:callable, such as "
            "torchvision:resnet50"
        )
    file = _weights_file(weights)
    named = RANDOM if file is not None else None if weights is None else str(weights)
    match source:
        case "torchvision":
            built = _torchvision(name, named)
        case "timm":
            built = _timm(name, named)
        case _:
            if weights is not None and file is None:
                raise WeightsError(
                    f"weights {weights!r} for {spec}: a callable decides itself; give a file, or leave the weights away"
                )
            built = _callable(source, name)
    if file is not None:
        load_weights_file(built.module, file, trust_pickle=trust_pickle)
        built = replace(built, weights=file.name)
    built.module.eval()
    return replace(built, spec=spec)


def _weights_file(weights: str | Path | None) -> Path | None:
    """The file that is meant, if one is: one that exists, or what looks like a path, which then is missed by name."""
    if weights is None or weights == RANDOM:
        return None
    path = Path(weights)
    return path if path.is_file() or path.suffix or len(path.parts) > 1 else None


def _torchvision(name: str, weights: str | None) -> LoadedModel:
    with _extra("torchvision", "vision"):
        from torchvision.models import get_model_weights, list_models
    known = list_models()
    if name not in known:
        raise ModelNotFound(f"torchvision has no model {name!r}{closest(name, known)}; it has {len(known)}")
    entries = list(get_model_weights(name))
    chosen = entries[0] if entries else None  # also of random weights: for the preprocessing and the class names
    if weights not in (None, RANDOM):
        named = {entry.name: entry for entry in entries} | {"DEFAULT": get_model_weights(name).DEFAULT}
        if weights not in named:
            raise WeightsError(
                f"torchvision:{name} has no weights {weights!r}, and no such file exists; allowed: random, a file, "
                + ", ".join(named)
            )
        chosen = named[weights]
    module = _fetched(f"torchvision:{name}", lambda: _torchvision_module(name, None if weights == RANDOM else chosen))
    return LoadedModel(
        module,
        _torchvision_preprocess(name, chosen),
        None if chosen is None else chosen.meta.get("categories"),
        weights=RANDOM if weights == RANDOM or chosen is None else chosen.name,
    )


def _torchvision_module(name: str, weights: Any) -> nn.Module:
    from torchvision.models import get_model, get_model_builder

    # Networks for segmentation and detection fetch a backbone's weights of their own accord.
    has_backbone = "weights_backbone" in signature(get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if weights is None and has_backbone else {}
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a change of their random initialisation at every call.
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return get_model(name, weights=weights, **backbone)  # type: ignore[no-any-return]  # torchvision has no types


def _torchvision_preprocess(name: str, weights: Any) -> Preprocess:
    transform: Any = None if weights is None else weights.transforms()
    if type(transform).__name__ != "ImageClassification":
        return _assumed(f"torchvision:{name}")
    (resize,), crop = transform.resize_size, transform.crop_size
    return Preprocess(
        resize=resize,
        crop=(crop[0], crop[-1]),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )


def _timm(name: str, weights: str | None) -> LoadedModel:
    with _extra("timm", "timm"):
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
        module = _fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights != RANDOM))
    except RuntimeError as error:  # of a tag that the architecture does not have
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
        _timm_preprocess(name, resolve_model_data_config(module)),
        names,
        weights=RANDOM if weights == RANDOM else tag,
    )


def _timm_preprocess(name: str, config: Mapping[str, Any]) -> Preprocess:
    _, height, width = config["input_size"]
    mode = config["crop_mode"]
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    kept = mode == "center" and height == width  # else every side is scaled on its own
    if not kept and mode != "squash":
        notify(f"timm:{name} asks for crop mode {mode!r} to {height} x {width}; pictures are squashed instead")
    return Preprocess(
        resize=scaled[0] if kept else scaled,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bilinear",
    )


def _callable(module_name: str, name: str) -> LoadedModel:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found, and lacks something
        raise ModelNotFound(
            f"no module {error.name!r} for the model {module_name}:{name}, neither installed nor in the working "
            "directory. Sources with names of their own: torchvision, timm"
        ) from error
    except AttributeError as error:
        raise ModelNotFound(f"module {module_name!r} has no {name!r}{closest(name, dir(found))}") from error
    finally:
        sys.path.remove(here)
    made = found if isinstance(found, (nn.Module, LoadedModel)) else found() if callable(found) else found
    if isinstance(made, LoadedModel):
        return made
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{module_name}:{name} gave a {type(made).__name__}; it has to give an nn.Module or a LoadedModel"
        )
    return LoadedModel(made, _assumed(f"{module_name}:{name}"))


def _assumed(spec: str) -> Preprocess:
    preprocess = Preprocess()
    notify(f"{spec} does not say how pictures become its input; ImageNet's way is used: {preprocess}")
    return preprocess


def _fetched(spec: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (URLError, OSError) as error:
        raise WeightsError(
            f"the pretrained weights of {spec} could not be fetched ({error}). Next: try again online, give a file "
            "with --weights FILE, or take --weights random to look at the untrained network"
        ) from error


@contextmanager
def _extra(package: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModelNotFound(f"{package} is not installed; next: pip install 'torchpeek[{extra}]'") from error
