"""Models of transformers, from a hub or a folder: their class, preprocessing, class names and text half."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from torch import nn

from torchpeek.errors import ModelError, WeightsError, notify
from torchpeek.models.checkpoint import Checkpoint
from torchpeek.models.fetching import RANDOM, extra
from torchpeek.models.huggingface_pictures import checkpoint_preprocess
from torchpeek.models.huggingface_texts import TextEncoder
from torchpeek.models.loaded import LoadedModel, PreprocessFunction
from torchpeek.models.preprocess import TensorsOnly

# The tasks whose Auto classes are searched, in this order, for the class that a config names.
_TASKS = (
    "ImageClassification",
    "SemanticSegmentation",
    "UniversalSegmentation",
    "InstanceSegmentation",
    "ImageSegmentation",
    "ObjectDetection",
    "DepthEstimation",
    "AudioClassification",
    "VideoClassification",
)
_WITHOUT_CLASSES = ("DepthEstimation",)
# Models that compare pictures with texts: the class of the whole model, of its vision half and of its text half, and
# the part of the text half's output that is the embedding.
_HALVES = {
    "clip": ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPTextModelWithProjection", "text_embeds"),
    "metaclip_2": (
        "MetaClip2Model",
        "MetaClip2VisionModelWithProjection",
        "MetaClip2TextModelWithProjection",
        "text_embeds",
    ),
    "siglip": ("SiglipModel", "SiglipVisionModel", "SiglipTextModel", "pooler_output"),
}


def huggingface_model(name: str, weights: str | None, *, trust_remote_code: bool = False, seed: int = 0) -> LoadedModel:
    """Load `hf:name`: a name on the hub, or a folder that `save_pretrained` wrote, which is read without a network.

    The module has the class that the config's `architectures` names, if that is for pictures, spectrograms or videos;
    else the class of AutoModel. For CLIP and SigLIP it is the vision half, which takes pixel values alone. It is in
    float32, whatever dtype was saved. `weights` is None (the checkpoint's) or "random", which reads none. `seed` is
    that of the text half's random weights, which are drawn later.

    Raises ModelNotFound, WeightsError, and ModelError if transformers cannot load it, or not without running code of
    the checkpoint.
    """
    with extra("transformers", "hf"):
        import transformers  # noqa: F401  # fails here if it is not installed
    if weights not in (None, RANDOM):
        raise WeightsError(
            f"no weights {weights!r} for hf:{name}; allowed: random, a file, or none for those of the checkpoint"
        )
    checkpoint = Checkpoint(name, trust_remote_code)
    config = checkpoint.config()
    halves = _halves(config)
    cls, task = _class_of(checkpoint, config)
    with checkpoint.quietly():
        module = _untrained(checkpoint, cls, config) if weights == RANDOM else _trained(checkpoint, cls, config)
    text = (
        None if halves is None else TextEncoder(checkpoint, halves[2], halves[3], seed if weights == RANDOM else None)
    )
    return LoadedModel(
        module.float(),
        _preprocess(checkpoint, config, module),
        _class_names(config) if task and task not in _WITHOUT_CLASSES else None,
        weights=RANDOM if weights == RANDOM else Path(name).resolve().name if checkpoint.local else name,
        texts=text,
    )


def _halves(config: Any) -> tuple[str, str, str, str] | None:
    halves = _HALVES.get(config.model_type)
    return halves if halves and _architecture(config) in ("", halves[0]) else None


def _architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [""])[0])


def _class_of(checkpoint: Checkpoint, config: Any) -> tuple[Any, str]:
    """Return the class to load, an Auto class or a model's own, and its task, or "" if it is not one of `_TASKS`."""
    import transformers
    from transformers.models.auto import modeling_auto

    architecture = _architecture(config)
    own = getattr(config, "auto_map", None) or {}
    own_tasks = {task: f"AutoModelFor{task}" for task in _TASKS if f"AutoModelFor{task}" in own}
    if own_tasks or "AutoModel" in own:
        if checkpoint.trusted:
            task, auto = next(iter(own_tasks.items()), ("", "AutoModel"))
            return getattr(transformers, auto), task
        if not hasattr(transformers, architecture):
            raise checkpoint.untrusted()
    if halves := _halves(config):
        return getattr(transformers, halves[1]), ""
    for task in _TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{_snake(task)}_MAPPING_NAMES", {})
        if architecture in _flat(names.values()):
            return getattr(transformers, architecture), task
        if not architecture and config.model_type in names:
            return getattr(transformers, _flat([names[config.model_type]])[0]), task
    in_general = config.model_type in modeling_auto.MODEL_MAPPING_NAMES
    if in_general and not architecture.endswith("WithProjection"):
        return transformers.AutoModel, ""
    if not hasattr(transformers, architecture):
        raise ModelError(
            f"transformers {transformers.__version__} has no class {architecture!r}, which {checkpoint.spec} names. "
            "Next: install a newer transformers, or give a package.module:callable that makes the model"
        )
    return getattr(transformers, architecture), ""


def _snake(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper()


def _flat(values: Any) -> list[str]:
    return [name for each in values for name in ([each] if isinstance(each, str) else each)]


def _untrained(checkpoint: Checkpoint, cls: Any, config: Any) -> nn.Module:
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False  # the backbone's weights are not to be fetched
    if cls.__name__.startswith("AutoModel"):
        module: nn.Module = cls.from_config(config, trust_remote_code=checkpoint.trusted)
    else:
        module = cls(config.vision_config if _halves(config) else config)
    return module


def _trained(checkpoint: Checkpoint, cls: Any, config: Any) -> nn.Module:
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False  # its weights are in the checkpoint
    auto = cls.__name__.startswith("AutoModel")
    options = {"trust_remote_code": checkpoint.trusted} if auto else {}
    if not _halves(config):  # a half selects its part of the config itself
        options["config"] = config
    module, info = checkpoint.weights(
        lambda: cls.from_pretrained(
            checkpoint.name, local_files_only=checkpoint.local, output_loading_info=True, **options
        )
    )
    if missing := sorted(info["missing_keys"]):
        listed = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        notify(f"{checkpoint.spec} has no weights for {len(missing)} parameters, which are random now: {listed}")
    trained: nn.Module = module
    return trained


def _class_names(config: Any) -> list[str] | None:
    """Return the class names in the order of the logits; None if the checkpoint only numbers the classes."""
    names: Mapping[int, str] = config.id2label or {}
    if not names or all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    return [str(names.get(index, index)) for index in range(max(names) + 1)]


def _preprocess(checkpoint: Checkpoint, config: Any, module: nn.Module) -> PreprocessFunction:
    first, *others = signature(module.forward).parameters.values()
    needed = [each.name for each in others if each.default is Parameter.empty and each.kind.name.startswith("POS")]
    frames, size = getattr(config, "num_frames", None), getattr(config, "image_size", "W")
    if first.name == "pixel_values" and not needed and frames is None:
        masked = any(each.name == "pixel_mask" for each in others)
        return checkpoint_preprocess(checkpoint, config, masked=masked)
    if first.name == "pixel_values" and not needed:
        return TensorsOnly(f"{checkpoint.spec} takes videos; give a tensor (N, {frames}, 3, {size}, {size})")
    if first.name == "input_values" and hasattr(config, "num_mel_bins"):
        shape = f"(N, {getattr(config, 'max_length', 'frames')}, {config.num_mel_bins})"
        return TensorsOnly(
            f"{checkpoint.spec} takes spectrograms; give a tensor {shape}, as its feature extractor makes it"
        )
    required = ", ".join([first.name, *needed])
    return TensorsOnly(f"{checkpoint.spec} takes no picture alone, but {required}; give tensors for these")
