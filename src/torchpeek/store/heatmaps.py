"""Heatmaps as safetensors, their provenance in the header."""

from __future__ import annotations

import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from torchpeek.engine.targets import Answered, ClassScores, ContrastScores, Question
from torchpeek.errors import FormatError
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.store.folder import write_whole

_KEY = "torchpeek"
_VERSION = 1


def save(heatmap: Heatmap, path: str | PathLike[str]) -> None:
    """Write a heatmap: values, scores and labels as tensors, everything else as JSON in the header.

    An existing file is replaced, in one step: a reader sees the old one or the new one.
    """
    write_whole(Path(path), save_bytes(heatmap))


def save_bytes(heatmap: Heatmap) -> bytes:
    """What `save` writes."""
    question, tensors = heatmap.question, {"values": heatmap.values, "scores": heatmap.scores}
    stored: dict[str, str | float]
    match question:
        case ClassScores():
            tensors["labels"], stored = question.labels, {"kind": question.kind}
        case ContrastScores():
            tensors |= {"labels": question.labels, "others": question.others}
            stored = {"kind": question.kind, "strength": question.strength}
        case _:  # what was asked can be said, but not asked again
            tensors["labels"] = question.labels
            stored = {"kind": str(getattr(question, "kind", type(question).__name__)), "answered": "yes"}
    about = {"format": _VERSION, "question": stored, "provenance": asdict(heatmap.provenance)}
    header = {_KEY: json.dumps(about, ensure_ascii=False)}
    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, header)


def load(path: str | PathLike[str]) -> Heatmap:
    """Read what `save` wrote, on the CPU. Raises FormatError for any other file."""
    try:
        with safe_open(path, framework="pt") as opened:
            header = (opened.metadata() or {}).get(_KEY)
            if header is None:
                raise FormatError(
                    f"{path}: a safetensors file, but not a heatmap of torchpeek's; it holds {list(opened.keys())[:4]}"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
        about = json.loads(header)
        if about["format"] != _VERSION:
            raise FormatError(
                f"{path}: format {about['format']}; this torchpeek reads {_VERSION}. Next: a newer torchpeek"
            )
        provenance = about["provenance"]
        provenance["class_names"] = {int(label): name for label, name in provenance["class_names"].items()}
        provenance["steps"] = tuple(provenance["steps"])
        stored = about["question"]
        question: Question
        if "strength" in stored:
            question = ContrastScores(tensors["labels"], tensors["others"], stored["strength"])
        elif "answered" in stored:
            question = Answered(tensors["labels"], stored["kind"])
        else:
            question = ClassScores(tensors["labels"], stored["kind"])
        return Heatmap(tensors["values"], tensors["scores"], question, Provenance(**provenance))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: not a heatmap, or damaged ({error})") from error
