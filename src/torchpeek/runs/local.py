"""The local executor: the shards of a run, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from torchpeek.errors import RunError, SampleChanged
from torchpeek.models import LoadedModel
from torchpeek.runs.part_content import FAILURES, PREDICTIONS, PartContent
from torchpeek.runs.parts import Part, is_complete, part_folder, read_part, remove_part, write_part
from torchpeek.runs.progress import RunProgress
from torchpeek.runs.run_folder import RunFolder
from torchpeek.runs.shard_run import run_shard
from torchpeek.runs.shards import Shard
from torchpeek.runs.sources.source import Source
from torchpeek.runs.spec import Group
from torchpeek.runs.tables import read_table

Report = Callable[[RunProgress], None]
"""Called after each batch."""


def run_shards(
    folder: RunFolder,
    loaded: LoadedModel,
    source: Source,
    shards: Iterable[Shard],
    *,
    workers: int,
    retry_failed: bool = False,
    max_errors: int | None = None,
    progress: RunProgress | None = None,
    report: Report = lambda progress: None,
) -> RunProgress:
    """Compute what the shards lack.

    Args:
        folder: The run.
        loaded: Its model.
        source: Reads its samples.
        shards: Which shards.
        workers: How many processes decode.
        retry_failed: Whether to run the batches again in which samples have failed.
        max_errors: Stop when more samples have failed; None for no limit.
        progress: What was done before; it is continued.
        report: Called after each batch.

    Raises:
        RunError: When more samples than `max_errors` have failed. What was computed until then is kept.
    """
    progress = RunProgress() if progress is None else progress
    groups = folder.groups()
    with _computing_threads(folder.cut.threads), _part_writer() as write:
        for shard in shards:
            missing = [group for name, group in groups.items() if not is_complete(folder.storage, shard.number, name)]
            complete = [group for group in groups.values() if group not in missing]
            if missing:
                contents = _run(folder, loaded, source, shard, missing, workers, progress, report)
                if progress.failed == progress.done:
                    check_request(contents, shard)
                for content in contents:
                    write(folder, shard.number, content)
            again = _failed_batches(folder, shard, complete) if retry_failed else {}
            if again:
                retry(folder, loaded, source, shard, again, workers, progress, report)
            elif not missing:
                progress.skipped += shard.stop - shard.start
            if max_errors is not None and progress.failed > max_errors:
                raise RunError(
                    f"{progress.failed} samples have failed; allowed: {max_errors} (max_errors). The last one: "
                    f"{progress.last_error}. Next: query its errors; run the same command again to go on"
                )
    return progress


def _run(
    folder: RunFolder,
    loaded: LoadedModel,
    source: Source,
    shard: Shard,
    groups: Sequence[Group],
    workers: int,
    progress: RunProgress,
    report: Report,
    bounds: Sequence[tuple[int, int]] | None = None,
) -> list[PartContent]:
    def advance(count: int, failed: int, waited: float) -> None:
        progress.add(count, failed, waited)
        report(progress)

    contents = run_shard(
        loaded,
        folder.samples,
        source,
        shard,
        groups,
        seed=folder.spec.seed,
        max_size=folder.spec.max_size,
        workers=workers,
        bounds=bounds,
        digests=_digests(folder, shard),
        advance=advance,
    )
    for content in contents:
        if content.failures:
            last = content.failures[-1]
            progress.last_error = f"{last.error}: {last.message}"
    return contents


def check_request(contents: Sequence[PartContent], shard: Shard) -> None:
    """Raise RunError where no sample of a shard could be read, or none that could be read was explained.

    Then the data is not there, or the request is wrong, and every other sample would fail like these.
    """
    failures, count = contents[0].failures, shard.stop - shard.start
    if len(failures) < count:
        return
    explained = [each for each in failures if each.stage == "explain"]
    if explained:
        last = explained[-1]
        raise RunError(f"none of the first {count} samples could be explained: {last.error}: {last.message}")
    if failures and all(each.stage == "read" and each.error != SampleChanged.__name__ for each in failures):
        raise RunError(
            f"none of the first {count} samples could be read: {failures[-1].message}. Next: see whether the data is "
            "there"
        )


def _digests(folder: RunFolder, shard: Shard) -> dict[int, bytes]:
    """The digests of the samples when they were first read, by number; empty where they were not."""
    for name, group in folder.groups().items():
        if group.predictions and is_complete(folder.storage, shard.number, name):
            rows = read_table(folder.storage, f"{part_folder(shard.number, name)}/{PREDICTIONS}")
            return {row["row"]: row["digest"] for row in rows}
    return {}


def _failed_batches(folder: RunFolder, shard: Shard, groups: Sequence[Group]) -> dict[str, list[tuple[int, int]]]:
    """Name of a group -> the batches in which samples have failed."""
    found = {}
    for group in groups:
        part = read_part(folder.storage, shard.number, group.name)
        if part.counts.get("errors"):
            rows = {row["row"] for row in read_table(folder.storage, part.file(FAILURES))}
            found[group.name] = [
                (start, stop) for start, stop in shard.bounds if not rows.isdisjoint(range(start, stop))
            ]
    return found


def retry(
    folder: RunFolder,
    loaded: LoadedModel,
    source: Source,
    shard: Shard,
    batches: Mapping[str, Sequence[tuple[int, int]]],
    workers: int,
    progress: RunProgress,
    report: Report,
) -> None:
    """Run some batches of complete parts again, and replace the parts where fewer samples fail now."""
    groups = folder.groups()
    for name, bounds in batches.items():
        part = read_part(folder.storage, shard.number, name)
        failed = {row["row"] for row in read_table(folder.storage, part.file(FAILURES))}
        (again,) = _run(folder, loaded, source, shard, [groups[name]], workers, progress, report, bounds)
        content = merged(PartContent.read(folder.storage, part, groups[name], failed), again.only(failed))
        if len(content.failures) < part.counts["errors"]:
            replace_part(folder, part, content)


def merged(one: PartContent, other: PartContent) -> PartContent:
    """The content of both, of other samples each."""
    layers = {*one.activations, *other.activations}
    return PartContent(
        one.group,
        one.rows + other.rows,
        one.predicted + other.predicted,
        one.failures + other.failures,
        {**other.about, **one.about},
        {layer: {**one.activations.get(layer, {}), **other.activations.get(layer, {})} for layer in layers},
    )


def replace_part(folder: RunFolder, part: Part, content: PartContent) -> None:
    """Remove a part, and write it anew. Killed in between, it is computed again."""
    files, counts = content.files()
    remove_part(folder.storage, part.shard, part.group)
    write_part(folder.storage, part.shard, part.group, files, counts)


@contextmanager
def _computing_threads(count: int) -> Iterator[None]:
    """Let the model compute in so many threads, whatever the machine has: sums are rounded in another way otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _part_writer() -> Iterator[Callable[[RunFolder, int, PartContent], None]]:
    """Write parts in a thread of their own, while the model computes the next ones. One part waits at most."""
    running: list[Future[None]] = []

    def finish() -> None:
        while running:
            running[0].result()
            running.pop(0)

    def write(folder: RunFolder, shard: int, content: PartContent) -> None:
        finish()
        running.append(writer.submit(_write, folder, shard, content))

    with ThreadPoolExecutor(1, thread_name_prefix="torchpeek-parts") as writer:
        yield write
        finish()


def _write(folder: RunFolder, shard: int, content: PartContent) -> None:
    files, counts = content.files()
    write_part(folder.storage, shard, content.group.name, files, counts)
