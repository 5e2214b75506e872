"""The folder of a run: run.json, the frozen list of samples, the groups, and the parts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from torchpeek._version import __version__
from torchpeek.errors import FormatError, RunMismatch
from torchpeek.runs.object_storage import ObjectStorage, is_url
from torchpeek.runs.parts import is_complete
from torchpeek.runs.samples import SampleList
from torchpeek.runs.shards import Cut
from torchpeek.runs.spec import Group, RunSpec, group_from_json, spec_from_json
from torchpeek.runs.storage import FolderStorage, Storage
from torchpeek.store.json_values import parsed_json
from torchpeek.store.records import json_text

RUN, SAMPLES = "run.json", "samples.parquet"
FORMAT = 1
_MOST_BYTES = 64 << 20  # of run.json: a hundred thousand class names
_GROUP_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}\.json")


def storage_of(place: str | PathLike[str]) -> Storage:
    """The storage of a run in a folder, or behind a URL."""
    text = os.fspath(place)
    return ObjectStorage(text) if is_url(text) else FolderStorage(Path(text))


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run that exists.

    Args:
        storage: Its files.
        spec: What its numbers depend on.
        source: What run.json says of the source.
        cut: How its samples are divided.
        class_names: The names of the model's classes, by class index; empty where it has none.
        labels_from: Where the labels of the samples come from, in words; empty where they have none.
        list_digest: SHA-256 of the frozen list.
    """

    storage: Storage
    spec: RunSpec
    source: Mapping[str, Any]
    cut: Cut
    class_names: Sequence[str] = ()
    labels_from: str = ""
    list_digest: str = ""

    @cached_property
    def samples(self) -> SampleList:
        """The frozen list."""
        return SampleList(self.storage, SAMPLES)

    def groups(self) -> dict[str, Group]:
        """The groups that were asked for, by name: the one with predictions first."""
        found = {}
        for file in filter(_GROUP_FILE.fullmatch, self.storage.files("groups")):
            name = f"groups/{file}"
            where = self.storage.url(name)
            text = self.storage.read(name, _MOST_BYTES).decode(errors="replace")
            group = group_from_json(parsed_json(text, where, allowed="a group"), where)
            if file != f"{group.name}.json":
                raise FormatError(f"{where}: damaged: its name does not fit its contents")
            found[group.name] = group
        return dict(sorted(found.items(), key=lambda each: (not each[1].predictions, each[0])))

    def has_part(self, shard: int, group: str) -> bool:
        """Whether a part is complete."""
        return is_complete(self.storage, shard, group)

    def add(self, group: Group) -> None:
        """Write down that the run has this group. Several processes may do so at once."""
        self.storage.put_once(f"groups/{group.name}.json", json_text(asdict(group)).encode())


def freeze_samples(storage: Storage, file: Path) -> None:
    """Write the list of samples, unless another process has done so meanwhile: the first list is that of the run.

    Raises:
        RunMismatch: When there is another list: that of another command, which was killed or begins at this moment.
    """
    if not storage.put_file_once(SAMPLES, file) and storage.read(SAMPLES) != file.read_bytes():
        raise RunMismatch(
            f"{storage.place}: there is another list of samples, of a command that was killed before its run began, or "
            f"that begins now. Next: delete {SAMPLES} in it if none begins, or give another folder"
        )


def created(
    storage: Storage,
    spec: RunSpec,
    source: Mapping[str, Any],
    cut: Cut,
    class_names: Sequence[str],
    labels_from: str,
    list_digest: str,
) -> RunFolder:
    """Write run.json, unless another process has done so meanwhile: the first cut is that of the run.

    Raises:
        RunMismatch: When the run that is there has another spec.
    """
    content = {
        "format": FORMAT,
        "torchpeek": __version__,
        "spec": asdict(spec),
        "source": dict(source),
        "cut": asdict(cut),
        "class_names": list(class_names),
        "labels_from": labels_from,
        "list_digest": list_digest,
    }
    storage.put_once(RUN, json_text(content).encode())
    return opened(storage, spec)


def opened(storage: Storage, spec: RunSpec | None = None) -> RunFolder:
    """A run that exists. Raises RunMismatch where it has another spec than the one given."""
    where = storage.url(RUN)
    content = parsed_json(storage.read(RUN, _MOST_BYTES).decode(errors="replace"), where, allowed="a run of torchpeek")
    try:
        if content["format"] != FORMAT:
            raise FormatError(
                f"{where}: format {content['format']!r:.20}, of torchpeek {content.get('torchpeek', '')!r:.20}; "
                f"this torchpeek reads {FORMAT}. Next: install that version"
            )
        names = [str(name) for name in content["class_names"]]
        folder = RunFolder(
            storage,
            spec_from_json(content["spec"], where),
            dict(content["source"]),
            Cut.from_json(content["cut"], where),
            names,
            str(content["labels_from"]),
            str(content["list_digest"]),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: no run, or damaged ({error})") from error
    if (count := len(folder.samples)) != folder.cut.samples:
        raise FormatError(
            f"{where}: says {folder.cut.samples:,} samples, and {SAMPLES} has {count:,}; one of them is damaged"
        )
    if spec is not None and (differences := folder.spec.differences(spec)):
        raise RunMismatch(
            f"{storage.place}: this run was made with something else: {'; '.join(differences)}. Its numbers would "
            "not be comparable. Next: give the same again, or another folder"
        )
    return folder


def is_run(storage: Storage) -> bool:
    """Whether there is a run."""
    return storage.exists(RUN)
