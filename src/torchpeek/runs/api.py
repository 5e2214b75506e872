"""The public entry points for data-set runs: run() and open_run()."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from torchpeek.errors import InputError
from torchpeek.explanation.plan import selected_methods
from torchpeek.hooks import Selection
from torchpeek.models import LoadedModel, Model
from torchpeek.runs.local import run_shards
from torchpeek.runs.run import Run
from torchpeek.runs.run_folder import RUN, Cut, RunFolder, created, opened
from torchpeek.runs.samples import SampleList
from torchpeek.runs.shard_run import Shard, run_shard
from torchpeek.runs.sources import Source, source_of
from torchpeek.runs.spec import Group, spec_of

_SECONDS = 120.0
"""How long a shard takes, about: little is lost if it is cut short, and it costs little to write it down."""


def run(
    model: Model,
    data: Any,
    out: str | PathLike[str],
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
    layer: Selection | None = None,
    target: Any = None,
    workers: int | None = None,
    batch: int | None = None,
    max_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Run:
    """Explain every picture of a data set, into a folder that is resumed where it stopped.

    Args:
        model: The model, with its preprocessing.
        data: A folder of pictures, with its sub-folders.
        out: The folder of the run. If a run is there, it goes on: what is done is not done again, and another method is
            added to it.
        methods: Names of methods, or a dict from a name to its options. Without any, pictures are only classified.
        layer: The layer, as in `explain`; None for the default layer.
        target: The target, as in `explain`; None for the predicted class.
        workers: How many processes read and decode pictures; None for as many as there are spare cores.
        batch: The number of pictures in a batch, of a new run.
        max_size: The largest side of a picture before the preprocessing, in pixels.
        seed: The seed of methods that draw random numbers.
        limit: Stop after so many samples. The run can go on later.

    Returns:
        The Run.

    Raises:
        InputError: When the model has no preprocessing, or `data` cannot be read.
        RunMismatch: When `out` is a run of another model or preprocessing.
    """
    if not isinstance(model, LoadedModel):
        raise InputError("model has no preprocessing; give a tp.LoadedModel(module, preprocess, class_names)")
    selected = {method.name: dict(options) for method, options in selected_methods(methods)} if methods else {}
    source = source_of(data, model.class_names)
    path, spec = Path(out), spec_of(model, max_size=max_size, seed=seed)
    workers = spare_cores() if workers is None else workers
    if (path / RUN).exists():
        folder = opened(path, spec)
    else:
        folder = _new(path, model, source, batch or 16, workers=workers, max_size=max_size, seed=seed)
    group = Group(selected, predictions=not folder.groups(), layers=_layer_texts(layer), target=target)
    if selected or group.predictions:
        folder.add(group)
    shards = [each for each in folder.cut.shards() if limit is None or each.start < limit]
    run_shards(folder, model, source, shards, workers)
    return Run(folder)


def spare_cores() -> int:
    """How many processes decode by default: the cores that are not busy with the model, one at least, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1))
