"""load_model(): models of torchvision, timm and transformers, of the user's callables, and weights files."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from torchpeek.argument_types import Allowed, Seed
from torchpeek.errors import InputError, ModelError, ModelNotFound, WeightsError, closest, notify, shown, type_shown
from torchpeek.keywords import checked_keywords
from torchpeek.models.detectors import detector_preprocess
from torchpeek.models.fetching import RANDOM, Assumed
from torchpeek.models.huggingface import huggingface_model
from torchpeek.models.loaded import LoadedModel, PreprocessFunction
from torchpeek.models.preprocess import Preprocess, PreprocessChanges, TensorsOnly
from torchpeek.models.seeding import check_seed, seeded
from torchpeek.models.timm_models import timm_model
from torchpeek.models.torchvision_models import torchvision_model
from torchpeek.models.weights import load_weights_file

_SPECS = "torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or package.module:callable"


@checked_keywords
def load_model(
    spec: Annotated[str | Path, Allowed(f"{_SPECS}, such as torchvision:resnet50")],
    weights: Annotated[str | Path | None, Allowed("'random', a file, the name of weights, or None")] = None,
    *,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    preprocess: Annotated[
        PreprocessFunction | PreprocessChanges | None, Allowed("a function from a PIL image to a tensor, or None")
    ] = None,
    class_names: Sequence[str] | None = None,
    seed: Seed = 0,
) -> LoadedModel:
    """Load a model in eval mode, with its preprocessing and class names.

    torchvision's pretrained weights are the first that it lists for the model. These are the weights of its papers and
    do not change with its version, unlike `DEFAULT`.

    Args:
        spec: Where the model comes from. `torchvision:NAME`; `timm:NAME`; `hf:NAME` for a model of transformers, or
            `hf:FOLDER` for a folder that `save_pretrained` wrote; or `package.module:callable`, which is imported, also
            from the working directory, and called without arguments. It returns an nn.Module or a LoadedModel.
        weights: None for pretrained weights, or for what a callable returns; "random"; a file, .safetensors or written
            by `torch.save`; or the name of a set of torchvision's weights.
        trust_pickle: Whether a file may be read that needs a full pickle, which can run any code. Without it, files are
            read with `weights_only=True`.
        trust_remote_code: Whether code of a checkpoint may run.
        preprocess: How a picture becomes the model's input, in place of the model's own: a `Preprocess`, or a function
            as in `LoadedModel`. None for the model's own, or ImageNet's, with a notice, if it has none.
        class_names: The name of each class, in the order of the logits, in place of the model's own.
        seed: The seed of random weights. The random states of torch, NumPy and Python are left as they were found.

    Returns:
        The LoadedModel, on the CPU.

    Raises:
        ModelNotFound: When there is no such model, or the package of the source is not installed.
        WeightsError: When the weights cannot be fetched or read, or do not fit the model.
        ModelError: When the callable or the checkpoint does not give a model.
        InputError: When `seed` is no seed, or `class_names` is not a sequence of strings.

    Example:
        >>> loaded = tp.load_model("torchvision:squeezenet1_1", weights="random")
        >>> loaded
        LoadedModel(torchvision:squeezenet1_1, weights random, seed 0, 1000 classes)
    """
    check_seed(seed)
    spec = str(spec)
    source, colon, name = spec.partition(":")
    importable = all(part.isidentifier() for part in source.split("."))  # a relative module would be one of torchpeek
    if not colon or not name or not importable:
        raise ModelNotFound(f"no model {shown(spec)}; allowed: {_SPECS}, such as torchvision:resnet50")
    file = _weights_file(weights)
    named = RANDOM if file is not None else None if weights is None else str(weights)
    with seeded(seed):
        match source:
            case "torchvision":
                built = torchvision_model(name, named)
            case "timm":
                built = timm_model(name, named)
            case "hf":
                built = huggingface_model(name, named, trust_remote_code=trust_remote_code, seed=seed)
            case _:
                if weights is not None and file is None:
                    if source.lower() in _NAMED:
                        raise ModelNotFound(f"no source {source!r}; write {source.lower()}:{name}")
                    raise WeightsError(
                        f"weights {weights!r} for {spec}: a callable decides itself; give a file, or omit the weights"
                    )
                built = _callable(source, name)
    if built.weights == RANDOM and source in _NAMED:
        built = replace(built, seed=seed)
    built = replace(built, preprocess=_settled(spec, built.preprocess, preprocess))
    if class_names is not None:
        built = replace(built, class_names=class_names)
    if file is not None:
        load_weights_file(built.module, file, trust_pickle=trust_pickle)
        built = replace(
            built, weights=file.name, seed=None, texts=None
        )  # the text half belongs to the checkpoint's weights
    built.module.eval()
    return replace(built, spec=spec)


_NAMED = ("torchvision", "timm", "hf")
"""The sources whose models are built here, so that the seed of their random weights is known."""


def _settled(
    spec: str, own: PreprocessFunction, asked: PreprocessFunction | PreprocessChanges | None
) -> PreprocessFunction:
    """Return the preprocessing: what was asked for, else the model's own. A notice says what is assumed."""
    if asked is not None and not isinstance(asked, PreprocessChanges):
        return asked
    base = own.preprocess if isinstance(own, Assumed) else own
    final = base
    if asked is not None:
        if not isinstance(base, Preprocess):
            words = base.instead if isinstance(base, TensorsOnly) else f"its own is {base}"
            raise InputError(
                f"the preprocessing of {spec} cannot be changed in parts; {words}. Next: give "
                "a package.module:callable that returns tp.LoadedModel(network, preprocess)"
            )
        final = asked.applied(base)
    if isinstance(own, Assumed) and asked is None:
        notify(f"{spec} {own.why}; ImageNet's way is used: {final}")
    elif isinstance(own, Assumed) and asked is not None and not asked.complete:
        notify(f"{spec} {own.why}; what was not named is assumed: {final}")
    return final


def _weights_file(weights: str | Path | None) -> Path | None:
    """Return the weights file: an existing file, or anything that looks like a path. None for the name of weights."""
    if weights is None or weights == RANDOM:
        return None
    path = Path(weights)
    return path if os.path.isfile(path) or path.suffix or len(path.parts) > 1 else None


def _callable(module_name: str, name: str) -> LoadedModel:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        attribute: Any = importlib.import_module(module_name)
        for part in name.split("."):
            attribute = getattr(attribute, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module exists, and one of its imports does not
        raise ModelNotFound(
            f"no module {error.name!r} for the model {module_name}:{name}, neither installed nor in the working "
            "directory. Other sources: torchvision, timm, hf"
        ) from error
    except AttributeError as error:
        raise ModelNotFound(f"module {module_name!r} has no {name!r}{closest(name, dir(attribute))}") from error
    finally:
        sys.path.remove(here)
    result = attribute() if callable(attribute) and not isinstance(attribute, (nn.Module, LoadedModel)) else attribute
    if isinstance(result, LoadedModel):
        return result
    if not isinstance(result, nn.Module):
        raise ModelError(f"{module_name}:{name} gave {type_shown(result)}; allowed: an nn.Module or a LoadedModel")
    return LoadedModel(result, detector_preprocess(result) or Assumed())
