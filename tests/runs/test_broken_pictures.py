"""Broken, huge and odd files among good pictures: every good one is done, and every other one is named."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from run_data import colour_model, write_pictures
from torchpeek.runs.api import run

GOOD = 400
FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga")


def _encoded(form: str, number: int) -> bytes:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, form)
    return file.getvalue()


def _huge_png() -> bytes:
    """A header that promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def _broken(number: int) -> tuple[str, bytes]:
    """An ending and contents that are no picture."""
    form = FORMATS[number % len(FORMATS)]
    whole = _encoded(form, number)
    makers = (
        lambda: (form, b""),
        lambda: (form, whole[: max(1, len(whole) // 50)]),
        lambda: (form, b"\0" * 500),
        lambda: (form, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        lambda: (form, b"<html>not found</html>"),
        lambda: ("png", _huge_png()),
        lambda: ("jpeg", _encoded("jpeg", number)[:200]),
        lambda: ("png", _encoded("png", number)[:400]),
    )
    return makers[number // len(FORMATS) % len(makers)]()


def test_four_hundred_done_and_two_hundred_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", GOOD)
    broken = set()
    for number in range(200):
        ending, contents = _broken(number)
        key = f"red/broken-{number:03d}.{ending}"
        (tmp_path / "data" / key).write_bytes(contents)
        broken.add(key)
    found = run(colour_model(), tmp_path / "data", tmp_path / "out", methods=["gradcam"], batch=16, workers=1)
    done = {row[0] for row in found.sql("select key from heatmaps").fetchall()}
    errors = found.errors.fetchall()
    assert len(done) == GOOD
    assert not done & broken
    assert {row[0] for row in errors} == broken
    assert len(errors) == 200
    assert Counter(row[2] for row in errors) == {"decode": 200}
    assert all(row[4] for row in errors)


def test_odd_pictures_are_done(tmp_path: Path) -> None:
    """Formats and forms that people have: modes, transparency, EXIF, one pixel, 16 bits, animations, odd names."""
    folder = tmp_path / "data"
    folder.mkdir()
    colours = Image.new("RGB", (40, 30), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(folder / "turned.jpg", exif=exif)
    for name, mode in (("one.png", "1"), ("la.png", "LA"), ("p.gif", "P"), ("i16.png", "I;16"), ("cmyk.jpg", "CMYK")):
        (Image.new(mode, (40, 30)) if mode == "I;16" else colours.convert(mode)).save(folder / name)
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (3000, 2)).save(folder / "long.png")
    colours.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
    colours.save(folder / "ümläut 猫 'quoted\" \\back.png")
    names = sorted(path.name for path in folder.iterdir())
    found = run(colour_model(), folder, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
    assert found.errors.fetchall() == []
    assert sorted(row[0] for row in found.sql("select key from heatmaps").fetchall()) == names
    for name in names:
        assert found.heatmap(name, "gradcam").values.shape == (1, 1, 8, 8)
        assert found.picture(name).image.mode == "RGB"
