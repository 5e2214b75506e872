"""Export a run for other programs: pictures, Zarr arrays, a FiftyOne data set, or parquet tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import torch

from torchpeek.errors import OptionError, TorchpeekError, shown
from torchpeek.heatmap import Heatmap, upsample
from torchpeek.runs.run import Run
from torchpeek.store import file_stem

ExportFormat: TypeAlias = Literal["png", "zarr", "fiftyone", "parquet"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("png", "zarr", "fiftyone", "parquet")


def exported(run: Run, to: ExportFormat, folder: Path, *, limit: int | None = None) -> int:
    """Write a run in the format of another program.

    Args:
        run: The run.
        to: "png": an overlay for each map, which needs the pictures. "zarr": an array (n, *grid) for each method, layer
            and grid. "fiftyone": a data set that FiftyOne imports, with predictions and heatmaps. "parquet": the tables
            samples, heatmaps and errors, a file each.
        folder: A folder that does not exist yet, or is empty.
        limit: Export so many samples only; None for all.

    Returns:
        How many maps, or rows of tables, were written.

    Raises:
        OptionError: When `to` is no such format, or the folder is not empty.
        TorchpeekError: When a package is missing.
    """
    if to not in EXPORT_FORMATS:
        raise OptionError(f"to is {shown(to)}; allowed: {', '.join(map(repr, EXPORT_FORMATS))}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} is there already, and not empty; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return _WRITERS[to](run, folder, limit)


def _parquet(run: Run, folder: Path, limit: int | None) -> int:
    rows = 0
    for name in ("samples", "heatmaps", "errors"):
        relation = getattr(run, name)
        relation = relation if limit is None else relation.limit(limit)
        relation.write_parquet(str(folder / f"{name}.parquet"))
        rows += int(relation.count("*").fetchall()[0][0])
    return rows


def _png(run: Run, folder: Path, limit: int | None) -> int:
    count = 0
    for key, method, layer, label, name in _maps(run, limit):
        drawn = run.heatmap(key, method, layer, label, picture=False).overlay(run.picture(key))
        stem = "-".join(map(file_stem, (str(PurePosixPath(key).with_suffix("")), method, layer, name)))
        drawn.save(folder / f"{count:08d}-{stem[:180]}.png")
        count += 1
    return count


def _maps(run: Run, limit: int | None) -> Iterator[tuple[str, str, str, int, str]]:
    some = "" if limit is None else f"where key in (select key from samples limit {int(limit)})"
    query = f"select key, method, layer, class_index, class from heatmaps {some} order by key, method, layer, target"
    yield from run.sql(query).fetchall()


def _zarr(run: Run, folder: Path, limit: int | None) -> int:
    try:
        import zarr
    except ImportError as error:
        raise TorchpeekError("zarr is not installed; next: pip install zarr") from error
    group = zarr.open_group(str(folder), mode="w")
    count = 0
    for name, keys, labels, maps in _stacked(run, limit):
        array = group.create_array(name, data=maps.numpy(), chunks=(min(1024, len(maps)), *maps.shape[1:]))
        array.attrs.update({"keys": keys, "labels": labels})
        count += len(maps)
    return count


def _stacked(run: Run, limit: int | None) -> Iterator[tuple[str, list[str], list[int], torch.Tensor]]:
    """Name, keys, labels and maps (n, *grid) for each method, layer and grid."""
    found: dict[str, tuple[list[str], list[int], list[torch.Tensor]]] = {}
    for key, method, layer, label, _ in _maps(run, limit):
        values = run.heatmap(key, method, layer, label, picture=False).values[0, 0]
        grid = "x".join(map(str, values.shape))
        keys, labels, maps = found.setdefault(f"{file_stem(method)}/{file_stem(layer)}/{grid}", ([], [], []))
        keys.append(key)
        labels.append(label)
        maps.append(values)
    for name, (keys, labels, maps) in found.items():
        yield name, keys, labels, torch.stack(maps)


def _fiftyone(run: Run, folder: Path, limit: int | None) -> int:
    """Write the layout of FiftyOne's own data sets: metadata.json, samples.json, and the maps as pictures."""
    from PIL import Image

    (folder / "fields").mkdir()
    root = run.data
    of_key: dict[str, dict[str, Any]] = {}
    query = "select key, path, label_name, predicted_name, probability from samples"
    for key, path, label_name, predicted, probability in run.sql(
        query if limit is None else f"{query} limit {limit}"
    ).fetchall():
        sample: dict[str, Any] = {"filepath": str(PurePosixPath(root) / path) if root else path, "tags": []}
        if label_name is not None:
            sample["ground_truth"] = {"_cls": "Classification", "label": label_name}
        if predicted is not None:
            sample["prediction"] = {"_cls": "Classification", "label": predicted, "confidence": probability}
        of_key[key] = sample
    count = 0
    for key, method, layer, label, name in _maps(run, limit):
        if key not in of_key:
            continue
        values = _shown_values(run.heatmap(key, method, layer, label, picture=False))
        file = folder / "fields" / f"{count:08d}.png"
        Image.fromarray(values.numpy()).save(file)
        field = f"{file_stem(method)}_{file_stem(name)}".replace("-", "_").replace(".", "_").replace("+", "p")
        of_key[key][field] = {"_cls": "Heatmap", "map_path": f"fields/{file.name}", "range": [0, 255]}
        count += 1
    (folder / "metadata.json").write_text(json.dumps({"name": "torchpeek", "media_type": "image"}))
    (folder / "samples.json").write_text(json.dumps({"samples": list(of_key.values())}))
    return count


def _shown_values(heatmap: Heatmap) -> torch.Tensor:
    values = upsample(heatmap.unit().values, torch.Size([224, 224]))[0, 0]
    return (values * 255).round().to(torch.uint8)


_WRITERS: dict[str, Callable[[Run, Path, int | None], int]] = {
    "png": _png,
    "zarr": _zarr,
    "fiftyone": _fiftyone,
    "parquet": _parquet,
}
