"""Paths and JSON lines from standard input."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from images import noise
from torchpeek.errors import FormatError, InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import Source, source_of, stored_source


def from_input(monkeypatch: pytest.MonkeyPatch, text: bytes) -> Source:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    return source_of("-", ["cat", "dog"])


def test_paths_and_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a b.png", "c.png"):
        noise((8, 8)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path / "in")
    absolute = tmp_path / "in" / "c.png"
    source = from_input(monkeypatch, f'a b.png\r\n\n{{"path": "{absolute}", "label": "dog"}}\n'.encode())
    samples = list(source.samples())
    assert samples == [Sample("a b.png"), Sample(str(absolute), label=1, label_name="dog")]
    assert source.labels_from == "standard input has class names"
    monkeypatch.chdir("/")
    for reader in (source, pickle.loads(pickle.dumps(source)), stored_source(source.description)):
        assert reader.read(samples[0]) == reader.read(samples[1]) == absolute.read_bytes()
    with pytest.raises(PictureError, match="inside of"):
        reader.read(Sample("x", "/etc/passwd"))
    with pytest.raises(InputError, match="give them again"):
        list(stored_source(source.description).samples())


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"\n\n", InputError, "has no paths"),
        (b'a.png\n{"label": 1}\n', InputError, "line 2: has no path"),
        (b'{"path": \n', FormatError, "line 1"),
        (b'{"path": "a.png", "label": 5}\n', InputError, "no class 5"),
    ],
)
def test_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch, text: bytes, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        list(from_input(monkeypatch, text).samples())


def test_a_list_of_paths_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise((8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    source = source_of([tmp_path / "a.png", "a.png"], None)
    assert [source.read(each) for each in source.samples()] == [(tmp_path / "a.png").read_bytes()] * 2
