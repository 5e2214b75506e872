"""A run in the formats of other programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from run_data import colour_model, write_pictures
from torchpeek.errors import OptionError
from torchpeek.runs.api import run
from torchpeek.runs.export import exported
from torchpeek.runs.run import Run

COUNT = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    write_pictures(folder / "data", COUNT)
    return run(colour_model(), folder / "data", folder / "out", methods=["gradcam", "layercam"], batch=4, workers=0)


def test_parquet(finished: Run, tmp_path: Path) -> None:
    assert exported(finished, "parquet", tmp_path / "to") == 3 * COUNT
    table = pq.read_table(tmp_path / "to" / "heatmaps.parquet").to_pydict()
    rows = finished.sql("select key, method, score from heatmaps").fetchall()
    assert sorted(zip(table["key"], table["method"], table["score"], strict=True)) == sorted(rows)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "errors.parquet",
        "heatmaps.parquet",
        "samples.parquet",
    ]


def test_png(finished: Run, tmp_path: Path) -> None:
    assert exported(finished, "png", tmp_path / "to", limit=2) == 4
    files = sorted((tmp_path / "to").iterdir())
    assert len(files) == 4
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) >= 24
    assert "gradcam" in files[0].name


def test_zarr(finished: Run, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    assert exported(finished, "zarr", tmp_path / "to") == 2 * COUNT
    array = zarr.open_group(str(tmp_path / "to"), mode="r")["gradcam/4/8x8"]
    assert array.shape == (COUNT, 8, 8)
    for key, values in zip(array.attrs["keys"], array[:], strict=True):
        assert np.array_equal(values, finished.heatmap(key, "gradcam").values[0, 0].numpy())


def test_fiftyone(finished: Run, tmp_path: Path) -> None:
    assert exported(finished, "fiftyone", tmp_path / "to") == 2 * COUNT
    samples = json.loads((tmp_path / "to" / "samples.json").read_text())["samples"]
    assert len(samples) == COUNT
    for sample in samples:
        assert Path(sample["filepath"]).is_file()
        assert sample["ground_truth"]["label"] == Path(sample["filepath"]).parent.name
        assert 0 < sample["prediction"]["confidence"] <= 1
        maps = [each for each in sample.values() if isinstance(each, dict) and each["_cls"] == "Heatmap"]
        assert len(maps) == 2
        for each in maps:
            with Image.open(tmp_path / "to" / each["map_path"]) as picture:
                assert picture.mode == "L"


def test_refusals(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match="is there already, and not empty"):
        exported(finished, "png", tmp_path)
    with pytest.raises(OptionError, match=r"to is 'npz'; allowed: 'png', 'zarr', 'fiftyone', 'parquet'"):
        exported(finished, "npz", tmp_path / "to")  # type: ignore[arg-type]
    assert not (tmp_path / "to").exists()
