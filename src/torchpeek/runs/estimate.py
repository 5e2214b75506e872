"""Estimate: how long a run takes and how much it stores, from a measured shard and before anything is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torchpeek.errors import InputError, RunError, type_shown
from torchpeek.models import LoadedModel, Model
from torchpeek.runs.api import default_batch, spare_cores
from torchpeek.runs.progress import duration
from torchpeek.runs.request import asked_group
from torchpeek.runs.samples import Sample, SampleList, write_samples
from torchpeek.runs.shard_run import run_shard
from torchpeek.runs.shards import Shard
from torchpeek.runs.sources import source_of
from torchpeek.runs.storage import FolderStorage

_SAMPLES = 64
"""Samples that are measured, at most, after a first batch that is not."""


@dataclass(frozen=True)
class Estimate:
    """How long a run takes, and how much it stores.

    Args:
        samples: How many samples there are.
        measured: How many of them were computed to find out.
        failed: How many of these failed.
        seconds_each: Seconds a sample, with this number of decoding workers.
        bytes_each: Bytes a sample: tables, maps and activations.
        list_bytes: Bytes of the list of samples.
        groups: What is computed, in words.
    """

    samples: int
    measured: int
    failed: int
    seconds_each: float
    bytes_each: float
    list_bytes: int
    groups: str

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.samples * self.seconds_each

    @property
    def bytes(self) -> int:
        """Bytes of the whole run."""
        return self.list_bytes + round(self.samples * self.bytes_each)

    def lines(self) -> list[str]:
        """The estimate in words."""
        return [
            f"{self.samples:,} samples: {self.groups}",
            f"about {duration(self.seconds)} on this machine ({1 / max(self.seconds_each, 1e-9):.1f} samples a second)",
            f"about {size_words(self.bytes)} of storage ({self.bytes_each:,.0f} bytes a sample)",
            f"measured on {self.measured} samples, of which {self.failed} failed",
        ]


def size_words(count: float) -> str:
    """A number of bytes in words, such as "2.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def estimate(model: Model, data: Any, **options: Any) -> Estimate:
    """Measure some samples, and say what a run with the same arguments would take. Nothing is written but temporaries.

    Args:
        model: As in `run`.
        data: As in `run`.
        **options: methods, layer, target, fuse, smooth, metrics, keep, labels, boxes, masks, workers, batch, dtype,
            max_size and seed, as in `run`.

    Raises:
        InputError: When the model has no preprocessing, or `data` cannot be read.
        RunError: When there are no samples.
    """
    if not isinstance(model, LoadedModel):
        raise InputError(f"model is {type_shown(model)}, which has no preprocessing; give a tp.LoadedModel")
    known = {name: options.get(name) for name in ("layer", "target", "fuse")}
    group = asked_group(
        model,
        options.get("methods", ()),
        known["layer"],
        known["target"],
        known["fuse"],
        bool(options.get("smooth", False)),
        options.get("metrics", ()),
        options.get("keep", ()),
        options.get("dtype", "float16"),
        predictions=True,
    )
    annotations = {name: options.get(name) for name in ("labels", "boxes", "masks")}
    source = source_of(data, model.class_names, **annotations)
    workers = spare_cores() if options.get("workers") is None else int(options["workers"])
    with TemporaryDirectory(prefix="torchpeek-") as folder:
        file = Path(folder) / "samples.parquet"
        count = write_samples(file, source.samples())
        if not count:
            raise RunError(f"no pictures in {source.words}")
        list_bytes = file.stat().st_size
        batch = max(1, min(options.get("batch") or default_batch(model), count))
        stop = min(count, batch * -(-_SAMPLES // batch) + batch)
        spread = _spread(SampleList(FolderStorage(Path(folder)), file.name), stop)
        measured = Path(folder) / "measured.parquet"
        write_samples(measured, spread)
        times: list[float] = []
        failed: list[int] = []

        def note(number: int, failures: int, waited: float) -> None:
            times.append(time.perf_counter())
            failed.append(failures)

        (content,) = run_shard(
            model,
            SampleList(FolderStorage(Path(folder)), measured.name),
            source,
            Shard(0, 0, stop, batch),
            [group],
            seed=options.get("seed", 0),
            max_size=options.get("max_size"),
            workers=workers,
            advance=note,
        )
    files, _ = content.files()
    # The first batch takes longer: it imports, and looks at the model.
    seconds = (times[-1] - times[0]) / (stop - batch) if len(times) > 1 else 1.0
    bytes_each = sum(map(len, files.values())) / stop
    return Estimate(count, stop, sum(failed), seconds, bytes_each, list_bytes, group.words)


def _spread(samples: SampleList, count: int) -> list[Sample]:
    """Samples from the whole list, at equal distances: folders may differ in the size of their pictures."""
    step = max(1, len(samples) // count)
    return list(islice((samples.rows(row, row + 1)[0] for row in range(0, len(samples), step)), count))
