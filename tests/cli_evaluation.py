"""Requests of torchpeek evaluate that several test files make, and the numbers of the library for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torchpeek as tp
from cli_runner import of

METHODS = ["gradcam", "layercam", "eigencam"]
METHOD = tuple(word for name in METHODS for word in ("--method", name))
FEW = ("--metric-option", "deletion.steps=4", "--metric-option", "insertion.steps=3")
DEFAULT = {"deletion": {"steps": 4}, "insertion": {"steps": 3}, "average-drop": {}, "average-gain": {}}
EVALUATE = ("evaluate", "pictures", *of("pooled"), *METHOD, *FEW)
REGION = ("evaluate", "pictures", *of("pooled"), "--metric", "iou")


def measured(loaded: tp.LoadedModel, metrics: Any, file: str, seed: int = 0, **where: Any) -> Any:
    """As the library has it, of one picture."""
    target = where.pop("target", None)
    picture = loaded.read(file)
    maps = tp.compare(loaded, picture, methods=METHODS, target=target, seed=seed)
    return tp.evaluate(loaded, picture, maps, metrics=metrics, seed=seed, **where)


def lists(tensor: torch.Tensor) -> list[float]:
    return tensor.double().tolist()


def table(folder: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(folder / "results.parquet").to_pylist()


BOXES = {"a.png": [[5, 5, 20, 20], [25, 10, 33, 25]], "b.png": [[12, 3, 30, 28]], "c.png": [[0, 0, 42, 30]]}
