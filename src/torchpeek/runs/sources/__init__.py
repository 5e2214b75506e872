"""Where the samples of a run come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchpeek.errors import FormatError, InputError, shown, type_shown
from torchpeek.runs.object_storage import is_url
from torchpeek.runs.sources.annotated import AnnotatedSource, annotated
from torchpeek.runs.sources.file_places import (
    FolderPlace,
    UrlPlace,
    local_path,
    picture_names,
    place_and_name,
    place_of,
)
from torchpeek.runs.sources.folder import FolderSource, folder_source
from torchpeek.runs.sources.hugging_face import HuggingFaceSource, hugging_face_source, is_saved_dataset
from torchpeek.runs.sources.listed import ListSource, list_source
from torchpeek.runs.sources.source import Source
from torchpeek.runs.sources.table import TableSource
from torchpeek.runs.sources.table_rows import SUFFIXES, table_format
from torchpeek.runs.sources.tar import TarSource, tar_source
from torchpeek.runs.sources.torch_dataset import (
    DatasetSource,
    called_dataset_source,
    dataset_source,
    is_callable_spec,
    is_dataset,
)
from torchpeek.system_errors import is_from_outside

__all__ = ["Source", "source_of", "stored_source"]

_ALLOWED = (
    f"a folder of pictures, a table ({', '.join(SUFFIXES)}), tar archives, hf:NAME:SPLIT, package.module:callable, - "
    "for paths from standard input, a URL of a folder, table or archive, or a torch Dataset"
)


def source_of(
    data: Any, class_names: Sequence[str] | None, *, labels: Any = None, boxes: Any = None, masks: Any = None
) -> Source:
    """The source that the user named.

    Args:
        data: A folder; a table; a tar archive, or several by wildcards, braces, a list or their folder; a folder that
            `save_to_disk` of Hugging Face wrote; "hf:name" or "hf:name:split"; a URL of a folder, table or archive; "-"
            for paths from standard input; "package.module:callable"; or a torch Dataset.
        class_names: The names of the model's classes, with which labels and sub-folders are matched.
        labels: As in `run`.
        boxes: As in `run`.
        masks: As in `run`.

    Returns:
        The source.

    Raises:
        InputError: When it is none that can be read.
    """
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    if isinstance(data, str):
        source = _named(data, class_names)
    elif isinstance(data, (list, tuple)) and data and all(isinstance(each, (str, os.PathLike)) for each in data):
        source = _of_list([os.fspath(each) for each in data], class_names)
    elif is_dataset(data) and not isinstance(data, (bytes, Mapping)):
        source = dataset_source(data, class_names)
    else:
        raise InputError(f"data is {type_shown(data)}; allowed: {_ALLOWED}")
    return annotated(source, class_names, labels=labels, boxes=boxes, masks=masks)


def _named(data: str, class_names: Sequence[str] | None) -> Source:
    if data == "-":
        return list_source(sys.stdin.buffer, class_names)
    if data.startswith("file://"):
        data = local_path(data)
    if not is_url(data):
        path = Path(data)
        if path.is_dir():
            return _folder(FolderPlace(path), class_names)
        if data.startswith("hf:"):
            return hugging_face_source(data.removeprefix("hf:"), class_names)
        if is_callable_spec(data) and not path.exists():
            return called_dataset_source(data, class_names)
    if data.endswith(".tar"):
        return tar_source([data if is_url(data) else os.path.abspath(data)], class_names)
    if table_format(data) is not None:
        place, name = place_and_name(data)
        return TableSource(place, name, class_names)
    if is_url(data) and (place := UrlPlace(data)).is_folder():
        return _folder(place, class_names)
    missing = "" if is_url(data) or Path(data).exists() else ", which does not exist"
    raise InputError(f"data is {shown(data)}{missing}; allowed: {_ALLOWED}")


def _folder(place: FolderPlace | UrlPlace, class_names: Sequence[str] | None) -> Source:
    if isinstance(place, FolderPlace) and is_saved_dataset(place.path):
        return hugging_face_source(place.address, class_names)
    files = place.files()
    has_archives = any(name.endswith(".tar") for name in files)
    if has_archives and not any(map(picture_names(), files)) and not place.folders():
        return TarSource(place, ["*.tar"], class_names)
    return folder_source(place, class_names)


def _of_list(data: Sequence[str], class_names: Sequence[str] | None) -> Source:
    if all(each.endswith(".tar") for each in data):
        return tar_source([each if is_url(each) else os.path.abspath(each) for each in data], class_names)
    return list_source((os.fsencode(each) for each in data), class_names)


def stored_source(description: Mapping[str, Any]) -> Source:
    """The source that run.json describes, for samples that are listed already. It imports no code of the user.

    Args:
        description: What `Source.description` gave.

    Returns:
        The source, which reads what is inside of the folders of the description, and nothing else.

    Raises:
        FormatError: When it is no description.
    """
    try:
        source = _stored(description)
        masks = None if description.get("masks") is None else place_of(_text(description["masks"]))
    except (KeyError, TypeError, AttributeError) as error:
        if is_from_outside(error):
            raise
        raise FormatError(f"the source of the run is {shown(dict(description))}, which is damaged") from error
    return source if masks is None else AnnotatedSource(source, masks=masks)


def _stored(description: Mapping[str, Any]) -> Source:
    match description.get("kind"):
        case "folder":
            return FolderSource(place_of(_text(description["path"])))
        case "table":
            place, name = place_and_name(_text(description["path"]))
            return TableSource(place, name, roots=_texts(description["roots"]))
        case "list":
            return ListSource(FolderPlace(_text(description["path"])), _texts(description["roots"]))
        case "tar":
            return TarSource(place_of(_text(description["path"])), _texts(description["patterns"]))
        case "hugging face":
            split = description["split"]
            on_disk = description["on_disk"] is True
            return HuggingFaceSource(_text(description["name"]), None if split is None else _text(split), on_disk)
        case "dataset":
            spec = description["callable"]
            return DatasetSource(None, None if spec is None else _text(spec), _text(description["type"]))
        case kind:
            raise InputError(f"the source of the run is {shown(kind)}, which this torchpeek cannot read")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is no text")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} is no list")
    return [_text(each) for each in value]
