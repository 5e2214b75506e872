"""The progress bar: shown for what takes long, on a terminal only."""

from __future__ import annotations

import sys
import time

import pytest

from torchpeek.progress import progress


class Terminal:
    """Stands for a terminal that can be read."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


class TestProgress:
    @pytest.fixture
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> Terminal:
        from torchpeek.progress import console

        monkeypatch.setenv("TERM", "xterm")
        console.cache_clear()
        yield Terminal()
        console.cache_clear()

    def test_shows_what_takes_long(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with progress("changed inputs", 100) as advance:
            for _ in range(30):
                now[0] += 0.1
                advance(1)
        assert "changed inputs" in terminal.text
        assert "/100" in terminal.text

    def test_says_nothing_of_what_does_not(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with progress("changed inputs", 10) as advance:
            for _ in range(10):
                now[0] += 0.15
                advance(1)
        assert terminal.text == ""

    def test_nor_where_nobody_watches(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        with progress("changed inputs", 10) as advance:
            for _ in range(10):
                now[0] += 5
                advance(1)
        assert capsys.readouterr() == ("", "")

    def test_stops_with_an_exception(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with pytest.raises(KeyboardInterrupt), progress("changed inputs", 100) as advance:
            for _ in range(10):
                now[0] += 1
                advance(1)
            raise KeyboardInterrupt
        with progress("again", 100) as advance:  # a bar that had stayed would not let this one be
            for _ in range(10):
                now[0] += 1
                advance(1)
        assert "again" in terminal.text


def test_a_notebook_without_ipywidgets_shows_nothing_and_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would warn in the cell, and show nothing either."""
    import torchpeek.progress as module

    class Notebook:
        is_jupyter, is_terminal = True, False

        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"rich has used the notebook: {name}")

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "console", Notebook)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "IPython", module)
    with progress("changed inputs", 100) as advance:
        for _ in range(30):
            now[0] += 0.1
            advance(1)
