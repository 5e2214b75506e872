"""A small network with its preprocessing, and folders of pictures, for the tests of data-set runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import torchpeek as tp

NAMES = ("red", "green", "blue", "grey")


def colour_model() -> tp.LoadedModel:
    """A network of four classes, the same every time."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, len(NAMES)),
    )
    return tp.LoadedModel(network.eval(), tp.Preprocess(resize=32, crop=(32, 32)), list(NAMES), "tests:colour_model")


def write_pictures(folder: Path, count: int, *, classes: bool = True, seed: int = 0) -> list[str]:
    """Write pictures of noise, in folders that have the names of the classes. Returns their keys, sorted."""
    generator = torch.Generator().manual_seed(seed)
    keys = []
    for number in range(count):
        size = [int(torch.randint(24, 60, (), generator=generator)) for _ in range(2)]
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        pixels[..., number % 3] //= 2
        key = f"{NAMES[number % 4]}/{number:05d}.png" if classes else f"{number:05d}.png"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / key)
        keys.append(key)
    return sorted(keys)


def part_digests(run: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of the parts of a run."""
    return {
        file.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((run / "parts").rglob("*"))
        if file.is_file()
    }
