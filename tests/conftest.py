"""Fixtures that all tests share: seeds, threads, networks, pictures, and real weights where there are any."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from networks import SplitNet
from paths import IMAGES, ROOT

MOBILENET = "mobilenet_v2-b0353104.pth"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other, and on a busy machine ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def net() -> SplitNet:
    """A small float64 network, smooth, with a prefix and a suffix that can be called on their own."""
    return SplitNet().double().eval()


@pytest.fixture(scope="session")
def mobilenet():
    """MobileNetV2 with its real ImageNet weights, or a skip that says how to get them."""
    import torchpeek as tp

    home = Path(os.environ.get("TORCH_HOME", ROOT / ".cache" / "torch"))
    file = home / "hub" / "checkpoints" / MOBILENET
    if not file.is_file() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith("b0353104"):
        pytest.skip(f"no real weights: {MOBILENET} is not in TORCH_HOME; make test fetches it")
    os.environ["TORCH_HOME"] = str(home)
    return tp.load_model("torchvision:mobilenet_v2")


@pytest.fixture
def photograph() -> Path:
    return IMAGES / "chelsea.png"


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """A small picture with some structure."""
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
