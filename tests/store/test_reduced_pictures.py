"""Pictures that are reduced when they are read: against means of blocks, in every mode, and in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_runner import environment
from images import noise
from torchpeek.errors import PictureError
from torchpeek.store import read_image, reduced_size, upright_rgb


def magnified(image: Image.Image, factor: int) -> Image.Image:
    """Each pixel as a square."""
    return Image.fromarray(np.asarray(image).repeat(factor, 0).repeat(factor, 1))


def apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference in levels of 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


@pytest.mark.parametrize(
    ("size", "max_size", "reduced"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 640, (640, 480)),
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((10_000, 8000), 2000, (2000, 1600)),
        ((10_000, 3), 100, (100, 1)),
        ((7, 5), 1, (1, 1)),
    ],
)
def test_reduced_size(size, max_size, reduced) -> None:
    assert reduced_size(size, max_size) == reduced


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_a_picture_is_reduced_to_what_its_squares_were(tmp_path: Path, suffix: str) -> None:
    small = noise((60, 40))
    file = tmp_path / f"a.{suffix}"
    magnified(small, 16).save(file, quality=95)
    image, notes, original_size = read_image(file, 60)
    assert (image.mode, notes, original_size) == ("RGB", (), (960, 640))
    assert apart(image, small) < 4
    inexact, *_ = read_image(file, 59)
    assert inexact.size == (59, 39)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("max_size", [None, 48, 100])
def test_a_smaller_picture_is_untouched(tmp_path: Path, suffix: str, max_size: int | None) -> None:
    file = tmp_path / f"a.{suffix}"
    noise((48, 36)).save(file)
    image, notes, original_size = read_image(file, max_size)
    with Image.open(file) as whole:
        assert image.tobytes() == whole.convert("RGB").tobytes()
    assert (notes, original_size) == ((), (48, 36))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The reduced picture is upright, and so is the original size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    magnified(noise((30, 20)), 16).save(tmp_path / f"a.{suffix}", exif=exif)
    whole, _, size = read_image(tmp_path / f"a.{suffix}")
    image, _, original_size = read_image(tmp_path / f"a.{suffix}", 30)
    assert original_size == size == whole.size == ((480, 320) if orientation < 5 else (320, 480))
    assert apart(image, whole.resize(image.size, Image.Resampling.BOX)) < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_modes(mode: str) -> None:
    """Dark left and bright right, whatever it is stored as; the same picture as reduced after it was converted."""
    grey = Image.new("L", (40, 20), 20)
    grey.paste(220, (20, 0, 40, 20))
    if mode.startswith("I"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", [grey, Image.new("L", grey.size, 0), Image.new("L", grey.size, 0)])
    elif mode == "1":
        image = grey.point([0] * 128 + [255] * 128).convert("1")
    else:
        image = grey.convert(mode) if mode in ("L", "F") else grey.convert("RGB").convert(mode)
    assert image.mode == mode
    whole, notes, _ = upright_rgb(image)
    read, reduced_notes, original_size = upright_rgb(image, 20)
    assert (read.mode, read.size, original_size, reduced_notes) == ("RGB", (20, 10), (40, 20), notes)
    assert apart(read, whole.resize((20, 10), Image.Resampling.BOX)) < 6
    assert image.size == (40, 20)  # the user's own image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_is_not_mixed_with_others(tmp_path: Path, mode: str) -> None:
    """Black is transparent, and becomes white. Were it reduced first, black and white would make visible greys."""
    image = Image.new(mode, (64, 64), "white")
    for x in range(0, 64, 2):
        image.paste("black", (x, 0, x + 1, 64))
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    reduced, notes, _ = read_image(tmp_path / "a.png", 16)
    assert notes == ("transparency laid on white",)
    assert np.asarray(reduced).min() == 255


def test_half_transparent_pixels_count_half(tmp_path: Path) -> None:
    """Of a transparent red nothing remains where it is averaged with an opaque green."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, ::2] = (255, 0, 0, 0)
    pixels[:, 1::2] = (0, 255, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    reduced, *_ = read_image(tmp_path / "a.png", 16)
    assert np.abs(np.asarray(reduced).mean((0, 1)) - (127.5, 255, 127.5)).max() < 2


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 32), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, notes, original_size = read_image(tmp_path / "a.gif", 16)
    assert (image.size, notes[0], original_size) == ((16, 8), "first of 3 frames", (64, 32))
    assert image.getpixel((3, 3)) == (255, 0, 0)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    noise((640, 480)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:9000])
    with pytest.raises(PictureError, match=r"a\.jpg: damaged or truncated"):
        read_image(tmp_path / "a.jpg", 100)


def test_the_guard_against_bombs_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    noise((64, 48)).save(tmp_path / "a.jpg")
    with pytest.raises(PictureError, match="A maximum size does not lift this limit"):
        read_image(tmp_path / "a.jpg", 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_jpeg_is_never_whole_in_memory(tmp_path: Path) -> None:
    """24 megapixels are 96 MB for Pillow, and 192 MB while they are copied."""
    magnified(noise((60, 40)), 100).save(tmp_path / "a.jpg")
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from torchpeek.store import read_image\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024\n"
        "before = peak()\n"
        "read_image(sys.argv[1], int(sys.argv[2]))\n"
        "print(peak() - before)"
    )

    def growth(max_size: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / "a.jpg"), str(max_size)]
        return int(subprocess.run(command, env=environment(), capture_output=True, check=True).stdout)

    assert growth(10_000) > 150
    assert growth(1000) < 40
