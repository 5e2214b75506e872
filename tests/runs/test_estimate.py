"""The estimate of a run, and its cut into shards."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from run_data import colour_model, write_pictures
from torchpeek.errors import FormatError, RunError
from torchpeek.runs.api import measured_batches, run
from torchpeek.runs.estimate import estimate, size_words
from torchpeek.runs.progress import RunProgress, duration
from torchpeek.runs.samples import SampleList, write_samples
from torchpeek.runs.shards import Cut, Shard
from torchpeek.runs.sources import source_of
from torchpeek.runs.spec import Group, spec_of
from torchpeek.runs.storage import FolderStorage


def test_nothing_is_written_and_the_storage_is_right(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 150)
    before = sorted(tmp_path.rglob("*"))
    options = {"methods": ["gradcam", "layercam"], "keep": {"3": "pooled"}, "workers": 0, "batch": 8}
    found = estimate(colour_model(), tmp_path / "data", **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert found.samples == 150
    assert found.failed == 0
    assert 0 < found.seconds < 60
    run(colour_model(), tmp_path / "data", tmp_path / "out", **options)
    size = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert found.bytes == pytest.approx(size, rel=0.35)  # tables of few rows have relatively large heads
    assert "150 samples: predictions, gradcam, layercam, activations of 3" in found.lines()[0]


def test_no_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(RunError, match="no pictures in the folder"):
        estimate(colour_model(), tmp_path / "data", methods=["gradcam"])


def test_a_shard_takes_two_minutes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 30)
    source, ticks = source_of(tmp_path / "data", None), itertools.count(0, 5)  # five seconds a batch
    write_samples(tmp_path / "samples.parquet", source.samples())
    samples = SampleList(FolderStorage(tmp_path), "samples.parquet")
    loaded = colour_model()
    spec, group = spec_of(loaded, max_size=None, seed=0), Group({"gradcam": {}})
    found = measured_batches(loaded, samples, source, group, spec, 4, 0, clock=lambda: float(next(ticks)))
    assert found == (4, 24)


@pytest.mark.parametrize(
    ("samples", "batch", "batches", "first"), [(100, 4, 3, 0), (100, 4, 3, 10), (5, 8, 2, 5), (0, 1, 1, 0)]
)
def test_shards_are_every_sample_once(samples: int, batch: int, batches: int, first: int) -> None:
    cut = Cut(samples, batch, batches, first)
    shards = list(cut.shards())
    assert len(shards) == len(cut)
    assert [cut.shard(each.number) for each in shards] == shards
    assert [row for each in shards for start, stop in each.bounds for row in range(start, stop)] == list(range(samples))
    assert not first or any(each.stop == first for each in shards)
    assert all(stop - start <= batch for each in shards for start, stop in each.bounds)


def test_bounds() -> None:
    assert Shard(0, 3, 12, 4).bounds == [(3, 7), (7, 11), (11, 12)]


@pytest.mark.parametrize(
    "value", [None, {}, {"samples": 1}, {**vars(Cut(9, 4, 3)), "batch": 0}, {**vars(Cut(9, 4, 3)), "first": 10}]
)
def test_a_damaged_cut(value: object) -> None:
    with pytest.raises(FormatError, match="is damaged"):
        Cut.from_json(value, "run.json")


def test_words() -> None:
    assert [duration(each) for each in (3.4, 100, 3 * 3600 + 310, 200_000)] == ["3 s", "2 min", "3 h 5 min", "2 d 7 h"]
    assert [size_words(each) for each in (12, 1234, 5.6e9, 7e15)] == ["12 bytes", "1.2 kB", "5.6 GB", "7,000.0 TB"]


def test_progress() -> None:
    progress = RunProgress(100)
    assert progress.remaining is None
    progress.began -= 10
    progress.add(20, 3, 5.0)
    assert progress.rate == pytest.approx(2, rel=0.01)
    assert progress.remaining == pytest.approx(40, rel=0.01)
    assert progress.waiting_share == pytest.approx(0.5, rel=0.01)
    assert progress.line().startswith("20 of 100 samples, 2.0 a second, 40 s left, 3 failed, device waited 50%, ")
    text = progress.prometheus()
    assert "# TYPE torchpeek_run_samples_done_total counter\ntorchpeek_run_samples_done_total 20\n" in text
    assert text.endswith("\n")
