"""A TimeoutError of an alarm is an OSError, and no error of a file."""

from __future__ import annotations

import ast
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

import torchpeek as tp
from outside_exceptions import SOURCE
from torchpeek.errors import WeightsError
from torchpeek.interrupts import interruptible, uninterrupted
from torchpeek.models.fetching import fetched
from torchpeek.signal_gate import finalised, is_of_handler
from torchpeek.store.folder import OutputFolder
from torchpeek.store.pictures import read_image
from torchpeek.system_errors import ignored, is_from_outside, is_of_library, is_of_system


def _raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as info:
        call()
    return info.value


def _timed_out_socket() -> None:
    left, right = socket.socketpair()
    with left, right, left.makefile("rb") as file:
        left.settimeout(0.001)
        file.read(1)


def _alarm(*_: object) -> None:
    raise TimeoutError("too long")


@contextmanager
def _handling(number: int, handler: Callable[..., Any]) -> Iterator[None]:
    former = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, former)


class _Handler:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise OSError(errno.EIO, "of a handler")

    def method(self, number: int, frame: FrameType | None) -> None:
        raise ValueError("of a handler")


@pytest.mark.parametrize(
    "handler",
    [_alarm, partial(_alarm, 1), _Handler(), _Handler().method],
    ids=["function", "partial", "object", "method"],
)
def test_exceptions_of_handlers(handler: Callable[..., Any]) -> None:
    with _handling(signal.SIGALRM, handler):
        error = _raised(lambda: signal.raise_signal(signal.SIGALRM))
        assert is_of_handler(error)
        assert is_from_outside(error)
        assert not is_of_system(error)
        assert not is_of_library(error)
        gated = _raised(lambda: _in_block(lambda: signal.raise_signal(signal.SIGALRM)))
        assert is_of_handler(gated)
        other = RuntimeError("because of it")
        other.__cause__ = error
        assert is_of_handler(other)
        # The caller handles the exception of a handler, and another one is raised meanwhile.
        other.__cause__, other.__context__ = None, error
        assert not is_of_handler(other)
    assert not is_of_handler(_raised(lambda: os.stat("/no such file")))


def _in_block(call: Callable[[], Any]) -> None:
    with uninterrupted(), interruptible():
        call()


def test_errors_of_the_system_have_a_number() -> None:
    assert is_of_system(_raised(lambda: os.stat("/no such file")))
    assert is_of_system(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_of_system(TimeoutError("too long"))
    assert not is_of_system(tp.errors.FileError("of torchpeek"))
    assert not is_of_system(ValueError())


def test_errors_of_libraries() -> None:
    assert is_of_library(URLError("unreachable"))
    assert is_of_library(OSError("no file named pytorch_model.bin"))
    assert is_of_library(_raised(lambda: os.stat("/no such file")))
    assert is_of_library(_raised(_timed_out_socket))
    assert is_of_library(TimeoutError("timed out"))
    assert not is_of_library(OSError())
    assert not is_of_library(ValueError())


def test_what_is_ignored() -> None:
    with ignored():
        os.stat("/no such file")
    with pytest.raises(TimeoutError), ignored():
        _alarm()
    with pytest.raises(FileNotFoundError), ignored(FileExistsError):
        os.stat("/no such file")


def test_a_fetch_that_times_out() -> None:
    with pytest.raises(WeightsError):
        fetched("resnet18", _timed_out_socket)
    with _handling(signal.SIGALRM, _alarm), pytest.raises(TimeoutError):
        fetched("resnet18", lambda: signal.raise_signal(signal.SIGALRM))


def _saved(folder: Path) -> Callable[[], Any]:
    file = folder / "heatmap.safetensors"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    tp.save(tp.explain(model, torch.ones(1, 3, 8, 8), layer="1", target=1), file)
    return lambda: tp.load(file)


def _written(folder: Path) -> Callable[[], Any]:
    def write() -> None:
        output = OutputFolder.prepared(folder / "output", overwrite=True)
        try:
            output.write("a/b.txt", b"text")
            output.delete("a/b.txt")
        finally:
            output.close()

    return write


def _picture(folder: Path) -> Callable[[], Any]:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return lambda: read_image(folder / "picture.png")


# A file that an exception leaves open is closed when nothing refers to it any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("make", [_saved, _written, _picture])
def test_an_alarm_at_every_line(make: Callable[[Path], Callable[[], Any]], tmp_path: Path) -> None:
    call = make(tmp_path)
    call()
    number = 1
    with _handling(signal.SIGALRM, _alarm):
        while _alarmed_at_line(call, number):
            number += 1
    assert number > 30


def _alarmed_at_line(call: Callable[[], Any], number: int) -> bool:
    """Call, with an alarm at the line of torchpeek with this number. Whether there was one."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        # In a finalizer, Python drops every exception.
        if not frame.f_code.co_filename.startswith(SOURCE) or _is_in_finalizer(frame):
            return None
        count += event == "line"
        if event == "line" and count == number:
            signal.raise_signal(signal.SIGALRM)
        return trace

    former = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except TimeoutError:
        return True
    finally:
        sys.settrace(former)
    assert count < number, "the TimeoutError was swallowed"
    return False


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not finalised.__code__:
        frame = frame.f_back
    return frame is not None


def test_every_clause_asks_which_oserror_it_is() -> None:
    for file in sorted(Path(SOURCE).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler) and "OSError" in _names(node.type):
                assert _names(node) & {"is_of_system", "is_of_library"}, f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and "suppress" in _names(node.func):
                assert "OSError" not in _names(node), f"{file}:{node.lineno}"


def _names(tree: ast.AST | None) -> set[str]:
    return set() if tree is None else {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
