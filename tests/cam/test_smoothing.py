"""Smoothing: the mean over mirrored and scaled versions of the picture."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks import PooledNet, TwoGrids
from networks.split import X
from torchpeek.errors import OptionError


class TestSmoothing:
    def test_is_the_mean_over_the_versions(self, grids: TwoGrids) -> None:
        how = tp.Smoothing(factors=(0.5, 1.0))
        heatmap = tp.explain(grids, X, layer="coarse", target=1, smooth=how)
        parts = [
            tp.explain(grids, version * factor, layer="coarse", target=1).values.flip(axes)
            for factor in (0.5, 1.0)
            for version, axes in ((X, []), (X.flip(-1), [-1]))
        ]
        torch.testing.assert_close(heatmap.values, torch.stack(parts).mean(0))
        assert heatmap.provenance.steps == ("the mean over mirrored and not, inputs times 0.5, 1",)
        torch.testing.assert_close(heatmap.scores, tp.explain(grids, X, layer="coarse", target=1).scores)

    def test_the_question_is_the_clean_pictures(self, grids: TwoGrids) -> None:
        """Also where the prediction of a version is another."""
        clean = tp.explain(grids, X, layer="coarse")
        smooth = tp.explain(grids, X, layer="coarse", smooth=tp.Smoothing(factors=(-5.0 * -1, 0.01)))
        assert torch.equal(smooth.question.labels, clean.question.labels)

    def test_of_a_mirrored_picture_it_is_the_mirrored_map(self, grids: TwoGrids) -> None:
        one, other = (
            tp.explain(grids, x, layer="coarse", target=1, smooth=tp.Smoothing()).values for x in (X, X.flip(-1))
        )
        torch.testing.assert_close(one, other.flip(-1))

    @pytest.mark.parametrize("method", ["scorecam", "ablationcam", "cam"])
    def test_with_other_methods(self, method: str) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method=method, layer="act", target=2, smooth=tp.Smoothing(flip=False))
        parts = [
            tp.explain(model, X * factor, method=method, layer="act", target=2).values for factor in (0.9, 1.0, 1.1)
        ]
        torch.testing.assert_close(heatmap.values, torch.stack(parts).mean(0))

    def test_bad_requests(self, grids: TwoGrids) -> None:
        with pytest.raises(OptionError, match=r"smooth is True; allowed: tp.Smoothing\(\), or None"):
            tp.explain(grids, X, smooth=True)  # type: ignore[call-overload]
        for factors in ((), "1", (0.0,), 1.0):
            with pytest.raises(OptionError, match="factors"):
                tp.Smoothing(factors=factors)  # type: ignore[arg-type]
