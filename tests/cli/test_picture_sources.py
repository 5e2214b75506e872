"""Where pictures come from: standard input, lists, and folders with files of all kinds."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from cli_runner import CHELSEA, files, run, strict

MODEL = ["--model", "my_nets:make"]
COMMANDS = {
    "cam": ["--out", "out"],
    "evaluate": ["--metric", "sparseness"],
    "features": [],
    "gradients": [],
}


class Stdin:
    """Standard input with these bytes."""

    closed = False

    def __init__(self, data: bytes, *, terminal: bool = False) -> None:
        self.buffer, self._terminal = io.BytesIO(data), terminal

    def isatty(self) -> bool:
        return self._terminal


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes, **more: bool) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(data, **more))


@pytest.mark.parametrize("command", COMMANDS)
class TestStandardInput:
    def test_a_picture(self, command: str, place: Path, capsys, monkeypatch) -> None:
        pipe(monkeypatch, Path(CHELSEA).read_bytes())
        assert run(command, "-", *MODEL, *COMMANDS[command]) == 0
        out = capsys.readouterr().out
        if command == "cam":
            assert {name for name in files(Path("out")) if name.startswith("stdin/")}
        if command in ("cam", "features"):
            assert out.splitlines()[1].startswith("stdin  ")

    def test_a_list(self, command: str, place: Path, capsys, monkeypatch) -> None:
        for data in (b"pictures/a.png\npictures/b.png\n", b"pictures/a.png\0pictures/b.png\0", b"pictures\r\n"):
            pipe(monkeypatch, data)
            extra = ["--overwrite"] if command == "cam" else []
            assert run(command, "--from", "-", *MODEL, *COMMANDS[command], *extra) == 0

    @pytest.mark.parametrize(
        ("words", "data", "message"),
        [
            (["-"], b"", '"-" reads a picture from standard input, which is empty'),
            (["--from", "-"], b"", "--from - reads a list of paths from standard input, which is empty"),
            (["-"], b"pictures/a.png\n", "a list of paths is read by --from -"),
            (["--from", "-"], b"\n\n", "standard input names no picture"),
            (["-", "--from", "-"], b"x", "both read standard input"),
            (["--from", "-"], Path(CHELSEA).read_bytes(), "standard input is a picture"),
            (["--from", CHELSEA], b"", "is a picture; give it as"),
            ([""], b"", "is empty; allowed: a command, or the path of a picture"),
            (["pictures", ""], b"", "is empty; allowed: a command, or the path of a picture"),
            (["--from", "nowhere.txt"], b"", "the list cannot be opened (no such file or directory)"),
        ],
    )
    def test_mistakes(self, command: str, words, data, message, place: Path, capsys, monkeypatch) -> None:
        pipe(monkeypatch, data)
        assert run(command, *words, *MODEL) == 2
        assert message in capsys.readouterr().err

    def test_a_terminal(self, command: str, place: Path, capsys, monkeypatch) -> None:
        pipe(monkeypatch, b"", terminal=True)
        for words in (["-"], ["--from", "-"]):
            assert run(command, *words, *MODEL) == 2
            assert "from standard input, which is a terminal" in capsys.readouterr().err

    def test_bytes_that_are_no_picture(self, command: str, place: Path, capsys, monkeypatch) -> None:
        pipe(monkeypatch, b"\x00\xff\xfe" * 9)
        assert run(command, "-", *MODEL, *COMMANDS[command]) == 1
        assert "skipped stdin: not a picture" in capsys.readouterr().out


def test_the_picture_is_that_of_the_file(place: Path, monkeypatch) -> None:
    pipe(monkeypatch, Path(CHELSEA).read_bytes())
    assert run("cam", "-", *MODEL, "--max-size", "100", "--out", "piped") == 0
    assert run("cam", CHELSEA, *MODEL, "--max-size", "100", "--out", "named") == 0
    piped, named = (strict((Path(name) / "results.json").read_text())["pictures"][0] for name in ("piped", "named"))
    assert piped["picture"] == "stdin"
    assert piped["predictions"] == named["predictions"]
    assert piped["notes"] == named["notes"]
    pictures = [next(Path(name).glob("*/gradcam*.png")) for name in ("piped/", "named/")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].parent.name == "stdin"


def test_layers_of_a_picture_from_standard_input(place: Path, capsys, monkeypatch) -> None:
    pipe(monkeypatch, Path(CHELSEA).read_bytes())
    assert run("layers", *MODEL, "--picture", "-") == 0


def test_a_list_keeps_its_paths_as_they_are(place: Path, capsys) -> None:
    (place / "b[1].png").write_bytes(Path(CHELSEA).read_bytes())
    (place / " with spaces .png").write_bytes(Path(CHELSEA).read_bytes())
    (place / "list.txt").write_text("\ufeffb[1].png\n with spaces .png\n  pictures/a.png  \nmissing[1].png\n")
    assert run("features", "--from", "list.txt", "pictures/b.png", *MODEL) == 1
    out = capsys.readouterr().out
    assert "skipped missing[1].png: cannot be opened (no such file or directory)" in out
    assert all(name in out for name in ("b[1].png", " with spaces .png", "pictures/a.png", "pictures/b.png"))
    assert "1 of 5 pictures skipped" in out


def test_a_list_of_powershell(place: Path, capsys) -> None:
    (place / "list.txt").write_bytes("pictures/a.png\r\npictures/b.png\r\n".encode("utf-16"))
    assert run("features", "--from", "list.txt", *MODEL) == 0
    out = capsys.readouterr().out
    assert "pictures/a.png" in out
    assert "pictures/b.png" in out


def test_a_name_with_a_line_break_is_one_line(place: Path, capsys) -> None:
    (place / "two\nlines.png").write_bytes(b"")
    assert run("features", "two\nlines.png", "pictures/a.png", *MODEL, "--out", "an\nout") == 1
    out = capsys.readouterr().out
    assert "skipped two\\nlines.png: not a picture" in out
    assert "written to an\\nout/: " in out


class TestFolders:
    def test_what_is_no_picture_is_named(self, place: Path, capsys) -> None:
        folder = place / "pictures"
        (folder / "notes.txt").write_text("x")
        (folder / "scan.pdf").write_bytes(b"%PDF")
        (folder / ".hidden").write_text("x")
        (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        (folder / "upload.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        (folder / "empty.png").write_bytes(b"")
        os.symlink("nowhere.png", folder / "broken.png")
        assert run("features", "pictures", *MODEL) == 1
        out, err = capsys.readouterr()
        assert "pictures: 2 files are left out, because the suffix is not of a picture: 'notes.txt', 'scan.pdf'" in err
        heic = "HEIC, which Pillow reads with pillow-heif. Next: pip install 'torchpeek[heif]'"
        if "pillow_heif" not in sys.modules:
            assert f"skipped pictures/phone.HEIC: {heic}" in out
            assert f"skipped pictures/upload.jpg: {heic}" in out
        assert "skipped pictures/empty.png: not a picture, because the file is empty" in out
        assert "skipped pictures/broken.png: a broken link, to nowhere.png" in out

    def test_a_broken_link_that_a_glob_matches(self, place: Path, capsys) -> None:
        os.symlink("nowhere.png", place / "pictures" / "z.png")
        assert run("features", "pictures/*.png", *MODEL) == 1
        assert "skipped pictures/z.png: a broken link, to nowhere.png" in capsys.readouterr().out

    def test_a_folder_without_pictures_says_what_it_has(self, place: Path, capsys) -> None:
        (place / "none" / "inner").mkdir(parents=True)
        (place / "none" / "notes.txt").write_text("x")
        assert run("features", "none", *MODEL) == 2
        err = capsys.readouterr().err
        assert "it has 1 other files ('notes.txt'); the pictures of its 1 folders are named by 'none/*/*'" in err

    def test_a_folder_that_cannot_be_read(self, place: Path, capsys, monkeypatch) -> None:
        def refuse(self: Path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        assert run("features", "pictures", *MODEL) == 2
        assert "pictures: the folder cannot be read (permission denied)" in capsys.readouterr().err

    def test_heic_is_read_where_the_package_is_installed(self, place: Path, capsys, monkeypatch) -> None:
        """A plugin that takes the place of pillow-heif, which need not be installed."""
        from torchpeek.store import picture_formats

        data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
        (place / "pictures" / "phone.heic").write_bytes(data)

        class Plugin:
            @staticmethod
            def register_heif_opener() -> None:
                def opened(file, name):
                    file.close()
                    return Image.new("RGB", (20, 10), "red")

                Image.register_open("FAKEHEIF", opened, lambda prefix: prefix[4:12] == b"ftypheic")

        monkeypatch.setitem(sys.modules, "pillow_heif", Plugin)
        picture_formats._plugins.cache_clear()
        try:
            assert run("features", "pictures/phone.heic", *MODEL) == 0
        finally:
            Image.OPEN.pop("FAKEHEIF", None)
            if "FAKEHEIF" in Image.ID:
                Image.ID.remove("FAKEHEIF")
            picture_formats._plugins.cache_clear()
