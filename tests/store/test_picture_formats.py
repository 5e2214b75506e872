"""Only formats are decoded whose decoders run no program and open no other file, whatever a file is called."""

from __future__ import annotations

import io
import os
import struct
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from torchpeek.errors import PictureError
from torchpeek.store import is_picture, read_image, read_mask, upright_rgb

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
REFUSED = {
    "EPS": POSTSCRIPT,
    "EPS of DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
    "PDF": b"%PDF-1.7\n",
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GRIB": b"GRIB\0\0\0\1" + bytes(100),
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch) -> Path:
    """A folder of programs in which gs leaves a trace, and nothing else."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{folder}/ran'\ncat >/dev/null\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked for again
    return folder


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["cat.jpg", "cat.png", "cat.eps", "cat"])
def test_no_program_runs_whatever_the_name(programs: Path, tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REFUSED[kind])
    for read in (read_image, read_mask, lambda file: read_image(io.BytesIO(file.read_bytes()))):
        with pytest.raises(PictureError, match=f"{kind.split()[0]}, which is not read.*Next: convert it to PNG"):
            read(path)
    assert not is_picture(io.BytesIO(REFUSED[kind]))
    assert not (programs / "ran").exists()


def test_nor_for_an_image_that_the_caller_has_opened(programs: Path, tmp_path: Path) -> None:
    """Pillow would decode it only now."""
    (tmp_path / "cat.jpg").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / "cat.jpg") as image, pytest.raises(PictureError, match="EPS, which is not read"):
        upright_rgb(image)
    assert not (programs / "ran").exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "DDS"])
def test_formats_that_are_read_whatever_the_name(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture", kind)
    assert read_image(tmp_path / "picture").image.size == (32, 32)


def test_a_jpeg_of_several_pictures(tmp_path: Path) -> None:
    """Pillow calls it MPO."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    image, conversions, _ = read_image(tmp_path / "a.jpg")
    assert image.getpixel((5, 5))[0] > 240
    assert conversions == ("first of 2 frames",)


def test_many_pages_do_not_take_long(tmp_path: Path) -> None:
    """Pillow counts the pages of a TIFF in a time that grows with the square of their number: 20,000 took 5 s."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    size, pages = 2 + 12 * len(tags) + 4, 50_000
    written = [b"II*\0", struct.pack("<I", 16), bytes([128] * 8)]
    for page in range(pages):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        following = 16 + (page + 1) * size if page < pages - 1 else 0
        written.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    (tmp_path / "many.tif").write_bytes(b"".join(written))
    start = time.perf_counter()
    image, conversions, _ = read_image(tmp_path / "many.tif")
    assert time.perf_counter() - start < 5
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert conversions == ("first of many frames",)


def test_a_text_that_unpacks_to_much(tmp_path: Path) -> None:
    """Pillow refuses texts of more than a megabyte."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "a" * 2**24, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    with pytest.raises(PictureError, match=r"a\.png: damaged or truncated"):
        read_image(tmp_path / "a.png")
