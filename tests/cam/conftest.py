"""A network with two grids, for methods that combine layers."""

from __future__ import annotations

import pytest

from networks import TwoGrids


@pytest.fixture
def grids() -> TwoGrids:
    return TwoGrids().double().eval()
