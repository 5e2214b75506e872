"""Attempts to load damaged files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import torchpeek as tp
from torchpeek.errors import TorchpeekError
from torture.outcomes import outcome_of, same
from torture.session import Attempt, Session


@cache
def _files() -> Mapping[str, tuple[bytes, Callable[[Path], Any]]]:
    nn = torch.nn
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        heatmap = tp.explain(model, torch.rand(2, 3, 8, 8), layer="1", target=torch.tensor([[0, 1], [2, 3]]))
        with tempfile.TemporaryDirectory() as folder:
            tp.save(heatmap, Path(folder) / "heatmap.safetensors")
            stream = tp.TensorStream(Path(folder) / "stream")
            with tp.record(model, "1", keep=tp.keep.Callback(stream)), torch.no_grad():
                model(torch.rand(2, 3, 8, 8))
            (part,) = (Path(folder) / "stream").glob("*.safetensors")
            name = part.name
            contents = (Path(folder) / "heatmap.safetensors").read_bytes(), part.read_bytes()

    def load_heatmap(file: Path) -> Any:
        loaded = tp.load(file)
        text = json.dumps(loaded.provenance.__dict__, default=str, sort_keys=True)
        return [loaded.values, loaded.scores, text]

    def load_stream(file: Path) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(file.read_bytes())
            return list(tp.TensorStream.opened(folder).read("1"))

    return {"heatmap": (contents[0], load_heatmap), "tensor": (contents[1], load_stream)}


def damaged_file(session: Session, attempt: Attempt) -> None:
    """A file is loaded of which some bytes were changed, left out, doubled or cut off."""
    draw = attempt.draw
    name = draw.choice(sorted(_files()))
    content, load = _files()[name]
    damage = draw.choice(["changed", "left out", "doubled", "cut off", "zeroed", "appended"])
    # Half of the damage is in the header, which is much shorter than the data.
    place = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(len(content), 2048))
    length = draw.choice([1, 1, 1, 2, 8, 64])
    damaged = bytearray(content)
    if damage == "changed":
        damaged[place] ^= draw.randint(1, 255)
    elif damage == "left out":
        del damaged[place : place + length]
    elif damage == "doubled":
        damaged[place:place] = damaged[place : place + length]
    elif damage == "cut off":
        del damaged[place:]
    elif damage == "zeroed":
        damaged[place : place + length] = bytes(len(damaged[place : place + length]))
    else:
        damaged += draw.randbytes(length)
    attempt.details = f"{name}, {length} bytes at {place} {damage}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.safetensors"
        file.write_bytes(content)
        expected = load(file)
        file.write_bytes(damaged)
        outcome = outcome_of(lambda: load(file))
    if outcome.error is not None:
        if not isinstance(outcome.error, TorchpeekError):
            attempt.failed.append(f"raised {type(outcome.error).__name__}: {outcome.error}")
    elif not same(outcome.value, expected):
        attempt.failed.append("the damaged file was loaded, and its content is another")
