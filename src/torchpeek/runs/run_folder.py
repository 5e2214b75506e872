"""The folder of a run: run.json, the frozen list of samples, the groups, and the parts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchpeek._version import __version__
from torchpeek.errors import FormatError, RunMismatch
from torchpeek.runs.samples import SampleList, write_samples
from torchpeek.runs.shard_run import Shard
from torchpeek.runs.sources.source import Source
from torchpeek.runs.spec import Group, RunSpec, spec_from_json
from torchpeek.store.json_values import read_json
from torchpeek.store.records import json_text

RUN, SAMPLES = "run.json", "samples.parquet"
FORMAT = 1


@dataclass(frozen=True)
class Cut:
    """How the frozen list is divided into shards.

    Args:
        samples: How many samples the list has.
        batch: Samples in a batch.
        batches: Batches in a shard.
        first: How many samples, at the beginning of the list, are the random sample; 0 where there is none.
    """

    samples: int
    batch: int
    batches: int
    first: int = 0

    def shards(self) -> list[Shard]:
        """All shards, in their sequence."""
        size, shards = self.batch * self.batches, list[Shard]()
        for begin, end in ((0, self.first), (self.first, self.samples)):
            for start in range(begin, end, size):
                shards.append(Shard(len(shards), start, min(start + size, end), self.batch))
        return shards


@dataclass(frozen=True)
class RunFolder:
    """A run that exists.

    Args:
        path: Its folder.
        spec: What its numbers depend on.
        source: What run.json says of the source.
        cut: How its samples are divided.
        class_names: The names of the model's classes, by class index; empty where it has none.
    """

    path: Path
    spec: RunSpec
    source: Mapping[str, Any]
    cut: Cut
    class_names: Sequence[str] = ()

    @property
    def samples(self) -> SampleList:
        """The frozen list."""
        return SampleList(self.path / SAMPLES)

    def groups(self) -> dict[str, Group]:
        """The groups that were asked for, by name."""
        found = {}
        for file in sorted((self.path / "groups").glob("*.json")):
            found[file.stem] = Group(**read_json(file, allowed="a group of a run"))
        return found

    def add(self, group: Group) -> None:
        """Write down that the run has this group. Several processes may do so at once."""
        folder = self.path / "groups"
        folder.mkdir(exist_ok=True)
        put_once(folder / f"{group.name}.json", json_text(asdict(group)).encode())


def created(
    path: Path, spec: RunSpec, source: Source, batch: int, batches: int, class_names: Sequence[str] = ()
) -> RunFolder:
    """Make a run, or take the one that another process has just made: the first one writes, and the others read.

    Raises:
        RunMismatch: When the run that is there has another spec.
    """
    path.mkdir(parents=True, exist_ok=True)
    if not (path / SAMPLES).exists():
        aside = path / f".samples-{secrets.token_hex(8)}"
        try:
            write_samples(aside, source.samples())
            link_once(aside, path / SAMPLES)
        finally:
            aside.unlink(missing_ok=True)
    cut = Cut(len(SampleList(path / SAMPLES)), batch, batches)
    content = {
        "format": FORMAT,
        "torchpeek": __version__,
        "spec": asdict(spec),
        "source": dict(source.description),
        "cut": asdict(cut),
        "class_names": list(class_names),
    }
    put_once(path / RUN, json_text(content).encode())
    return opened(path, spec)


def opened(path: Path, spec: RunSpec | None = None) -> RunFolder:
    """A run that exists. Raises RunMismatch where it has another spec than the one given."""
    where = path / RUN
    content = read_json(where, allowed="a run of torchpeek")
    try:
        if content["format"] != FORMAT:
            raise FormatError(f"{where}: format {content['format']!r:.20}; this torchpeek reads {FORMAT}")
        folder = RunFolder(
            path,
            spec_from_json(content["spec"], str(where)),
            content["source"],
            Cut(**content["cut"]),
            content["class_names"],
        )
    except (AttributeError, LookupError, TypeError) as error:
        raise FormatError(f"{where}: no run, or damaged ({error})") from error
    if spec is not None and (differences := folder.spec.differences(spec)):
        raise RunMismatch(
            f"{path}: this run was made with something else: {'; '.join(differences)}. Its numbers would not be "
            "comparable. Next: give the same again, or another --out"
        )
    return folder


def put_once(path: Path, data: bytes) -> bool:
    """Write a file unless it exists. Returns whether this call has written it. Nobody sees half of it."""
    aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return link_once(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def link_once(aside: Path, path: Path) -> bool:
    """Give a finished file its name unless that exists. Returns whether this call has done so."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    return True
