"""A disk that is full, a folder that is moved, and links, in every command that writes."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cli_runner import files, of, run
from torchpeek.errors import FolderError
from torchpeek.store import OutputFolder
from torchpeek.store import folder as folder_of_store

COMMANDS = {
    "cam": (("cam", "pictures", "--method", "cam"), "results.json", "pictures"),
    "features": (("features", "pictures", "--layer", "act"), "features.json", "features"),
    "kernels": (("kernels",), "kernels.json", "layers"),
    "gradients": (("gradients", "pictures"), "gradients.json", "gradients"),
    "evaluate": (("evaluate", "pictures", "--metric", "sparseness", "--method", "cam"), "results.json", "pictures"),
    "layers": (("layers",), "layers.json", "layers"),
}
FILES = ("overlay", "heatmap", "mosaic", "drawn", "picture", "plot", "curves", "table", "first", "weights", "report")


def paths(value: Any) -> set[str]:
    """The files in the output folder that results name."""
    match value:
        case dict():
            own = {each for key, each in value.items() if key in FILES and str(each).startswith("out/")}
            return own.union(*map(paths, value.values()))
        case list():
            return set().union(*map(paths, value))
    return set()


@pytest.fixture
def spare(tmp_path: Path, monkeypatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    return tmp_path / "spare"


@pytest.mark.parametrize("command", COMMANDS)
def test_full_at_each_file(command: str, place, spare, capsys, monkeypatch) -> None:
    """Whichever file does not fit, it is named, and the results of what was done are saved and name no missing file."""
    words, name, entries = COMMANDS[command]
    write, written = folder_of_store.write_whole, []
    words = (*words, *of("pooled"), "-o", "out")

    def counting(path: Path, *more: Any) -> None:
        written.append(path)
        if len(written) == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *more)

    monkeypatch.setattr(folder_of_store, "write_whole", counting)
    full_at = 0
    assert run(*words) == 0
    count = len(written)
    capsys.readouterr()
    for full_at in range(1, count + 1):
        written.clear()
        for file in spare.glob("torchpeek-*"):
            file.unlink()
        OutputFolder.prepared("out", overwrite=True)
        for file in files(place / "out"):
            (place / "out" / file).unlink()
        assert run(*words, "--overwrite") == 2
        err = capsys.readouterr().err
        assert f"error: {written[full_at - 1]}: cannot be written (no space left on device)" in err
        saved = [*spare.glob(f"torchpeek-*-{name}")]
        if (place / "out" / name).exists():
            saved.append(place / "out" / name)
        elif not saved:
            assert command in ("cam", "features"), "no picture was complete"
            assert written[full_at - 1].parent.name == "a", written[full_at - 1]
            assert not files(place / "out")
            continue
        for file in saved:
            results = json.loads(file.read_text())
            assert isinstance(results[entries], list)
            if file.parent.name == "out":
                assert {each for each in paths(results) if each != "out/report.html"} <= {
                    f"out/{each}" for each in files(place / "out")
                }
            else:
                assert str(file) in err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_write_leaves_the_folder(command: str, place, capsys) -> None:
    """Every file and subfolder that the command writes is a link out of the folder."""
    words = (*COMMANDS[command][0], *of("pooled"), "-o")
    assert run(*words, "out") == 0
    (place / "aim").mkdir()
    (place / "linked").mkdir()
    for name in files(place / "out"):
        first = Path(name).parts[0]
        (place / "aim" / first).mkdir(exist_ok=True) if first != name else (place / "aim" / name).write_text("mine")
        if not (place / "linked" / first).is_symlink():
            (place / "linked" / first).symlink_to(place / "aim" / first)
    assert run(*words, "linked", "--overwrite") == 0
    assert files(place / "linked") == files(place / "out")
    assert not [file for file in (place / "linked").iterdir() if file.is_symlink()]
    assert all((place / "aim" / name).read_text() == "mine" for name in files(place / "aim"))
    assert not [file for file in (place / "aim").iterdir() if file.is_dir() and any(file.iterdir())]


@pytest.mark.parametrize("command", ["cam", "features", "evaluate"])
@pytest.mark.parametrize("happens", ["moved", "removed"])
def test_a_folder_that_goes_while_the_command_runs(
    command: str, happens: str, place, spare, capsys, monkeypatch
) -> None:
    from torchpeek.models import LoadedModel

    read = LoadedModel.read

    def until_b(loaded: LoadedModel, path: Any, **options: Any) -> Any:
        if "c.png" in str(path) and (place / "out").exists():
            if happens == "moved":
                os.rename("out", "else")
            else:
                import shutil

                shutil.rmtree("out")
        return read(loaded, path, **options)

    monkeypatch.setattr(LoadedModel, "read", until_b)
    words, name, entries = COMMANDS[command]
    batch = ("--batch-size", "1") if command == "cam" else ()
    assert run(*words, *batch, *of("pooled"), "-o", "out") == 2
    err = capsys.readouterr().err
    assert f"error: output folder 'out' was {happens}" in err
    assert not (place / "out").exists()
    saved = [place / "else" / name] if happens == "moved" and command != "evaluate" else [*spare.glob(f"*-{name}")]
    assert len(saved) == 1
    assert len(json.loads(saved[0].read_text())[entries]) == (3 if command == "evaluate" else 2)


def test_evaluate_deletes_only_its_own_files(place, capsys) -> None:
    """A curves.png that no earlier run has written is the user's."""
    (place / "out").mkdir()
    (place / "out" / "curves.png").write_bytes(b"mine")
    words = ("evaluate", "pictures/a.png", *of("pooled"), "--metric", "sparseness", "-o", "out", "--overwrite")
    for earlier in (None, "{", "[]", '{"curves": 3}', '{"curves": "out/curves.png"}', "[" * 100_000):
        if earlier is not None:
            (place / "out" / "results.json").write_text(earlier)
        assert run(*words) == 0
        assert (place / "out" / "curves.png").read_bytes() == b"mine"
        assert "mean curves" not in (place / "out" / "report.html").read_text()


def test_results_that_fit_nowhere(place, spare, capsys, monkeypatch) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_of_store, "write_whole", full)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert run("layers", *of("pooled"), "-o", "out") == 2
    err = capsys.readouterr().err
    assert "layers.json is lost: no other folder can be written either (no space left on device" in err
    with pytest.raises(FolderError):
        OutputFolder.prepared(place / "out").write("a", b"")
