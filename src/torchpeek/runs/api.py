"""The public entry points for data-set runs: run() and open_run()."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from torchpeek.errors import InputError, OptionError, RunError, shown, type_shown
from torchpeek.models import LoadedModel, Model
from torchpeek.runs.local import Report, check_request, run_shards
from torchpeek.runs.progress import RunProgress
from torchpeek.runs.request import asked_group
from torchpeek.runs.run import Run
from torchpeek.runs.run_folder import SAMPLES, RunFolder, created, freeze_samples, is_run, opened, storage_of
from torchpeek.runs.samples import SampleList, write_sampled_first, write_samples
from torchpeek.runs.shard_run import run_shard
from torchpeek.runs.shards import Cut, Shard
from torchpeek.runs.sources import Source, source_of, stored_source
from torchpeek.runs.spec import Group, RunSpec, spec_of
from torchpeek.runs.storage import FolderStorage, Storage

_SECONDS = 120.0
"""How long a shard takes, about: little is lost if it is cut short, and it costs little to write it down."""

_MEASURED = 3
"""How many batches the first process of a run computes to find out how long one takes."""

_UNFINISHED_FOR = 24 * 3600.0
"""After so many seconds, a part that was written aside belongs to a process that was killed."""


def run(
    model: Model,
    data: Any,
    out: str | PathLike[str],
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
    layer: str | Sequence[str] | None = None,
    target: Any = None,
    fuse: str | None = None,
    smooth: bool = False,
    metrics: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
    keep: Mapping[str, str] | Iterable[str] = (),
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    shard: tuple[int, int] | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    max_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    sample: int | None = None,
    sample_seed: int = 0,
    retry_failed: bool = False,
    max_errors: int | None = None,
    report: Report = lambda progress: None,
) -> Run:
    """Explain every picture of a data set, into a folder that goes on where it stopped.

    Args:
        model: A LoadedModel: the network with its preprocessing.
        data: A folder, a table (CSV, JSON lines, parquet), tar files, a data set of Hugging Face, a torch Dataset, or a
            URL of these. None for the data of the run in `out`.
        out: The folder or URL of the run. If a run is there, it goes on: what is done is not done again, and another
            method, layer or metric is added to it.
        methods: Names of methods, or a dict from a name to its options. Without any, pictures are only classified.
        layer: The name of a layer, a pattern, or a list; None for the default layer.
        target: A class index or name, a list of these for several maps of each picture, or "label" for the label of
            each picture. None for the predicted class.
        fuse: How the maps of several layers become one, as in `explain`.
        smooth: Whether maps are averaged over changed versions of the input, as in `explain`.
        metrics: Names of metrics, or a dict from a name to its options: each map is scored.
        keep: Name of a layer -> what is kept of its activations: "whole", "pooled" (the mean over all positions) or
            "token <index>". A list of names keeps them pooled.
        labels: Key of a sample -> class index or name, or the path of a table with the columns path and label.
        boxes: Key of a sample -> list of boxes (left, top, right, bottom) in pixels of the picture, or the path of a
            JSON file with them.
        masks: A folder with a mask for each picture, of the same name: white is where the object is.
        executor: "local": this process. "ray": the machines of a Ray cluster.
        address: The address of the Ray cluster; None starts Ray on this machine.
        workers: How many processes read and decode pictures, and with Ray how many actors compute. None: as many as
            there are spare cores.
        batch: The number of pictures in a batch of a new run. None: 16 on the CPU, else 64; fewer where they do not fit
            into memory.
        shard: (i, n): compute only every n-th shard, from number i on.
        dtype: In which maps and activations are stored.
        max_size: The largest side of a picture before the preprocessing, in pixels.
        seed: The seed of methods that draw random numbers.
        limit: Compute the first so many samples only; another call goes on.
        sample: Compute a random sample of this size first, and only that; another call goes on.
        sample_seed: The seed of the random sample.
        retry_failed: Whether to try samples again that failed before.
        max_errors: Stop when more samples have failed.
        report: Called after each batch with a RunProgress.

    Returns:
        The Run.

    Raises:
        InputError: When the model has no preprocessing, or `data` cannot be read.
        RunMismatch: When `out` is a run of another model or preprocessing.
        RunError: When more than `max_errors` samples fail, or a batch does not fit into memory.

    Example:
        >>> run = tp.run(loaded, folder / "val", folder / "epoch-13", methods=["gradcam", "layercam"])
        >>> run.sql("select count(*) from heatmaps").fetchall()
        [(6,)]
    """
    if limit is not None and sample is not None:
        raise OptionError("limit and sample both say which samples come first; give one of them")
    if executor not in ("local", "ray"):
        raise OptionError(f"executor is {shown(executor)}; allowed: 'local', 'ray'")
    prepared = prepare(
        model,
        data,
        out,
        methods=methods,
        layer=layer,
        target=target,
        fuse=fuse,
        smooth=smooth,
        metrics=metrics,
        keep=keep,
        labels=labels,
        boxes=boxes,
        masks=masks,
        workers=workers,
        batch=batch,
        dtype=dtype,
        max_size=max_size,
        seed=seed,
        first=sample if sample is not None else limit,
        sample_seed=None if sample is None else sample_seed,
    )
    folder, loaded, source, decoders = prepared
    folder.storage.remove_unfinished(_UNFINISHED_FOR)
    shards = selected_shards(folder.cut, shard=shard, limit=limit, sample=sample)
    progress = RunProgress(sum(each.stop - each.start for each in shards))
    if executor == "ray":
        from torchpeek.runs.ray_executor import run_on_ray

        run_on_ray(
            folder,
            loaded,
            source,
            shards,
            address=address,
            actors=workers,
            retry_failed=retry_failed,
            max_errors=max_errors,
            progress=progress,
            report=report,
        )
    else:
        run_shards(
            folder,
            loaded,
            source,
            shards,
            workers=decoders,
            retry_failed=retry_failed,
            max_errors=max_errors,
            progress=progress,
            report=report,
        )
    return Run(folder)


def prepare(
    model: Model,
    data: Any,
    out: str | PathLike[str],
    *,
    methods: Any = (),
    layer: Any = None,
    target: Any = None,
    fuse: str | None = None,
    smooth: bool = False,
    metrics: Any = (),
    keep: Any = (),
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    workers: int | None = None,
    batch: int | None = None,
    dtype: str = "float16",
    max_size: int | None = None,
    seed: int = 0,
    first: int | None = None,
    sample_seed: int | None = None,
) -> tuple[RunFolder, LoadedModel, Source, int]:
    """Check everything, make the run or open it, and write down what is asked for. Nothing is computed but a measure.

    Returns:
        The run, its model, its source, and how many processes decode.
    """
    if not isinstance(model, LoadedModel):
        raise InputError(
            f"model is {type_shown(model)}, which has no preprocessing; give tp.LoadedModel(module, preprocess, names)"
        )
    for name, number in (("workers", workers), ("batch", batch), ("first", first)):
        if number is not None and (type(number) is not int or number < (name != "workers")):
            raise OptionError(f"{name} is {number!r}; allowed: a positive number")
    group = asked_group(model, methods, layer, target, fuse, smooth, metrics, keep, dtype)
    storage, spec = storage_of(out), spec_of(model, max_size=max_size, seed=seed)
    decoders = spare_cores() if workers is None else workers
    if is_run(storage):
        folder = opened(storage, spec)
        drawn = min(first or 0, folder.cut.samples), sample_seed
        if sample_seed is not None and (folder.cut.first, folder.cut.sample_seed) != drawn:
            raise RunError(
                f"{storage.place}: its list of samples is frozen, and does not begin with a random sample of {first} "
                f"with seed {sample_seed}. Next: another folder, or leave out the random sample"
            )
        source = stored_source(folder.source)
        if data is not None and not (isinstance(data, (str, PathLike)) and str(data) == storage.place):
            given = source_of(data, model.class_names, masks=folder.source.get("masks") if masks is None else masks)
            # What is given reads also where nothing is imported to open the run: a Dataset of the user.
            source = given if given.description == source.description else _same_samples(given, source, folder)
    else:
        if data is None:
            raise RunError(f"{storage.place}: no run, and no data to make one of; give data")
        source = source_of(data, model.class_names, labels=labels, boxes=boxes, masks=masks)
        folder = _new(storage, model, spec, source, group, batch, decoders, first, sample_seed)
    groups = folder.groups()
    group = replace(group.without(groups.values()), predictions=not any(each.predictions for each in groups.values()))
    if group.methods or group.keep or group.predictions:
        if groups:
            _try(folder, model, source, group)
        folder.add(group)
    return folder, model, source, decoders


def _try(folder: RunFolder, loaded: LoadedModel, source: Source, group: Group) -> None:
    """Compute the first batch, before it is written down that the run has the group: it would fail for ever."""
    shard = folder.cut.shard(0)
    shard = Shard(0, shard.start, min(shard.stop, shard.start + shard.batch), shard.batch)
    contents = run_shard(
        loaded, folder.samples, source, shard, [group], seed=folder.spec.seed, max_size=folder.spec.max_size
    )
    check_request(contents, shard)


def _same_samples(given: Source, stored: Source, folder: RunFolder) -> Source:
    """The data in another place, such as another mount point; the digests of the samples say whether they differ."""
    if given.description.get("kind") != stored.description.get("kind"):
        raise RunError(
            f"{folder.storage.place}: its samples come from {stored.description}, and data is {given.description}. "
            "Next: another folder for another data set"
        )
    return given


def _new(
    storage: Storage,
    loaded: LoadedModel,
    spec: RunSpec,
    source: Source,
    group: Group,
    batch: int | None,
    workers: int,
    first: int | None,
    sample_seed: int | None,
) -> RunFolder:
    def write(file: Path) -> None:
        if sample_seed is None:
            write_samples(file, source.samples())
        else:
            write_sampled_first(file, source.samples(), first or 0, sample_seed)

    with TemporaryDirectory(prefix="torchpeek-") as name:
        file = Path(name) / SAMPLES
        write(file)
        samples = SampleList(FolderStorage(Path(name)), SAMPLES)
        if not len(samples):
            raise RunError(f"no pictures in {source.words}")
        batch, batches = measured_batches(loaded, samples, source, group, spec, batch, workers)
        own = min(first or 0, len(samples))
        cut = Cut(len(samples), batch, batches, own, sample_seed, torch.get_num_threads())
        # Last, so that what fails before leaves nothing.
        freeze_samples(storage, file)
        with file.open("rb") as opened_file:
            digest = hashlib.file_digest(opened_file, "sha256").hexdigest()
    names = loaded.class_names or ()
    return created(storage, spec, source.description, cut, names, source.labels_from, digest)


def measured_batches(
    loaded: LoadedModel,
    samples: SampleList,
    source: Source,
    group: Group,
    spec: RunSpec,
    batch: int | None,
    workers: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, int]:
    """How many samples a batch has, and how many batches a shard of about two minutes has, by a measure.

    Where a batch does not fit into memory, it is halved, unless the user has named its size.
    """
    size = max(1, min(batch or default_batch(loaded), len(samples)))
    whole = len(samples) <= _MEASURED * size  # all of it is one shard, of which one batch is tried
    while True:
        shard = Shard(0, 0, min(len(samples), size if whole else _MEASURED * size), size)
        group = replace(group, predictions=True)
        times: list[float] = []

        def note(count: int, failed: int, waited: float, times: list[float] = times) -> None:
            times.append(clock())

        try:
            contents = run_shard(
                loaded,
                samples,
                source,
                shard,
                [group],
                seed=spec.seed,
                max_size=spec.max_size,
                workers=min(workers, 1),
                advance=note,
            )
        except RunError:
            if batch is not None or size == 1:
                raise
            size = max(1, size // 2)
            continue
        check_request(contents, shard)
        if whole:
            return size, -(-len(samples) // size)
        # The first batch takes longer: it imports, and looks at the model.
        steps = [after - before for before, after in pairwise(times)]
        seconds = max(min(steps), 1e-3) if steps else 1.0
        return size, max(1, round(_SECONDS / seconds))


def default_batch(loaded: LoadedModel) -> int:
    """How many samples a batch has where the user does not say."""
    return 16 if loaded.device.type == "cpu" else 64


def selected_shards(cut: Cut, *, shard: tuple[int, int] | None, limit: int | None, sample: int | None) -> list[Shard]:
    """The shards that a call computes."""
    stop = limit if sample is None else sample
    shards = [each for each in cut.shards() if stop is None or each.start < stop]
    if shard is None:
        return shards
    index, count = shard
    if not 0 <= index < count:
        raise OptionError(f"shard is {index}/{count}; allowed: 0/{count} to {count - 1}/{count}")
    return [each for each in shards if each.number % count == index]


def spare_cores() -> int:
    """How many processes decode by default: the cores that are not busy with the model, one at least, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1))
