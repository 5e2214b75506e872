"""Colormaps against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from torchpeek.render import COLORMAPS


class TestColormaps:
    @pytest.mark.parametrize("name", ["viridis", "inferno", "turbo"])
    def test_are_the_well_known_ones(self, name: str) -> None:
        matplotlib = pytest.importorskip("matplotlib")
        theirs = np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255)
        assert np.array_equal(COLORMAPS[name], theirs)

    def test_jet(self) -> None:
        """Dark blue, blue, cyan, yellow, red, dark red, an eighth and three eighths from either end."""
        at = COLORMAPS["jet"][[0, 32, 96, 159, 223, 255]].astype(int)
        expected = [[0, 0, 128], [0, 0, 255], [0, 255, 255], [255, 255, 0], [255, 0, 0], [128, 0, 0]]
        assert np.abs(at - expected).max() <= 5

    @pytest.mark.parametrize("name", ["viridis", "inferno"])
    def test_lightness_only_rises(self, name: str) -> None:
        linear = (COLORMAPS[name] / 255.0) ** 2.2
        assert (np.diff(linear @ [0.2126, 0.7152, 0.0722]) > -1e-3).all()

    def test_diverging_is_blue_grey_red(self) -> None:
        table = COLORMAPS["diverging"].astype(int)
        assert table[0, 2] > table[0, 0] + 60
        assert table[-1, 0] > table[-1, 2] + 60
        assert np.ptp(table[127]) <= 6
        assert table[127].min() > 220
        lightness = (table / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722]
        assert abs(lightness[0] - lightness[-1]) < 0.06
        assert (np.diff(lightness[:128]) > -1e-4).all()
        assert (np.diff(lightness[128:]) < 1e-4).all()
