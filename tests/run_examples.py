"""What the examples of data-set runs in docstrings begin with: three pictures, a model, and a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchpeek as tp
from images import noise


def names_for_runs(folder: Path) -> dict[str, Any]:
    """The names that the examples use; the pictures and the run are written to the folder."""
    torch.manual_seed(0)
    for n, name in enumerate(["cat/0", "cat/1", "dog/0"]):
        (folder / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        noise((40 + n, 30)).save(folder / "val" / f"{name}.png")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    loaded = tp.LoadedModel(network, tp.Preprocess(resize=16, crop=(16, 16)), ["cat", "dog"])
    tp.run(loaded, folder / "val", folder / "epoch-12", methods=["gradcam"], keep=["0"], workers=0)
    return {"folder": folder, "loaded": loaded, "replace": replace}
