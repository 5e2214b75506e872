"""Heatmaps as safetensors files, with their provenance in the header."""

from __future__ import annotations

import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from torchpeek.engine import score_kind
from torchpeek.engine.targets import Answered, ClassScores, ContrastScores, Question
from torchpeek.errors import FormatError, InputError
from torchpeek.heatmap import Heatmap
from torchpeek.keywords import checked_keywords
from torchpeek.provenance import Provenance
from torchpeek.store.folder import write_whole

_KEY = "torchpeek"
_VERSION = 1


@checked_keywords
def save(heatmap: Heatmap, path: str | PathLike[str]) -> None:
    """Write a heatmap as a safetensors file.

    Values, scores and labels are tensors; everything else is JSON in the header. An existing file is replaced in one
    step: a reader sees the old file or the new one. The pictures of the heatmap are not written.

    Args:
        heatmap: The heatmap.
        path: Path of the file.

    Raises:
        InputError: When it is no heatmap.
        FolderError: When the folder of the file does not exist.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.save(heatmap, folder / "heatmap.safetensors")
    """
    if not isinstance(heatmap, Heatmap):
        raise InputError(
            f"tp.save got a {type(heatmap).__name__}; allowed: a Heatmap. Next: tp.TensorStream(folder) writes tensors"
        )
    write_whole(Path(path), save_bytes(heatmap))


def save_bytes(heatmap: Heatmap) -> bytes:
    """Return the bytes that `save` writes."""
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
    header = {_KEY: json.dumps(about, ensure_ascii=False, default=_as_json)}
    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, header)


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
    try:
        with safe_open(path, framework="pt") as opened:
            header = (opened.metadata() or {}).get(_KEY)
            if header is None:
                raise FormatError(
                    f"{path}: a safetensors file, but not a heatmap of torchpeek; it holds {list(opened.keys())[:4]}"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a dict
        about = json.loads(header)
        if about["format"] != _VERSION:
            raise FormatError(
                f"{path}: format {about['format']}; this torchpeek reads {_VERSION}. Next: install a newer torchpeek"
            )
        provenance = about["provenance"]
        provenance["class_names"] = {int(label): name for label, name in provenance["class_names"].items()}
        provenance["steps"] = tuple(provenance["steps"])
        options = provenance["options"]
        options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        options |= {name.removeprefix(_OPTION): each for name, each in tensors.items() if name.startswith(_OPTION)}
        stored = about["question"]
        part = stored.get("part", "")  # older files do not have it
        question: Question
        if "strength" in stored:
            question = ContrastScores(tensors["labels"], tensors["others"], stored["strength"], part)
        elif "answered" in stored:
            question = Answered(tensors["labels"], stored["kind"])
        else:
            question = ClassScores(tensors["labels"], stored["kind"], part)
        return Heatmap(tensors["values"], tensors["scores"], question, Provenance(**provenance))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: not a heatmap, or damaged ({error})") from error
