"""Reading pictures: formats, orientations, damaged files; finding files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from torchpeek.errors import PictureError
from torchpeek.store import find_pictures, read_image, upright_rgb


def halves() -> Image.Image:
    """Left red, right blue, 40 x 20."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


class TestReading:
    def test_plain(self, tmp_path: Path) -> None:
        halves().save(tmp_path / "a.png")
        image, notes, _ = read_image(tmp_path / "a.png")
        assert (image.mode, image.size, notes) == ("RGB", (40, 20), ())

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        """However the camera was held, upright is upright: red left, blue right."""
        turned = {
            1: lambda i: i,
            2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
            4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
            6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
            7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
            8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
        }[orientation](halves())
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.save(tmp_path / "a.png", exif=exif)
        image, notes, _ = read_image(tmp_path / "a.png")
        assert image.size == (40, 20)
        assert image.getpixel((5, 10)) == (255, 0, 0)
        assert image.getpixel((35, 10)) == (0, 0, 255)
        assert bool(notes) == (orientation != 1)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "F", "I;16"])
    def test_modes(self, mode: str) -> None:
        """Dark left and bright right, whatever it is stored as."""
        grey = Image.new("L", (40, 20), 20)
        grey.paste(220, (20, 0, 40, 20))
        if mode.startswith("I"):  # 16 bits, in either
            image = Image.fromarray(np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
        else:
            image = grey.convert(mode) if mode in ("1", "L", "F") else grey.convert("RGB").convert(mode)
        assert image.mode == mode
        read, *_ = upright_rgb(image)
        assert (read.mode, read.size) == ("RGB", (40, 20))
        left, right = read.getpixel((5, 10)), read.getpixel((35, 10))
        assert max(left) < 60
        assert min(right) > 160

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 25700], [32896, 65535]], np.uint16)).save(tmp_path / "a.png")
        image, notes, _ = read_image(tmp_path / "a.png")
        assert np.asarray(image)[..., 0].tolist() == [[0, 100], [128, 255]]
        assert "8 bits" in notes[0]

    def test_transparency_is_laid_on_white(self, tmp_path: Path) -> None:
        clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        clear.putpixel((1, 0), (0, 255, 0, 255))
        clear.save(tmp_path / "a.png")
        image, notes, _ = read_image(tmp_path / "a.png")
        assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(255, 255, 255), (0, 255, 0)]
        assert notes == ("transparency laid on white",)

    def test_an_animation_gives_its_first_frame(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        image, notes, _ = read_image(tmp_path / "a.gif")
        assert image.getpixel((3, 3)) == (255, 0, 0)
        assert notes[0] == "first of 3 frames"

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        halves().convert("CMYK").save(tmp_path / "a.jpg")
        image, notes, _ = read_image(tmp_path / "a.jpg")
        red, _, blue = image.getpixel((5, 10))
        assert red > 150 > blue
        assert notes == ("converted from CMYK",)

    def test_broken_files_are_named(self, tmp_path: Path, photograph: Path) -> None:
        (tmp_path / "cut.png").write_bytes(photograph.read_bytes()[:9000])
        (tmp_path / "text.jpg").write_text("not a picture")
        (tmp_path / "empty.jpg").touch()
        for name, words in [
            ("cut.png", "damaged or truncated"),
            ("text.jpg", "not a picture"),
            ("empty.jpg", "not a picture"),
            ("missing.png", "cannot be opened .no such file"),
            ("x" * 300, "cannot be opened .file name too long"),
        ]:
            with pytest.raises(PictureError, match=f"{name}: {words}"):
                read_image(tmp_path / name)
        with pytest.raises(PictureError, match="is a directory"):
            read_image(tmp_path)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "DDS"])
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_files_damaged_anywhere(self, tmp_path: Path, kind: str, data) -> None:
        """They are read, or refused by name; nothing else comes out."""
        packed = io.BytesIO()
        halves().save(packed, kind)
        content = bytearray(packed.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "a").write_bytes(content[: data.draw(st.integers(1, len(content)))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks
            try:
                image, *_ = read_image(tmp_path / "a")
            except PictureError as error:
                refused = str(error)
            else:
                refused = ""
                assert image.mode == "RGB"
        assert not refused or refused.startswith(str(tmp_path / "a"))

    @pytest.mark.parametrize("side", [10_000, 16_000])
    def test_bombs(self, tmp_path: Path, side: int) -> None:
        """A few kilobytes that unpack to 100 or 256 megapixels: Pillow warns of the one and refuses the other."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        rows = zlib.compress(bytes((side // 8 + 1) * side))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(data)
        with pytest.raises(PictureError, match="decompression bomb"):
            read_image(tmp_path / "bomb.png")


class TestFinding:
    def test_files_folders_and_globs_each_once(self, in_folder: Path) -> None:
        for name in ("b.png", "a.JPG", "c.txt", "sub/d.png"):
            (in_folder / name).parent.mkdir(exist_ok=True)
            (in_folder / name).touch()
        assert [path.name for path in find_pictures([str(in_folder)])] == ["a.JPG", "b.png"]
        assert [str(path) for path in find_pictures(["*.png", "b.png", "c.txt"])] == ["b.png", "c.txt"]
        assert [path.name for path in find_pictures(["**/*.png"])] == ["b.png", "d.png"]
        assert find_pictures(["missing.png"]) == [Path("missing.png")]  # to be reported when it is read

    def test_nothing_there(self, in_folder: Path) -> None:
        (in_folder / "empty").mkdir()
        with pytest.raises(PictureError, match="no pictures in this folder"):
            find_pictures(["empty"])
        with pytest.raises(PictureError, match="matches no file"):
            find_pictures(["*.png"])

    def test_a_file_with_glob_characters_in_its_name(self, in_folder: Path) -> None:
        (in_folder / "a[1].png").touch()
        assert find_pictures(["a[1].png"]) == [Path("a[1].png")]
