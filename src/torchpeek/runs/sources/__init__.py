"""Where the samples of a run come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchpeek.errors import InputError, shown
from torchpeek.runs.labels import class_folders
from torchpeek.runs.sources.annotated import annotated
from torchpeek.runs.sources.folder import FolderSource, folders_of
from torchpeek.runs.sources.source import Source

__all__ = ["Source", "source_of", "stored_source"]


def source_of(
    data: Any, class_names: Sequence[str] | None, *, labels: Any = None, boxes: Any = None, masks: Any = None
) -> Source:
    """The source that the user named.

    Args:
        data: A folder.
        class_names: The names of the model's classes, with which sub-folders are matched.
        labels: As in `run`.
        boxes: As in `run`.
        masks: As in `run`.

    Raises:
        InputError: When it is none that can be read.
    """
    if isinstance(data, (str, Path)) and Path(data).is_dir():
        root = Path(data)
        source: Source = FolderSource(root, class_folders(folders_of(root), class_names, None))
    else:
        raise InputError(f"data is {shown(data)}; allowed: a folder of pictures")
    return annotated(source, class_names, labels=labels, boxes=boxes, masks=masks)


def stored_source(description: Mapping[str, Any]) -> Source:
    """The source that run.json describes, for samples that are listed already."""
    match description.get("kind"):
        case "folder":
            source: Source = FolderSource(Path(str(description["path"])))
        case kind:
            raise InputError(f"the source of the run is {shown(kind)}, which this torchpeek cannot read")
    masks = description.get("masks")
    return source if masks is None else annotated(source, None, masks=masks)
