"""Large pictures are converted in strips: the same numbers as at once, in less memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cli_runner import environment
from torchpeek import Preprocess
from torchpeek.models import preprocess
from torchpeek.store import upright_images

WIDTH, HEIGHT = 23, 37


def image_of(kind: str) -> Image.Image:
    """A picture of random numbers."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8), "RGBA")
    shape = (HEIGHT, WIDTH)
    match kind:
        case "I;16":
            return Image.fromarray(random.integers(0, 65536, shape).astype(np.uint16))
        case "I" | "I, wide":
            lowest, highest = (0, 65536) if kind == "I" else (-70_000, 90_000)
            return Image.fromarray(random.integers(lowest, highest, shape).astype(np.int32))
        case "F":
            return Image.fromarray(random.normal(size=shape).astype(np.float32))
        case "P, transparent":
            image = colours.convert("RGB").convert("P")
            image.info["transparency"] = image.getpixel((3, 30))
            return image
    return colours.convert("RGB").convert(kind) if kind not in ("RGBA", "LA") else colours.convert(kind)


def at_once(image: Image.Image, orientation: int) -> np.ndarray:
    """RGB, upright, by whole copies in floating point."""
    if orientation > 1:
        image.getexif()[0x0112] = orientation
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float64)
        standard = image.mode == "I;16" or (image.mode == "I" and values.min() >= 0 and values.max() <= 65535)
        low, high = (0, 65535) if standard else (values.min(), values.max())
        bright = values / 257 if standard else (values - low) / (high - low) * 255
        return np.repeat(np.rint(bright).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.asarray(image.convert("RGB"))


KINDS = ["1", "L", "LA", "P", "P, transparent", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "I, wide", "F"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_strips_give_the_same_numbers(kind: str, orientation: int, monkeypatch) -> None:
    monkeypatch.setattr(upright_images, "_PIXELS_OF_A_STRIP", 4 * WIDTH)  # 9 strips and a row
    image = image_of(kind)
    if orientation > 1:
        image.getexif()[0x0112] = orientation
    read = upright_images.upright_rgb(image)
    assert np.array_equal(np.asarray(read.image), at_once(image_of(kind), orientation))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_input_in_parts_is_the_same(channels: int, monkeypatch) -> None:
    image = image_of("RGB")
    own = Preprocess(None, None, mean=(0.4,) * channels, std=(0.2,) * channels, bgr=channels == 3)
    whole, _ = own(image)
    monkeypatch.setattr(preprocess, "_PIXELS_AT_ONCE", 4 * WIDTH)
    parts, _ = own(image)
    assert torch.equal(parts, whole)
    values = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB"))).view(HEIGHT, WIDTH, channels)
    expected = (values.permute(2, 0, 1).flip(0).double() / 255 - 0.4) / 0.2
    assert torch.allclose(whole[0].double(), expected, atol=1e-6)


_MEASURE = """
import sys
import torch, torchpeek as tp
from PIL import Image
from torchpeek.store import read_image

def peak(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

loaded = tp.LoadedModel(torch.nn.Conv2d(3, 2, 1), tp.Preprocess())
loaded.read(Image.new("RGB", (300, 300)))
before = peak("VmRSS")
loaded.read(sys.argv[1])
print(peak("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux reports it")
@pytest.mark.parametrize(("kind", "decoded"), [("L", 1), ("RGBA", 4), ("I;16", 2)])
def test_at_most_five_bytes_a_pixel_beside_the_decoded_picture(tmp_path: Path, kind: str, decoded: int) -> None:
    """It was 26 for 16 bits."""
    side, path = 6000, tmp_path / "large.png"
    image = Image.fromarray(np.full((side, side), 3000, np.uint16)) if kind == "I;16" else Image.new(kind, (side, side))
    image.save(path, compress_level=1)
    words = [sys.executable, "-c", _MEASURE, str(path)]
    measured = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    strips = 60_000_000  # bytes
    assert int(measured.stdout) < (decoded + 5) * side * side + strips
