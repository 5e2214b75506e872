"""A fixture that counts the replays of a test."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from torchpeek.engine.replay.suffix import Replay


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each replay had: a test that meant to see one sees none where whole passes were taken."""
    seen: list[int] = []
    known = Replay.output

    def counted(self: Any, changed: Tensor, *given: Any, **options: Any) -> Any:
        seen.append(len(changed))
        return known(self, changed, *given, **options)

    monkeypatch.setattr(Replay, "output", counted)
    return seen
