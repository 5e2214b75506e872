"""The Ray executor: Ray Data hands the shards to actors, one for each device, and runs those of lost workers again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from torchpeek.errors import RunError, TorchpeekError
from torchpeek.models import LoadedModel
from torchpeek.runs.local import Report, run_shards
from torchpeek.runs.progress import RunProgress
from torchpeek.runs.run_folder import RunFolder, opened, storage_of
from torchpeek.runs.shards import Shard
from torchpeek.runs.sources.source import Source

_ROUNDS = 3
"""How often shards that are missing after a pass of Ray are handed out again."""


def run_on_ray(
    folder: RunFolder,
    loaded: LoadedModel,
    source: Source,
    shards: Sequence[Shard],
    *,
    address: str | None = None,
    actors: int | None = None,
    retry_failed: bool = False,
    max_errors: int | None = None,
    progress: RunProgress | None = None,
    report: Report = lambda progress: None,
) -> RunProgress:
    """Compute what the shards lack, on a Ray cluster. Every worker has to see the folder of the run, and the data.

    Args:
        folder: The run.
        loaded: Its model, which is sent to the workers.
        source: Reads its samples.
        shards: Which shards.
        address: The address of the cluster; None to start Ray on this machine, or take the one that runs.
        actors: How many workers; None for one a GPU, or one for two cores where there is no GPU.
        retry_failed: Whether to run the batches again in which samples have failed.
        max_errors: Stop when more samples have failed; None for no limit.
        progress: What was done before; it is continued.
        report: Called after each shard.

    Raises:
        TorchpeekError: When Ray is not installed.
        RunError: When more samples than `max_errors` have failed, or shards are missing though they were handed out
            several times.
    """
    ray = _ray()
    progress = RunProgress() if progress is None else progress
    own = not ray.is_initialized()
    if own:
        ray.init(address=address, log_to_driver=False, logging_level="warning", include_dashboard=False)
    try:
        for attempt in range(_ROUNDS):
            groups = folder.groups()
            missing = [
                shard
                for shard in shards
                if (retry_failed and not attempt) or not all(folder.has_part(shard.number, name) for name in groups)
            ]
            if not attempt:
                progress.skipped += sum(each.stop - each.start for each in shards if each not in missing)
            if not missing:
                return progress
            _run_once(
                ray, folder, loaded, source, missing, actors, retry_failed and not attempt, max_errors, progress, report
            )
        left = [shard.number for shard in shards if not all(folder.has_part(shard.number, name) for name in groups)]
        if left:
            raise RunError(
                f"{len(left)} shards are missing after {_ROUNDS} rounds, such as number {left[0]}: their workers were "
                "lost. Next: look at the logs of Ray, and run the same command again"
            )
        return progress
    finally:
        if own:
            ray.shutdown()


def _run_once(
    ray: Any,
    folder: RunFolder,
    loaded: LoadedModel,
    source: Source,
    shards: Sequence[Shard],
    actors: int | None,
    retry_failed: bool,
    max_errors: int | None,
    progress: RunProgress,
    report: Report,
) -> None:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cores = int(ray.cluster_resources().get("CPU", 1))
    count = max(1, min(actors or gpus or max(1, cores // 2), len(shards)))
    rows = [{"shard": shard.number} for shard in shards]
    model = ray.put(loaded)  # it stays in the store while this function runs, also for actors that start again
    handed_out = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWorker,
        fn_constructor_args=(folder.storage.place, model, source, retry_failed),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=count),  # which starts lost actors again, and their tasks
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for row in handed_out.iter_rows():
        progress.skipped += int(row["skipped"])
        progress.add(int(row["done"]), int(row["failed"]), float(row["waited"]) / count)
        progress.last_error = str(row["last_error"]) or progress.last_error
        report(progress)
        if max_errors is not None and progress.failed > max_errors:
            raise RunError(
                f"{progress.failed} samples have failed; allowed: {max_errors} (max_errors). The last one: "
                f"{progress.last_error}"
            )


class ShardWorker:
    """An actor of Ray: it has the model on its device, and computes a shard at a time.

    Args:
        place: The folder or URL of the run.
        loaded: The model.
        source: Reads the samples.
        retry_failed: Whether to run the batches again in which samples have failed.
    """

    def __init__(self, place: str, loaded: Any, source: Source, retry_failed: bool) -> None:
        import ray

        self._loaded: LoadedModel = ray.get(loaded) if isinstance(loaded, ray.ObjectRef) else loaded
        if torch.cuda.is_available():
            self._loaded.module.to("cuda")
        self._folder = opened(storage_of(place))
        self._source, self._retry_failed = source, retry_failed

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Compute shards. Returns how many samples were done and failed, and how long the device waited."""
        shards = [self._folder.cut.shard(int(number)) for number in batch["shard"]]
        progress = run_shards(
            self._folder, self._loaded, self._source, shards, workers=0, retry_failed=self._retry_failed
        )
        return {
            "done": [progress.done],
            "skipped": [progress.skipped],  # written by a worker that was lost before it could say so
            "failed": [progress.failed],
            "waited": [progress.waited],
            "last_error": [progress.last_error],
        }


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise TorchpeekError("Ray is not installed; next: pip install 'torchpeek[ray]'") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray
