"""Data sets of Hugging Face, on disk and by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from images import noise
from torchpeek.errors import FormatError, InputError, PictureError, TorchpeekError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import source_of, stored_source

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = ["cat", "dog"]


def made(tmp_path: Path, names: list[str], count: int = 4) -> Any:
    files = []
    for number in range(count):
        noise((8 + number, 8)).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {
        "picture": [{"bytes": each, "path": None} for each in files],
        "label": [i % len(names) for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features), files


def test_a_saved_data_set_with_classes_matched_by_name(tmp_path: Path) -> None:
    rows, files = made(tmp_path, ["dog", "cat", "lynx"])
    rows.save_to_disk(str(tmp_path / "saved"))
    source = source_of(tmp_path / "saved", CLASSES)
    samples = list(source.samples())
    assert [(each.key, each.label, each.label_name) for each in samples] == [
        ("0", 1, "dog"),
        ("1", 0, "cat"),
        ("2", None, "lynx"),
        ("3", 1, "dog"),
    ]
    assert source.labels_from == (
        "the data set has the data set's classes, by their names "
        "(1 of 3 are no class of the model, or of several: 'lynx')"
    )
    for reader in (source, pickle.loads(pickle.dumps(source)), stored_source(source.description)):
        assert [reader.read(each) for each in samples] == files
        assert reader.read_mask(samples[0]) is None
    for location in ("4", "-1", "x", "other/0", "0/0"):
        with pytest.raises(PictureError, match="has no row"):
            source.read(Sample("k", location))


def test_splits_are_in_the_keys(tmp_path: Path) -> None:
    rows, files = made(tmp_path, CLASSES)
    both = datasets.DatasetDict({"train": rows.select([0, 1]), "validation": rows.select([2])})
    both.save_to_disk(str(tmp_path / "saved"))
    source = source_of(tmp_path / "saved", CLASSES)
    samples = list(source.samples())
    assert [(each.key, each.split) for each in samples] == [
        ("train/0", "train"),
        ("train/1", "train"),
        ("validation/0", "validation"),
    ]
    assert source.read(samples[2]) == files[2]
    one = source_of(f"hf:{tmp_path / 'saved'}:validation", CLASSES)
    (sample,) = one.samples()
    assert (sample.key, sample.split, stored_source(one.description).read(sample)) == ("0", "validation", files[2])
    with pytest.raises(FormatError, match="cannot be opened"):
        list(source_of(f"hf:{tmp_path / 'saved'}:none", CLASSES).samples())


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows, files = made(tmp_path, CLASSES)
    (tmp_path / "named").mkdir()
    rows.to_parquet(str(tmp_path / "named" / "train.parquet"))
    source = source_of(f"hf:{tmp_path / 'named'}:train", CLASSES)
    samples = list(source.samples())
    assert [(each.label, source.read(each)) for each in samples] == [(i % 2, file) for i, file in enumerate(files)]


def test_other_classes_of_the_same_number_are_the_model_s_by_number_and_this_is_said(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, ["Katze", "Hund"])
    rows.save_to_disk(str(tmp_path / "saved"))
    source = source_of(tmp_path / "saved", CLASSES)
    assert [(each.label, each.label_name) for each in source.samples()][:2] == [(0, "Katze"), (1, "Hund")]
    assert "whose names are no classes of the model" in source.labels_from


def test_other_classes_of_another_number_are_no_labels(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, ["Katze", "Hund", "Luchs"])
    rows.save_to_disk(str(tmp_path / "saved"))
    source = source_of(tmp_path / "saved", CLASSES)
    assert {each.label for each in source.samples()} == {None}
    assert source.labels_from == "the data set has the data set's 3 classes, of which none is a class of the model"


def test_a_version_that_runs_code_of_data_sets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = made(tmp_path, CLASSES)
    rows.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(TorchpeekError, match="datasets>=4"):
        list(source_of(tmp_path / "saved", CLASSES).samples())


def test_no_column_of_pictures_is_said(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="no column of pictures, but 'text'"):
        list(source_of(tmp_path / "saved", None).samples())


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """`save_to_disk` puts the bytes of files into the data set; somebody else's data set may name files instead."""
    noise((8, 8)).save(tmp_path / "secret.png")
    noise((8, 8)).save(tmp_path / "inside.png")
    paths = [str(tmp_path / "secret.png"), "../secret.png", "inside.png"]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = [{"bytes": None, "path": each} for each in paths]
    made = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": struct}))
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "inside.png").rename(tmp_path / "saved" / "inside.png")
    about = tmp_path / "saved" / "dataset_info.json"
    content = json.loads(about.read_text())
    content["features"] = {"image": {"_type": "Image"}}
    about.write_text(json.dumps(content))
    source = stored_source({"kind": "hugging face", "name": str(tmp_path / "saved"), "split": None, "on_disk": True})
    for number in range(2):
        with pytest.raises(PictureError, match="no path inside of"):
            source.read(Sample(str(number), f"/{number}"))
    assert source.read(Sample("2", "/2")) == (tmp_path / "saved" / "inside.png").read_bytes()
