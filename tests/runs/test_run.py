"""A run: what it computes, what is read from it, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from run_data import NAMES, colour_model, part_digests, write_pictures
from torchpeek.errors import FormatError, InputError, OptionError, RunError, RunMismatch
from torchpeek.runs.api import run
from torchpeek.runs.run import Run, open_run
from torchpeek.store import read_mask

COUNT = 23


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory) -> Run:
    return run(
        colour_model(),
        data,
        tmp_path_factory.mktemp("run") / "out",
        methods=["gradcam", "layercam"],
        batch=4,
        workers=0,
    )


def test_every_map_is_that_of_explain(data: Path, finished: Run) -> None:
    loaded = colour_model()
    for key in sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png")):
        picture = loaded.read(data / key)
        for method in ("gradcam", "layercam"):
            one, other = finished.heatmap(key, method), tp.explain(loaded, picture, method=method)
            # Stored in float16, of which each map uses the whole range.
            assert torch.allclose(one.values, other.values, rtol=2e-3, atol=2e-3 * float(other.values.abs().max()))
            assert torch.allclose(one.scores, other.scores, atol=1e-5)
            assert one.label() == other.label()
            names = {one.label(): NAMES[one.label()]}
            assert one.provenance == replace(other.provenance, class_names=names, inputs=())
            assert np.array_equal(np.asarray(one.pictures[0].image), np.asarray(picture.image))


def test_the_tables(data: Path, finished: Run) -> None:
    loaded = colour_model()
    rows = finished.sql("select * from samples order by key").fetchall()
    columns = finished.samples.columns
    assert columns[:9] == [
        "key", "path", "digest", "label", "label_name", "split", "width", "height", "prediction",
    ]  # fmt: skip
    assert {"predicted_name", "probability", "correct"} <= set(columns)
    assert len(rows) == COUNT
    for values in rows:
        row = dict(zip(columns, values, strict=True))
        picture = loaded.read(data / row["key"])
        with torch.no_grad():
            probabilities = loaded.module(picture.tensor).softmax(1)[0]
        assert row["label_name"] == row["key"].split("/")[0]
        assert NAMES[row["label"]] == row["label_name"]
        assert row["prediction"] == int(probabilities.argmax())
        assert row["predicted_name"] == NAMES[row["prediction"]]
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert row["correct"] == (row["label"] == row["prediction"])
        assert (row["width"], row["height"]) == picture.image.size
    maps = finished.sql("select key, method, class, count(*) from heatmaps group by all").fetchall()
    assert len(maps) == 2 * COUNT
    assert {row[3] for row in maps} == {1}
    assert finished.errors.fetchall() == []
    joined = finished.sql("select count(*) from samples natural join heatmaps where class = predicted_name").fetchall()
    assert joined == [(2 * COUNT,)]  # the views share the column key alone


def test_without_the_data(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished._folder.storage.place, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    content["source"]["path"] = str(tmp_path / "gone")
    (tmp_path / "out" / "run.json").write_text(json.dumps(content))
    moved = open_run(tmp_path / "out")
    assert moved.heatmap("red/00000.png", "gradcam").pictures == ()
    with pytest.raises(tp.errors.TorchpeekError, match="no such file"):
        moved.picture("red/00000.png")
    assert repr(moved) == f"Run({str(tmp_path / 'out')!r}, {COUNT} samples: gradcam, layercam)"


def test_other_forms_of_tables(finished: Run) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    query = "select key, probability from samples order by key"
    assert isinstance(finished.sql(query).df(), pandas.DataFrame)
    assert isinstance(finished.sql(query).pl(), polars.DataFrame)
    assert len(finished.sql(query).df()) == COUNT


def test_the_picture_of_a_sample(data: Path, finished: Run) -> None:
    key = "red/00000.png"
    picture = finished.picture(key)
    of_model = colour_model().read(data / key)
    assert np.array_equal(np.asarray(picture.image), np.asarray(of_model.image))
    assert picture.geometry.size == of_model.geometry.size
    assert picture.geometry.box == pytest.approx(of_model.geometry.box, abs=1e-3)
    drawn = finished.heatmap(key, "gradcam").overlay(picture, colorbar=False)
    assert drawn.size[0] * picture.image.size[1] == drawn.size[1] * picture.image.size[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_bit_equal_on_any_number_of_workers(data: Path, finished: Run, tmp_path: Path, workers: int) -> None:
    run(colour_model(), data, tmp_path / "out", methods=["gradcam", "layercam"], batch=4, workers=workers)
    first = Path(finished._folder.storage.place)
    assert _by_key(tmp_path / "out") == _by_key(first)


def _by_key(place: Path) -> list[tuple[object, ...]]:
    """Everything that a run has of its samples, as numbers and bytes, by key."""
    found = open_run(place)
    rows = found.sql(
        "select * exclude (metrics, group_name) from heatmaps order by key, method, layer, target"
    ).fetchall()
    maps = [found.heatmap(row[0], row[1]).values.numpy().tobytes() for row in rows]
    samples = found.sql("select * from samples order by key").fetchall()
    return [*map(repr, zip(rows, maps, strict=True)), *map(repr, samples)]


def test_additive(data: Path, tmp_path: Path) -> None:
    """Another method is computed alone, over the same samples, and is what it is in a run of all methods."""
    together = run(colour_model(), data, tmp_path / "a", methods=["gradcam", "eigencam"], batch=4, workers=0)
    run(colour_model(), data, tmp_path / "b", methods=["gradcam"], batch=4, workers=0)
    before = part_digests(tmp_path / "b")
    later = run(colour_model(), None, tmp_path / "b", methods=["eigencam"], workers=0)
    after = part_digests(tmp_path / "b")
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    assert _by_key(tmp_path / "a") == _by_key(tmp_path / "b")
    assert (
        together.sql("select count(*) from heatmaps").fetchall()
        == later.sql("select count(*) from heatmaps").fetchall()
    )
    run(colour_model(), None, tmp_path / "b", methods=["eigencam"], workers=0)  # nothing is left to do
    assert part_digests(tmp_path / "b") == after


def test_another_model_or_preprocessing_is_refused(data: Path, tmp_path: Path) -> None:
    loaded = colour_model()
    run(loaded, data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
    with torch.no_grad():
        loaded.module[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(RunMismatch, match=r"weights digest was .* and is "):
        run(loaded, data, tmp_path / "out", methods=["gradcam"], workers=0)
    other_network = colour_model()
    other_network.module[1] = torch.nn.Tanh()  # the same parameters
    with pytest.raises(RunMismatch, match="the model makes another output of the same picture"):
        run(other_network, None, tmp_path / "out", methods=["layercam"], workers=0)
    other = tp.LoadedModel(
        colour_model().module, tp.Preprocess(resize=40, crop=(32, 32)), list(NAMES), "tests:colour_model"
    )
    with pytest.raises(RunMismatch, match=r"preprocess was .* and is "):
        run(other, data, tmp_path / "out", methods=["gradcam"], workers=0)
    for brightness in (1.0, 1.5):  # a function has no words that tell it from another

        def preprocess(image: Image.Image, factor: float = brightness) -> torch.Tensor:
            return torch.from_numpy(np.asarray(image.resize((32, 32))).copy()).permute(2, 0, 1).float() / 255 * factor

        by_function = tp.LoadedModel(colour_model().module, preprocess, list(NAMES), "tests:colour_model")
        if brightness == 1.0:
            run(by_function, data, tmp_path / "function", methods=["gradcam"], batch=4, workers=0)
        else:
            with pytest.raises(RunMismatch, match="makes another tensor of the same picture"):
                run(by_function, data, tmp_path / "function", methods=["gradcam"], workers=0)


def test_a_preprocessing_that_draws_is_refused(data: Path, tmp_path: Path) -> None:
    loaded = tp.LoadedModel(colour_model().module, lambda image: torch.rand(3, 32, 32), list(NAMES))
    with pytest.raises(InputError, match="another tensor of the same picture each time"):
        run(loaded, data, tmp_path / "out", methods=["gradcam"], workers=0)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_changes_between_two_passes(data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "data"
    shutil.copytree(data, pictures)
    run(colour_model(), pictures, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
    key = "green/00001.png"
    Image.new("RGB", (40, 40), "yellow").save(pictures / key)
    later = run(colour_model(), None, tmp_path / "out", methods=["layercam"], workers=0)
    assert later.errors.fetchall() == [
        (key, key, "read", "SampleChanged", "has changed since it was first read in this run")
    ]
    assert later.sql("select method, count(*) from heatmaps group by all order by 1").fetchall() == [
        ("gradcam", COUNT),
        ("layercam", COUNT - 1),
    ]
    with pytest.raises(tp.errors.SampleChanged, match=f"{key}: the picture has changed"):
        later.picture(key)
    with pytest.warns(tp.errors.Notice, match="the picture has changed .* the heatmap has no picture"):
        assert later.heatmap(key, "gradcam").pictures == ()


def test_failed_samples_and_a_retry(data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "data"
    shutil.copytree(data, pictures)
    key = "green/00001.png"
    whole = (pictures / key).read_bytes()
    (pictures / key).write_bytes(whole[:100])
    first = run(colour_model(), pictures, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
    ((found, _, stage, error, message),) = first.errors.fetchall()
    assert (found, stage, error) == (key, "decode", "PictureError")
    with pytest.raises(RunError, match=r"it failed at the stage 'decode': PictureError"):
        first.heatmap(key, "gradcam")
    assert message
    again = run(colour_model(), None, tmp_path / "out", methods=["gradcam"], workers=0)
    assert len(again.errors.fetchall()) == 1
    (pictures / key).write_bytes(whole)
    retried = run(colour_model(), None, tmp_path / "out", methods=["gradcam"], workers=0, retry_failed=True)
    assert retried.errors.fetchall() == []
    run(colour_model(), data, tmp_path / "undisturbed", methods=["gradcam"], batch=4, workers=0)
    assert part_digests(tmp_path / "out") == part_digests(tmp_path / "undisturbed")


def test_max_errors(data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "data"
    shutil.copytree(data, pictures)
    for key in ("green/00001.png", "blue/00002.png"):
        (pictures / key).write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"2 samples have failed; allowed: 1 \(max_errors\)\. The last one: Pic"):
        run(colour_model(), pictures, tmp_path / "out", methods=["gradcam"], batch=4, workers=0, max_errors=1)


class TestSampleFirst:
    def test_a_random_sample_and_the_rest_later(self, data: Path, tmp_path: Path) -> None:
        first = run(
            colour_model(), data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0, sample=6, sample_seed=3
        )
        drawn = {row[0] for row in first.sql("select key from samples where prediction is not null").fetchall()}
        assert len(drawn) == 6
        assert first.sql("select count(*) from heatmaps").fetchall() == [(6,)]
        same = run(colour_model(), data, tmp_path / "x", batch=4, workers=0, sample=6, sample_seed=3)
        assert {row[0] for row in same.sql("select key from samples where prediction is not null").fetchall()} == drawn
        other = run(colour_model(), data, tmp_path / "y", batch=4, workers=0, sample=6, sample_seed=4)
        assert {row[0] for row in other.sql("select key from samples where prediction is not null").fetchall()} != drawn
        whole = run(colour_model(), None, tmp_path / "out", methods=["gradcam"], workers=0)
        assert whole.sql("select count(*), count(distinct key) from heatmaps").fetchall() == [(COUNT, COUNT)]
        with pytest.raises(RunError, match="its list of samples is frozen"):
            run(colour_model(), None, tmp_path / "out", methods=["gradcam"], workers=0, sample=5)

    def test_a_sample_larger_than_the_data(self, data: Path, tmp_path: Path) -> None:
        for _ in range(2):
            found = run(colour_model(), data, tmp_path / "out", batch=4, workers=0, sample=1000)
            assert found.sql("select count(prediction) from samples").fetchall() == [(COUNT,)]

    def test_the_first_ones(self, data: Path, tmp_path: Path) -> None:
        first = run(colour_model(), data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0, limit=5)
        assert first.sql("select count(*) from heatmaps").fetchall() == [(5,)]
        assert len(first.samples.fetchall()) == COUNT
        whole = run(colour_model(), None, tmp_path / "out", methods=["gradcam"], workers=0)
        assert whole.sql("select count(*) from heatmaps").fetchall() == [(COUNT,)]


class TestTargets:
    def test_the_label_of_each_sample(self, data: Path, tmp_path: Path) -> None:
        found = run(colour_model(), data, tmp_path / "out", methods=["gradcam"], target="label", batch=4, workers=0)
        rows = found.sql("select class, label_name from heatmaps join samples using (key)").fetchall()
        assert len(rows) == COUNT
        assert all(one == other for one, other in rows)

    def test_several_classes(self, data: Path, tmp_path: Path) -> None:
        found = run(colour_model(), data, tmp_path / "out", methods=["gradcam"], target=["red", 2], batch=4, workers=0)
        assert found.sql("select class, count(*) from heatmaps group by all order by 1").fetchall() == [
            ("blue", COUNT),
            ("red", COUNT),
        ]
        key = "red/00000.png"
        one = found.heatmap(key, "gradcam", target="blue")
        other = tp.explain(colour_model(), colour_model().read(data / key), target=2)
        assert torch.allclose(one.values, other.values, rtol=2e-3, atol=2e-3 * float(other.values.abs().max()))
        with pytest.raises(RunError, match=r"2 heatmaps of 'red/00000\.png' by 'gradcam'; allowed: "):
            found.heatmap(key, "gradcam")

    @pytest.mark.parametrize("target", [tp.targets.Predicted(), 1.5, [], True])
    def test_what_cannot_be_written_down(self, data: Path, tmp_path: Path, target: object) -> None:
        with pytest.raises((OptionError, tp.errors.TargetError)):
            run(colour_model(), data, tmp_path / "out", methods=["gradcam"], target=target, workers=0)
        assert not (tmp_path / "out").exists()


def test_activations(data: Path, tmp_path: Path) -> None:
    loaded = colour_model()
    found = run(loaded, data, tmp_path / "out", keep={"3": "pooled", "1": "whole"}, batch=4, workers=0)
    keys, pooled = found.activations("3")
    whole_keys, whole = found.activations("1")
    assert keys == whole_keys
    assert len(keys) == COUNT
    for key, of_key, of_whole in zip(keys, pooled, whole, strict=True):
        outputs = tp.activations(loaded, loaded.read(data / key), ["1", "3"])
        assert torch.allclose(of_key.float(), outputs["3"][0].mean((1, 2)), atol=2e-3)
        assert torch.allclose(of_whole.float(), outputs["1"][0], atol=2e-3)
    with pytest.raises(RunError, match="no activations of '33' in this run"):
        found.activations("33")


def test_metrics_and_masks(data: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    loaded = colour_model()
    for file in data.rglob("*.png"):
        with Image.open(file) as opened:
            size = opened.size
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        (masks / file.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
        mask.save(masks / file.relative_to(data))
    boxes = {"red/00000.png": [(0, 0, 12, 40)]}
    found = run(
        loaded, data, tmp_path / "out", methods=["gradcam"], metrics={"average-drop": {}}, masks=masks, boxes=boxes,
        batch=4, workers=0,
    )  # fmt: skip
    rows = found.sql("select key, inside_mask, inside_box, metrics from heatmaps order by key").fetchall()
    for key, inside_mask, inside_box, metrics in rows:
        picture = loaded.read(data / key)
        heatmap = tp.explain(loaded, picture)
        mask = torch.from_numpy(read_mask(masks / key))[None]
        metric = "energy-pointing-game"
        expected = tp.evaluate(loaded, picture, heatmap, metrics=[metric], masks=mask)[metric].values
        assert inside_mask == pytest.approx(float(expected), abs=2e-3)
        assert (inside_box is not None) == (key in boxes)
        drop = tp.evaluate(loaded, picture, heatmap, metrics=["average-drop"])["average-drop"].values
        assert metrics["average-drop"] == pytest.approx(float(drop), abs=1e-3)


class TestRefusals:
    def test_a_model_without_preprocessing(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"has no preprocessing; give tp\.LoadedModel"):
            run(colour_model().module, data, tmp_path / "out")

    def test_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no run, and no data to make one of"):
            run(colour_model(), None, tmp_path / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(RunError, match="no pictures in the folder"):
            run(colour_model(), tmp_path / "empty", tmp_path / "out", workers=0)

    @pytest.mark.parametrize(
        "options",
        [
            {"executor": "dask"},
            {"batch": 0},
            {"workers": -1},
            {"keep": {"3": "some"}},
            {"metrics": ["average-drop"]},
            {"dtype": "int8"},
            {"shard": (3, 3)},
            {"layer": [1]},
        ],
    )
    def test_options(self, data: Path, tmp_path: Path, options: dict[str, object]) -> None:
        with pytest.raises(OptionError, match=r"allowed|no methods"):
            run(colour_model(), data, tmp_path / "out", **{"workers": 0, **options})

    def test_a_request_that_fails_everywhere(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(
            RunError, match=r"none of the first \d+ samples could be explained: LayerNotFound: no layer"
        ):
            run(colour_model(), data, tmp_path / "out", methods=["gradcam"], layer="nowhere", batch=4, workers=0)
        assert not (tmp_path / "out" / "run.json").exists()
        run(colour_model(), data, tmp_path / "out", batch=4, workers=0)
        before = part_digests(tmp_path / "out")
        with pytest.raises(
            RunError, match=r"none of the first \d+ samples could be explained: LayerNotFound: no layer"
        ):
            run(colour_model(), None, tmp_path / "out", methods=["gradcam"], layer="nowhere", workers=0)
        assert part_digests(tmp_path / "out") == before

    @pytest.mark.parametrize("file", ["run.json", "samples.parquet"])
    def test_a_damaged_run(self, finished: Run, tmp_path: Path, file: str) -> None:
        shutil.copytree(finished._folder.storage.place, tmp_path / "out")
        (tmp_path / "out" / file).write_bytes(b"{}")
        with pytest.raises((FormatError, RunError), match=file):
            open_run(tmp_path / "out").samples.fetchall()

    def test_a_run_of_another_version(self, finished: Run, tmp_path: Path) -> None:
        shutil.copytree(finished._folder.storage.place, tmp_path / "out")
        content = json.loads((tmp_path / "out" / "run.json").read_text())
        (tmp_path / "out" / "run.json").write_text(json.dumps({**content, "format": 7}))
        with pytest.raises(FormatError, match=r"run\.json: format 7, of torchpeek .*; this torchpeek reads 1"):
            open_run(tmp_path / "out")

    def test_a_query_that_cannot_be_run(self, finished: Run) -> None:
        with pytest.raises(RunError, match="the query cannot be run"):
            finished.sql("select nothing from nowhere")


def test_each_shard_alone(data: Path, tmp_path: Path, monkeypatch) -> None:
    """Three computers with a third of the shards each."""
    monkeypatch.setattr("torchpeek.runs.api.measured_batches", lambda *_, **__: (4, 1))
    run(colour_model(), data, tmp_path / "one", methods=["gradcam"], workers=0)
    for index in range(3):
        run(colour_model(), data, tmp_path / "three", methods=["gradcam"], workers=0, shard=(index, 3))
    assert len({name.split("/")[1] for name in part_digests(tmp_path / "one")}) == 6
    assert part_digests(tmp_path / "one") == part_digests(tmp_path / "three")


class TestOtherGroups:
    """What a group has does not depend on other groups, and no request spoils the run."""

    def test_a_wrong_request_is_forgotten(self, data: Path, tmp_path: Path) -> None:
        run(colour_model(), data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
        for wrong in ({"methods": ["layercam"], "layer": "nowhere"}, {"keep": ["nowhere"]}, {"methods": ["rollout"]}):
            with pytest.raises(RunError, match="could be explained"):
                run(colour_model(), None, tmp_path / "out", workers=0, **wrong)
        found = run(colour_model(), None, tmp_path / "out", methods=["layercam"], layer="3", workers=0)
        assert found.sql("select method, count(*) from heatmaps group by 1 order by 1").fetchall() == [
            ("gradcam", COUNT),
            ("layercam", COUNT),
        ]

    def test_data_that_is_not_there(self, data: Path, tmp_path: Path) -> None:
        pictures = tmp_path / "data"
        shutil.copytree(data, pictures)
        run(colour_model(), pictures, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
        before = part_digests(tmp_path / "out")
        shutil.rmtree(pictures)
        with pytest.raises(RunError, match=r"none of the first \d+ samples could be read: .* the data is there"):
            run(colour_model(), None, tmp_path / "out", methods=["layercam"], workers=0)
        assert part_digests(tmp_path / "out") == before

    def test_a_failed_first_attempt_leaves_no_list(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="could be explained"):
            run(colour_model(), data, tmp_path / "out", methods=["gradcam"], layer="nowhere", workers=0)
        keys = write_pictures(tmp_path / "other", 5)
        found = run(colour_model(), tmp_path / "other", tmp_path / "out", methods=["gradcam"], workers=0)
        assert [row[0] for row in found.sql("select key from samples order by 1").fetchall()] == keys

    def test_a_list_of_a_killed_command(self, data: Path, tmp_path: Path) -> None:
        run(colour_model(), data, tmp_path / "out", workers=0)
        (tmp_path / "out" / "run.json").unlink()
        run(colour_model(), data, tmp_path / "out", workers=0)  # the same list
        (tmp_path / "out" / "run.json").unlink()
        write_pictures(tmp_path / "other", 5)
        with pytest.raises(RunMismatch, match="there is another list of samples"):
            run(colour_model(), tmp_path / "other", tmp_path / "out", workers=0)

    def test_a_method_that_is_there_is_not_computed_again(self, data: Path, tmp_path: Path) -> None:
        run(colour_model(), data, tmp_path / "out", methods=["gradcam"], keep=["3"], batch=4, workers=0)
        found = run(colour_model(), None, tmp_path / "out", methods=["gradcam", "layercam"], keep=["3"], workers=0)
        assert found.sql("select method, count(*) from heatmaps group by 1 order by 1").fetchall() == [
            ("gradcam", COUNT),
            ("layercam", COUNT),
        ]
        assert len(found.activations("3")[0]) == COUNT

    def test_metrics_and_targets_that_come_later(self, data: Path, tmp_path: Path) -> None:
        run(colour_model(), data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
        run(colour_model(), None, tmp_path / "out", methods=["gradcam"], metrics=["entropy"], workers=0)
        found = run(colour_model(), None, tmp_path / "out", methods=["gradcam"], target="red", workers=0)
        key, label = found.sql("select key, prediction from samples where predicted_name <> 'red'").fetchall()[0]
        assert found.heatmap(key, "gradcam", target=label).values.shape == (1, 1, 8, 8)  # of two groups with one map
        assert found.heatmap(key, "gradcam", target="red").label() == 0
        counts = found.sql("select group_name, count(*) from heatmaps group by 1").fetchall()
        assert [count for _, count in counts] == [COUNT] * 3
        for name, _ in counts:
            assert len(found.sql(f"select * from heatmaps where group_name = '{name}'").fetchall()) == COUNT

    def test_a_label_that_is_missing_costs_its_map_alone(self, data: Path, tmp_path: Path) -> None:
        labels = {path.relative_to(data).as_posix(): "red" for path in data.rglob("*.png")}
        del labels["red/00000.png"]
        together = run(
            colour_model(), data, tmp_path / "a", methods=["gradcam"], target="label", labels=labels, batch=4, workers=0
        )
        assert together.sql("select count(prediction) from samples").fetchall() == [(COUNT,)]
        assert together.sql("select count(*) from heatmaps").fetchall() == [(COUNT - 1,)]
        assert [row[:4] for row in together.errors.fetchall()] == [
            ("red/00000.png", "red/00000.png", "explain", "InputError")
        ]

    def test_a_mask_that_is_missing_costs_its_metric_alone(self, data: Path, tmp_path: Path) -> None:
        masks = tmp_path / "masks"
        for file in sorted(data.rglob("*.png"))[1:]:
            (masks / file.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as opened:
                Image.new("L", opened.size, 255).save(masks / file.relative_to(data))
        name = "energy-pointing-game"
        found = run(
            colour_model(), data, tmp_path / "out", methods=["gradcam"], metrics=[name], masks=masks, batch=4, workers=0
        )
        assert found.errors.fetchall() == []
        values = [row[0][name] for row in found.sql("select metrics from heatmaps order by key").fetchall()]
        assert values.count(None) == 1
        assert all(value is None or value == pytest.approx(1) for value in values)

    @pytest.mark.parametrize("method", ["occlusion", "polycam", "gradcam"])
    def test_a_broken_neighbour_changes_nothing(self, data: Path, tmp_path: Path, method: str) -> None:
        pictures = tmp_path / "data"
        shutil.copytree(data, pictures)
        keys = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))[:8]
        for path in data.rglob("*.png"):
            if path.relative_to(data).as_posix() not in keys:
                (pictures / path.relative_to(data)).unlink()
        whole = run(colour_model(), pictures, tmp_path / "a", methods=[method], batch=8, workers=0)
        (pictures / keys[0]).write_bytes(b"broken")
        (pictures / keys[4]).write_bytes(b"broken")
        holes = run(colour_model(), pictures, tmp_path / "b", methods=[method], batch=8, workers=0)
        for key in set(keys) - {keys[0], keys[4]}:
            one, other = (each.heatmap(key, method, picture=False).values for each in (whole, holes))
            assert torch.equal(one, other)

    def test_a_retry_keeps_what_was_good(self, data: Path, tmp_path: Path) -> None:
        pictures = tmp_path / "data"
        shutil.copytree(data, pictures)
        first, second = "blue/00002.png", "blue/00006.png"
        whole = (pictures / first).read_bytes()
        (pictures / first).write_bytes(b"broken")
        run(colour_model(), pictures, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
        (pictures / first).write_bytes(whole)
        Image.new("RGB", (40, 40), "yellow").save(pictures / second)  # a good one has changed meanwhile
        found = run(colour_model(), None, tmp_path / "out", workers=0, retry_failed=True)
        assert found.errors.fetchall() == []
        assert found.sql("select count(*) from heatmaps").fetchall() == [(COUNT,)]

    def test_a_folder_whose_name_is_a_pattern(self, data: Path, tmp_path: Path) -> None:
        keys = write_pictures(tmp_path / "other", 5)
        run(colour_model(), data, tmp_path / "runA2", methods=["gradcam"], workers=0)
        for name in ("run*2", "run?2", "run[A]2"):
            found = run(colour_model(), tmp_path / "other", tmp_path / name, methods=["gradcam"], workers=0)
            assert [row[0] for row in found.sql("select key from heatmaps order by 1").fetchall()] == keys
