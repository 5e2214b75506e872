"""Checkpoints of transformers, written to a folder; no network."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is read without one."""
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a network call"))


@pytest.fixture(scope="module")
def quiet_transformers() -> Any:
    transformers = pytest.importorskip("transformers")
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model, and what else belongs to its checkpoint, to a folder."""

    def save(*parts: Any, **config: Any) -> Path:
        folder = tmp_path / "checkpoint"
        for part in parts:
            part.save_pretrained(folder)
        said = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({key: each for key, each in said.items() if each is not None}))
        return folder

    return save
