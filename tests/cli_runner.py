"""Run a command in this process, and read what it printed and wrote."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import torchpeek as tp
from paths import IMAGES, TESTS
from torchpeek.cli import main

CHELSEA = str(IMAGES / "chelsea.png")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(list(words))
    return int(exited.value.code or 0)


def environment(**variables: str) -> dict[str, str]:
    """For a process in which the models of the tests can be imported."""
    folders = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **variables}


def strict(written: str) -> Any:
    """JSON as its standard has it, without NaN and Infinity."""
    return json.loads(written, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def of(name: str) -> tuple[str, str]:
    return "--model", f"cli_models:{name}"


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
