"""Networks for the commands layers, kernels, features and gradients, and what reads what they write."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import torchpeek as tp
from conftest import IMAGES
from networks import PooledNet
from test_cli import run
from torchpeek.render import text, tiles

PREPROCESS = tp.Preprocess(resize=16, crop=(16, 16))
CHELSEA = str(IMAGES / "chelsea.png")
CLASSES = ["ant", "bee", "cat", "dog", "elk"]
COMMANDS = ["layers", "kernels", "features", "gradients"]
GIVEN = {"layers": [], "kernels": [], "features": ["pictures"], "gradients": ["pictures"]}


def pooled(preprocess: Any = PREPROCESS, **facts: Any) -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(PooledNet(), preprocess, CLASSES, **facts)


untrained = partial(pooled, weights="random")
any_size = partial(pooled, tp.Preprocess(None, None))
plain = partial(tp.LoadedModel, nn.Sequential(nn.Flatten()), PREPROCESS)
upwards = partial(tp.LoadedModel, nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU()), PREPROCESS)
waving = partial(tp.LoadedModel, nn.Sequential(nn.Conv2d(3, 2, 1, dtype=torch.complex64)), PREPROCESS)
first = partial(tp.LoadedModel, nn.Sequential(OrderedDict([("first kernels", nn.Conv2d(3, 2, 1))])), PREPROCESS)


def broken() -> tp.LoadedModel:
    """One weight is NaN: so is what most layers return, and what flows back."""
    loaded = pooled()
    loaded.module.features[0].weight.data[0, 0, 0, 0] = float("nan")
    return loaded


def trained() -> tp.LoadedModel:
    """Train mode matters."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()]
    return tp.LoadedModel(nn.Sequential(*parts, nn.Linear(4, 5)), PREPROCESS, CLASSES)


class Tokens(nn.Module):
    """Channels last, one of which is dead; a ModuleList; and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norms, self.head = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([nn.LayerNorm(8)]), nn.Linear(8, 5)
        self.act = nn.ReLU()
        self.norms[0].weight.data[2] = 0

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norms[0](self.act(self.patches(x)).flatten(2).transpose(1, 2))
        return self.head(self.act(tokens).mean(1))


tokens = partial(tp.LoadedModel, Tokens(), PREPROCESS)


class Odd(nn.Module):
    """Layers that return a tuple, complex numbers, no tensor, an empty one, and a batch made of one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.waves, self.words = nn.Conv2d(3, 4, 3), nn.LSTM(14, 5), Waves(), Words()
        self.halves, self.last, self.none = Halves(), nn.Linear(14, 6), Nothing()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.lstm(x[0]), self.waves(x), self.words(x), self.halves(x), self.none(x)
        return self.last(x).mean((1, 2))


class Waves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x)


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "words"


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(x.chunk(2, dim=1))


def odd() -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(Odd(), PREPROCESS)


one_size = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2))
picky = partial(tp.LoadedModel, one_size, tp.Preprocess(None, None))


def strict(written: str) -> Any:
    """JSON as its standard has it, without NaN and Infinity."""
    return json.loads(written, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def of(name: str) -> tuple[str, str]:
    return "--model", f"{__name__}:{name}"


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert run(*words, "--json") == 0
    return strict(capsys.readouterr().out)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def pixels(file: Path | str | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def batch_of(loaded: tp.LoadedModel) -> Tensor:
    return torch.cat([loaded.read(f"pictures/{stem}.png").tensor for stem in "abc"])


def numbers(tensor: Tensor) -> dict[str, Any]:
    """As a row of a table has them."""
    values = tensor.double()
    found = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    found["zero_share"] = (values == 0).double().mean()
    return {"shape": list(tensor.shape)} | {name: pytest.approx(float(value)) for name, value in found.items()}


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
