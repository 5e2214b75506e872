"""A file that the user names is a regular file, or an error that names it; opening one never waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchpeek as tp
from torchpeek.errors import FormatError, PictureError, TorchpeekError
from torchpeek.models import weights
from torchpeek.models.weights import load_weights_file
from torchpeek.store import find_pictures, open_regular, read_boxes, read_class_names, read_image, read_mask
from torchpeek.store.regular_files import read_regular

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs on this system")


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_a_fifo(path: Path) -> Path:
    os.mkfifo(path.with_name("behind"))
    path.symlink_to(path.with_name("behind"))
    return path


def unix_socket(path: Path) -> Path:
    """Its path is relative, because a socket's has at most 108 bytes."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)
    return path


def link_to_a_device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def broken_link(path: Path) -> Path:
    path.symlink_to("nothing")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


UNREADABLE = {
    fifo: "a FIFO",
    link_to_a_fifo: "a FIFO",
    unix_socket: "a socket",
    link_to_a_device: "a device",
    broken_link: "a broken link, to nothing",
    folder: "is a directory",
}


def stream_with(path: Path) -> tp.TensorStream:
    """A stream in which a tensor has the place of the path."""
    path.rename(path.with_name("00000000-cat.png-.safetensors"))
    return tp.TensorStream.opened(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "picture": read_image,
    "mask": read_mask,
    "classes": read_class_names,
    "boxes": read_boxes,
    "weights": lambda path: load_weights_file(nn.Linear(1, 1), path),
    "heatmap": tp.load,
    "tensor of a stream": lambda path: list(stream_with(path)),
}


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits(tmp_path: Path, make: Callable[[Path], Path], reader: str) -> None:
    """Each of these waited forever for the writer of a FIFO."""
    path = make(tmp_path / "cat.png")
    with pytest.raises(TorchpeekError) as raised:
        READERS[reader](path)
    assert "cat.png" in str(raised.value)
    assert UNREADABLE[make] in str(raised.value)


def test_a_file_that_becomes_a_fifo_after_it_was_looked_at(tmp_path: Path, monkeypatch) -> None:
    """What counts is what was opened."""
    path, looked_at = fifo(tmp_path / "cat.png"), tmp_path / "regular"
    looked_at.touch()
    status = os.stat(looked_at)
    monkeypatch.setattr(os, "stat", lambda *_args, **_more: status)
    with pytest.raises(FormatError, match="a FIFO"):
        open_regular(path)


def test_an_open_pipe_is_read_whole() -> None:
    """As a shell names the output of a command: cam <(command)."""
    end, start = os.pipe()
    os.write(start, b"some bytes")
    os.close(start)
    with open_regular(f"/dev/fd/{end}") as file:
        assert file.read() == b"some bytes"
        assert file.seek(0) == 0
    os.close(end)


def test_files_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100))
    assert read_regular(tmp_path / "large", most=100) == bytes(100)
    with pytest.raises(FormatError, match="has 100 bytes; allowed: at most 99"):
        read_regular(tmp_path / "large", most=99)
    if os.path.exists("/proc/self/maps"):
        with pytest.raises(FormatError, match="has no size"):
            read_regular("/proc/self/maps")


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"ab")
    fstat = os.fstat

    def grows(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        with open(path, "ab") as file:
            file.write(b"more")
        return status

    monkeypatch.setattr(os, "fstat", grows)
    with pytest.raises(FormatError, match="grew while it was read"):
        read_regular(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_opened_once(tmp_path: Path, monkeypatch, suffix: str) -> None:
    """What was looked at is what is read, also where another file takes its name meanwhile."""
    path, module = tmp_path / f"weights{suffix}", nn.Linear(2, 3)
    save = save_file if suffix == ".safetensors" else torch.save
    save(module.state_dict(), path)
    opened = weights.open_regular

    def then_replaced(path: Path, *more: Any) -> Any:
        file = opened(path, *more)
        path.unlink()
        os.mkfifo(path)
        return file

    monkeypatch.setattr(weights, "open_regular", then_replaced)
    loaded = nn.Linear(2, 3)
    load_weights_file(loaded, path)
    assert torch.equal(loaded.weight, module.weight)
    assert torch.equal(loaded.bias, module.bias)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="open files have no names")
def test_weights_from_a_command(tmp_path: Path) -> None:
    """As a shell names its output: --weights <(command)."""
    end, start = os.pipe()
    module, loaded = nn.Linear(2, 3), nn.Linear(2, 3)
    with open(start, "wb") as file:
        torch.save(module.state_dict(), file)
    load_weights_file(loaded, Path(f"/dev/fd/{end}"))
    os.close(end)
    assert torch.equal(loaded.weight, module.weight)


def test_a_name_with_a_nul() -> None:
    with pytest.raises(PictureError, match="null byte"):
        read_image("cat\0.png")


def test_a_fifo_in_a_folder_is_named_and_not_ignored(tmp_path: Path) -> None:
    fifo(tmp_path / "cat.png")
    assert find_pictures([str(tmp_path)]) == [tmp_path / "cat.png"]


def test_the_error_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"/a: is a FIFO; allowed: a regular file\. Next: copy its content to one$"):
        open_regular(fifo(tmp_path / "a"))
    with pytest.raises(FormatError, match=rf"^{tmp_path}: is a directory; allowed: a regular file$"):
        open_regular(tmp_path)
