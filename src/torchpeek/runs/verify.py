"""Verify a run: every part is as it was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from os import PathLike

from torchpeek.errors import FormatError, RunError
from torchpeek.models import Model
from torchpeek.runs.api import prepare
from torchpeek.runs.local import run_shards
from torchpeek.runs.parts import complete_parts, damage, read_part, remove_part
from torchpeek.runs.run_folder import SAMPLES, RunFolder, opened, storage_of


@dataclass(frozen=True)
class Verification:
    """What a check of a run has found.

    Args:
        parts: How many complete parts there are.
        missing: How many parts the run lacks, because it is not finished.
        damaged: What is wrong, in words: a line for each damaged file.
        repaired: The parts that were computed again.
    """

    parts: int
    missing: int
    damaged: tuple[str, ...]
    repaired: tuple[str, ...] = ()


def verified(
    place: str | PathLike[str], *, repair: bool = False, model: Model | None = None, workers: int = 0
) -> Verification:
    """Compare every file of a run with its SHA-256, and the number of samples with the list.

    Args:
        place: The folder or URL of the run.
        repair: Whether to compute damaged parts again.
        model: The model of the run, to repair it.
        workers: How many processes decode while it is repaired.

    Returns:
        What was found.

    Raises:
        FormatError: When there is no run, or run.json or the list of samples is damaged: these cannot be made again.
        RunError: When there is something to repair, and no model was given.
    """
    folder = opened(storage_of(place))
    with folder.storage.open(SAMPLES) as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != folder.list_digest:
        raise FormatError(
            f"{folder.storage.url(SAMPLES)}: its SHA-256 is not that with which it was written. Next: start again in "
            "another folder"
        )
    groups = folder.groups()
    count, found = 0, dict[tuple[int, str], str]()
    for shard, group in complete_parts(folder.storage):
        if group not in groups or shard >= len(folder.cut):
            found[shard, group] = f"{folder.storage.place}: part {shard}/{group} is of no group or shard of this run"
            continue
        count += 1
        if words := _damage(folder, shard, group):
            found[shard, group] = words
    missing = len(folder.cut) * len(groups) - count
    known = [each for each in found if each[1] in groups and each[0] < len(folder.cut)]  # others cannot be made again
    repaired = _repaired(folder, known, model, workers) if repair and known else ()
    return Verification(count, missing, tuple(found.values()), repaired)


def _damage(folder: RunFolder, shard: int, group: str) -> str:
    try:
        return damage(folder.storage, read_part(folder.storage, shard, group))
    except FormatError as error:
        return str(error)


def _repaired(folder: RunFolder, parts: list[tuple[int, str]], model: Model | None, workers: int) -> tuple[str, ...]:
    if model is None:
        raise RunError(
            f"{len(parts)} parts are damaged, and the model of the run is needed to compute them again: "
            f"{folder.spec.model}. Next: give it"
        )
    known, loaded, source, _ = prepare(
        model, None, folder.storage.place, max_size=folder.spec.max_size, seed=folder.spec.seed
    )
    for shard, group in parts:
        remove_part(folder.storage, shard, group)
    shards = [folder.cut.shard(number) for number in sorted({shard for shard, _ in parts})]
    run_shards(known, loaded, source, shards, workers=workers)
    return tuple(f"parts/{shard:06d}/{group}" for shard, group in parts)
