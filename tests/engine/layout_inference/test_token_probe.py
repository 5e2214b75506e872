"""Token models that say nothing of their grid: the probe finds where the tokens of the grid are."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks.layouts import Undeclared
from torchpeek.errors import NoSpatialLayer

pytestmark = pytest.mark.usefixtures("one_thread")


class TestUndeclaredTokens:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("last", [True, False])
    def test_where_they_lie_is_seen(self, last: bool, norm_first: bool, seed: int) -> None:
        """Also where the first layer with tokens comes after attention, and whatever picture comes first."""
        torch.manual_seed(seed)
        model = Undeclared(last=last, norm_first=norm_first).eval()
        first = [torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32) > 0.5, torch.randn(2, 3, 32, 32)][seed % 3]
        for x in (first, torch.randn(1, 3, 32, 32)):
            found = tp.trace(model, x, layer="blocks.layers.0", target=1).at["blocks.layers.0"].layout
            assert str(found) == ("tokens 4x4+1" if last else "tokens 1+4x4")

    def test_one_between_is_a_question(self) -> None:
        torch.manual_seed(0)
        model = Undeclared(last=False, place="between").eval()
        with pytest.raises(NoSpatialLayer, match=r"'tokens 1\+4x4', 'tokens 4x4\+1'"):
            tp.trace(model, torch.randn(1, 3, 32, 32), layer="blocks.layers.0.norm1", target=1)

    def test_one_sample_at_a_time_and_no_more(self) -> None:
        model, seen = Undeclared(last=True).eval(), []
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        tp.trace(model, torch.randn(1, 3, 32, 32), target=1)
        assert {len(each) for each in seen} == {1}
