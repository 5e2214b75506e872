"""A run over each kind of source, with decoding processes: the same numbers wherever the bytes come from."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import torchpeek as tp
from composed_pictures import ComposedPicture, compose
from torchpeek.errors import RunError
from torchpeek.runs.api import run
from torchpeek.runs.run import open_run

SIZE = (64, 48)
NAMES = ["disc", "ring", "square", "triangle", "star", "cross"]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ComposedPicture]]:
    folder = tmp_path_factory.mktemp("composed")
    return folder, compose(folder, 12, size=SIZE, files=())


@pytest.fixture(scope="module")
def model() -> tp.LoadedModel:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(NAMES))
    )
    return tp.LoadedModel(network.eval(), tp.Preprocess(resize=48, crop=(48, 48)), NAMES)


class Pictures:
    """A Dataset of the files."""

    def __init__(self, files: list[Path], labels: list[str]) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, str]:
        return self.files[index], self.labels[index]


def data_of(kind: str, folder: Path, pictures: list[ComposedPicture], out: Path) -> Any:
    files = [folder / "pictures" / each.key for each in pictures]
    labels = [each.label for each in pictures]
    match kind:
        case "csv":
            rows = zip(files, labels, pictures, strict=True)
            lines = [f'{file},{label},"{list(each.box)}",{folder / "masks" / each.mask}' for file, label, each in rows]
            (out / "t.csv").write_text("\n".join(["path,label,boxes,mask", *lines]))
            return out / "t.csv"
        case "parquet":
            data = [file.read_bytes() for file in files]
            boxes = [[list(each.box)] for each in pictures]
            pq.write_table(
                pa.table({"image": data, "label": labels, "boxes": boxes}), out / "t.parquet", row_group_size=5
            )
            return out / "t.parquet"
        case "tar":
            with tarfile.open(out / "t.tar", "w") as archive:
                for number, (file, each) in enumerate(zip(files, pictures, strict=True)):
                    archive.add(file, f"{number:05d}.jpg")
                    archive.add(folder / "masks" / each.mask, f"{number:05d}.mask.png")
                    info = tarfile.TarInfo(f"{number:05d}.cls")
                    info.size = len(each.label)
                    archive.addfile(info, io.BytesIO(each.label.encode()))
            return out / "t.tar"
        case "dataset":
            return Pictures(files, labels)
        case _:
            return folder / "pictures"


def rows_of(data: Any, model: tp.LoadedModel, out: Path, **given: Any) -> list[tuple[Any, ...]]:
    found = run(model, data, out, methods=["gradcam"], workers=2, batch=4, **given)
    return found.sql(
        "select s.digest, s.label_name, s.correct, h.score, h.centre_x, h.inside_box, h.inside_mask from samples s "
        "join heatmaps h using (key) order by 1"
    ).fetchall()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["csv", "parquet", "tar", "dataset"])
def test_the_same_rows_as_a_folder(
    kind: str, composed: tuple[Path, list[ComposedPicture]], model: tp.LoadedModel, tmp_path: Path
) -> None:
    folder, pictures = composed
    reference = rows_of(folder / "pictures", model, tmp_path / "folder", masks=folder / "masks")
    assert {row[1] for row in reference} == {each.label for each in pictures}
    data = data_of(kind, folder, pictures, tmp_path)
    rows = rows_of(data, model, tmp_path / "run")
    # The rows of the list are in another sequence, so that sums may be rounded in another way.
    assert [row[:3] for row in rows] == [row[:3] for row in reference]
    assert [row[3:5] for row in rows] == [pytest.approx(row[3:5], rel=1e-4) for row in reference]
    has_masks, has_boxes = kind in ("csv", "tar"), kind in ("csv", "parquet")
    for row, expected in zip(rows, reference, strict=True):
        assert row[6] == (pytest.approx(expected[6], abs=1e-4) if has_masks else None)
        assert (row[5] is not None) == has_boxes
    again = rows_of(data, model, tmp_path / "run")
    assert again == rows


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_a_finished_run_are_read_without_code(
    composed: tuple[Path, list[ComposedPicture]], model: tp.LoadedModel, tmp_path: Path
) -> None:
    folder, pictures = composed
    for kind in ("parquet", "tar"):
        run(model, data_of(kind, folder, pictures, tmp_path), tmp_path / kind, workers=0, batch=4)
        key = open_run(tmp_path / kind).sql("select key from samples").fetchall()[3][0]
        assert (
            open_run(tmp_path / kind).picture(key).image.size == Image.open(folder / "pictures" / pictures[3].key).size
        )
    run(model, data_of("dataset", folder, pictures, tmp_path), tmp_path / "dataset", workers=0, batch=4)
    with pytest.raises(tp.errors.PictureError, match="give the Dataset"):
        open_run(tmp_path / "dataset").picture("3")


@pytest.mark.filterwarnings("ignore")
def test_another_kind_of_data_is_refused_for_a_run(
    composed: tuple[Path, list[ComposedPicture]], model: tp.LoadedModel, tmp_path: Path
) -> None:
    folder, pictures = composed
    run(model, folder / "pictures", tmp_path / "run", workers=0, batch=4, masks=folder / "masks")
    run(model, folder / "pictures", tmp_path / "run", workers=0, methods=["gradcam"])  # its masks are those of the run
    with pytest.raises(RunError, match="another data set"):
        run(model, data_of("tar", folder, pictures, tmp_path), tmp_path / "run", workers=0)
