"""Heatmaps as safetensors files, with their provenance in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
from torch import Tensor

from torchpeek.argument_types import Allowed
from torchpeek.engine import score_kind
from torchpeek.engine.targets import Answered, ClassScores, ContrastScores, Question
from torchpeek.engine.targets.class_scores import ScoreKind
from torchpeek.errors import FormatError, InputError, notify
from torchpeek.heatmap import Heatmap
from torchpeek.keywords import checked_keywords
from torchpeek.provenance import Provenance
from torchpeek.signal_gate import is_of_handler
from torchpeek.store.folder import write_whole
from torchpeek.store.json_values import parsed_json
from torchpeek.store.tensor_files import packed, read_tensor_file

_KEY = "torchpeek"
_VERSION = 2  # 1 had no checksum, and no digests of the inputs


@checked_keywords
def save(
    heatmap: Annotated[Heatmap, Allowed("a Heatmap. Next: tp.TensorStream(folder) writes tensors")],
    path: str | PathLike[str],
) -> None:
    """Write a heatmap as a safetensors file.

    Values, scores and labels are tensors; everything else is JSON in the header, and a checksum covers all of it. An
    existing file is replaced in one step: a reader sees the old file or the new one. The pictures of the heatmap are
    not written.

    Args:
        heatmap: The heatmap.
        path: Path of the file.

    Raises:
        InputError: When it is no heatmap, or its parts do not fit each other.
        FolderError: When the folder of the file does not exist, or the file cannot be written.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.save(heatmap, folder / "heatmap.safetensors")
    """
    write_whole(Path(path), save_bytes(heatmap))


def save_bytes(heatmap: Heatmap) -> bytes:
    """Return the bytes that `save` writes."""
    if problem := _why_not_a_heatmap(heatmap):
        raise InputError(f"the heatmap cannot be saved: {problem}. Next: make it as tp.explain does")
    question, tensors = heatmap.question, {"values": heatmap.values, "scores": heatmap.scores}
    stored: dict[str, str | float]
    match question:
        case ClassScores():
            tensors["labels"], stored = question.labels, {"kind": question.kind, "part": question.part}
        case ContrastScores():
            tensors |= {"labels": question.labels, "others": question.others}
            stored = {"kind": question.kind, "strength": question.strength, "part": question.part}
        case _:  # the question can be named, but not evaluated again
            tensors["labels"] = question.labels
            stored = {"kind": score_kind(question), "answered": "yes"}
    options = {name: value for name, value in heatmap.provenance.options.items() if isinstance(value, Tensor)}
    tensors |= {_OPTION + name: value for name, value in options.items()}
    about = {"format": _VERSION, "question": stored, "provenance": asdict(heatmap.provenance)}
    # ASCII, because a name may hold what UTF-8 has no bytes for.
    header = {_KEY: json.dumps(about, default=_as_json)}
    return packed({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, header)


# What the name of a tensor begins with that is an option of the method.
_OPTION = "option."


def _as_json(value: object) -> object:
    """The description of an option's value that JSON has no type for. Tensors stand beside the values in the file."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


@checked_keywords
def load(path: str | PathLike[str]) -> Heatmap:
    """Read a heatmap that `save` wrote.

    Args:
        path: Path of the file.

    Returns:
        The Heatmap, on the CPU.

    Raises:
        FormatError: When there is no such file, it is not a heatmap, or it is damaged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.save(heatmap, folder / "heatmap.safetensors")
        >>> torch.equal(tp.load(folder / "heatmap.safetensors").values, heatmap.values)
        True
    """
    read = read_tensor_file(path, _KEY, "a heatmap")
    about = parsed_json(read.metadata[_KEY], str(path), allowed="not a heatmap, or damaged")
    try:
        if about["format"] not in (1, _VERSION):
            raise FormatError(
                f"{path}: format {about['format']!r:.20}; this torchpeek reads 1 and {_VERSION}. Next: install a newer "
                "torchpeek"
            )
        if about["format"] != 1 and not read.checked:
            raise FormatError(f"{path}: damaged: it has no checksum")
        tensors = read.tensors
        options = {name.removeprefix(_OPTION): each for name, each in tensors.items() if name.startswith(_OPTION)}
        provenance = provenance_from_json(about["provenance"], options)
        heatmap = Heatmap(tensors["values"], tensors["scores"], _question(about["question"], tensors), provenance)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if is_of_handler(error):
            raise
        raise FormatError(f"{path}: not a heatmap, or damaged ({error})") from error
    if problem := _why_not_a_heatmap(heatmap):
        raise FormatError(f"{path}: not a heatmap, or damaged ({problem})")
    if not read.checked:
        notify(
            f"{path}: has no checksum, as it is from an older torchpeek; a damaged number in it is not noticed. Next: "
            "tp.save(tp.load(path), path) gives it one"
        )
    return heatmap


def _question(stored: Any, tensors: Mapping[str, Tensor]) -> Question:
    part, kind = stored.get("part", ""), stored["kind"]  # older files have no part
    if not isinstance(part, str) or not isinstance(kind, str):
        raise TypeError("its question has no name")
    if "strength" in stored:
        return ContrastScores(tensors["labels"], tensors["others"], float(stored["strength"]), part)
    if "answered" in stored:
        return Answered(tensors["labels"], kind)
    if kind not in get_args(ScoreKind):
        raise ValueError(f"a score of the kind {kind!r:.60}")
    return ClassScores(tensors["labels"], cast(ScoreKind, kind), part)


def provenance_from_json(stored: Any, tensors: Mapping[str, Tensor]) -> Provenance:
    """The provenance that a file has; `tensors` are the options that are tensors.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: When it is none, or damaged.
    """
    stored = dict(stored)
    stored["class_names"] = {int(label): _text(name) for label, name in stored["class_names"].items()}
    stored["steps"] = tuple(map(_text, stored["steps"]))
    stored["inputs"] = tuple(map(_text, stored.get("inputs", ())))
    options = {name: tuple(each) if isinstance(each, list) else each for name, each in stored["options"].items()}
    stored["options"] = {**options, **tensors}
    for each in fields(Provenance):
        if each.type == "str" and each.name in stored:
            _text(stored[each.name])
    return Provenance(**stored)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _why_not_a_heatmap(heatmap: Heatmap) -> str:
    """Why the parts of a heatmap do not fit each other; "" where they do."""
    values, scores, question = heatmap.values, heatmap.scores, heatmap.question
    indices = {"labels": question.labels}
    if isinstance(question, ContrastScores):
        indices["others"] = question.others
    for name, each in {"scores": scores, **indices}.items():
        if each.ndim != 2 + (name == "others") or each.shape[:2] != values.shape[:2]:
            return f"its {name} are {tuple(each.shape)} for values {tuple(values.shape)}"
    for name, each in indices.items():
        if each.is_floating_point() or each.is_complex() or each.dtype == torch.bool:
            return f"its {name} are of {each.dtype}"
    if heatmap.provenance.inputs and len(heatmap.provenance.inputs) != len(values):
        return f"it has digests of {len(heatmap.provenance.inputs)} inputs for values {tuple(values.shape)}"
    for name, each in (("values", values), ("scores", scores)):
        if not each.is_floating_point():
            return f"its {name} are of {each.dtype}"
    return ""
