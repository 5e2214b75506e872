"""Fixtures of the command line's tests: the working directory, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchpeek.render import text, tiles

MODEL = """
import torch, torchpeek as tp
from networks import MessyNet, PooledNet

def make():
    torch.manual_seed(0)
    return tp.LoadedModel(PooledNet(), tp.Preprocess(resize=16, crop=(16, 16)), ["ant", "bee", "cat", "dog", "elk"])

def flat():
    return tp.LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)), tp.Preprocess(16, (16, 16)))

def slow():
    import time
    net = PooledNet()
    net.register_forward_hook(lambda *_: time.sleep(0.3))
    return tp.LoadedModel(net, tp.Preprocess(resize=16, crop=(16, 16)))
"""


@pytest.fixture(autouse=True)
def output_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width is that of a pipe, also where a shell or a process of pytest-xdist names one."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def place(in_folder: Path) -> Path:
    """A folder with a model and three pictures."""
    (in_folder / "my_nets.py").write_text(MODEL)
    (in_folder / "pictures").mkdir()
    for n, name in enumerate(["a", "b", "c"]):
        Image.linear_gradient("L").rotate(90 * n).resize((40 + n, 30)).convert("RGB").save(
            in_folder / "pictures" / f"{name}.png"
        )
    return in_folder


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words on each picture and plot that is drawn."""
    drawn: list[list[str]] = []

    def sheet(*given: Any, **looks: Any) -> Image.Image:
        drawn.append([])
        return tiles.sheet(*given, **looks)

    def caption(words: str, *size: int) -> Image.Image:
        drawn[-1].append(words)
        return text.caption(words, *size)

    def figure_bytes(figure: Any) -> bytes:
        drawn.append([each.get_text() for each in figure.findobj(lambda part: hasattr(part, "get_text"))])
        return b""

    monkeypatch.setattr("torchpeek.render.grids.sheet", sheet)
    monkeypatch.setattr("torchpeek.render.tiles.caption", caption)
    monkeypatch.setattr("torchpeek.cli.gradients.figure_bytes", figure_bytes)
    return drawn


@pytest.fixture
def six(place: Path) -> Path:
    """As many pictures as it takes to tell what is better."""
    for n, stem in enumerate("def"):
        noise = np.random.default_rng(n).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48, 36)).save(place / "pictures" / f"{stem}.png")
    return place
