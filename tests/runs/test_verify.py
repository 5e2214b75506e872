"""verified(): damaged parts are named, and computed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from run_data import colour_model, part_digests, write_pictures
from torchpeek.errors import FormatError, RunError
from torchpeek.runs.api import run
from torchpeek.runs.verify import verified

COUNT = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_pictures(folder / "data", COUNT)
    run(colour_model(), folder / "data", folder / "out", methods=["gradcam"], batch=4, workers=0)
    return folder / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_nothing_is_wrong(out: Path) -> None:
    found = verified(out)
    assert (found.parts, found.missing, found.damaged) == (1, 0, ())


@pytest.mark.parametrize(
    "name", ["maps.safetensors", "index.parquet", "predicted.parquet", "errors.parquet", "part.json"]
)
@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "grown"])
def test_each_damage_is_named_and_repaired(out: Path, whole: Path, name: str, how: str) -> None:
    (file,) = out.glob(f"parts/*/*/{name}")
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        if name == "part.json" and how in ("a bit", "grown"):
            data[data.index(b'"part') if b'"part' in data else data.index(b'"files"')] ^= 1
        data[len(data) // 2] ^= how == "a bit" and name != "part.json"
        file.write_bytes({"a bit": bytes(data), "cut": data[: len(data) // 2], "grown": data + b" " * 9}[how])
    found = verified(out)
    if name == "part.json" and how == "gone":  # as if it had never been computed
        assert (found.parts, found.missing, found.damaged) == (0, 1, ())
        run(colour_model(), None, out, methods=["gradcam"], workers=0)
    else:
        (words,) = found.damaged
        assert name in words or name == "part.json"  # a digest in it may be what differs
        with pytest.raises(RunError, match="the model of the run is needed"):
            verified(out, repair=True)
        assert verified(out, repair=True, model=colour_model()).repaired
    assert verified(out).damaged == ()
    assert part_digests(out) == part_digests(whole)


def test_hostile_marks(out: Path) -> None:
    """Names of files never lead out of the run, and a size that is not true allocates nothing."""
    (file,) = out.glob("parts/*/*/part.json")
    mark = json.loads(file.read_text())
    for files in (
        {"../../../run.json": [1, "0"]},
        {"/etc/passwd": [1, "0"]},
        {"a": 3},
        [],
        {"errors.parquet": [10**30, ""]},
    ):
        file.write_text(json.dumps({**mark, "files": files}))
        (words,) = verified(out).damaged
        assert "part" in words
    file.write_text(json.dumps({**mark, "format": 2}))
    assert "this torchpeek reads 1" in verified(out).damaged[0]


def test_parts_that_belong_to_nothing(out: Path) -> None:
    (part,) = out.glob("parts/*/*")
    shutil.copytree(part, out / "parts" / "000007" / part.name)
    assert "is of no group or shard of this run" in verified(out).damaged[0]


def test_a_list_that_was_changed(out: Path) -> None:
    table = pq.read_table(out / "samples.parquet")
    other = table.set_column(table.schema.get_field_index("label"), "label", pa.array([0] * COUNT, pa.int32()))
    pq.write_table(other, out / "samples.parquet")
    with pytest.raises(FormatError, match=r"samples\.parquet: its SHA-256 is not that"):
        verified(out)


def test_a_group_that_was_changed(out: Path) -> None:
    (file,) = out.glob("groups/*.json")
    file.write_text(file.read_text().replace("float16", "float32"))
    with pytest.raises(FormatError, match="its name does not fit its contents"):
        verified(out)


def test_another_list_of_samples(out: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "more", 3)
    run(colour_model(), tmp_path / "more", tmp_path / "other", batch=4, workers=0)
    shutil.copy(tmp_path / "other" / "samples.parquet", out / "samples.parquet")
    with pytest.raises(FormatError, match=r"run\.json: says 10 samples, and samples\.parquet has 3"):
        verified(out)
