"""The local executor: the shards of a run, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterable

from torchpeek.models import LoadedModel
from torchpeek.runs.parts import is_complete, write_part
from torchpeek.runs.run_folder import RunFolder
from torchpeek.runs.shard_run import Shard, run_shard
from torchpeek.runs.sources.source import Source


def run_shards(folder: RunFolder, loaded: LoadedModel, source: Source, shards: Iterable[Shard], workers: int) -> None:
    """Compute what the shards lack."""
    groups, samples = folder.groups(), folder.samples
    for shard in shards:
        missing = [group for name, group in groups.items() if not is_complete(folder.path, shard.number, name)]
        if not missing:
            continue
        results = run_shard(
            loaded,
            samples,
            source,
            shard,
            missing,
            seed=folder.spec.seed,
            max_size=folder.spec.max_size,
            workers=workers,
        )
        for result in results:
            files, counts = result.files()
            write_part(folder.path, shard.number, result.group.name, files, counts)
