"""Hooks that come off at the end of a block, also after an error."""

from __future__ import annotations

import pytest
import torch

from networks import MessyNet, PooledNet, messy, state_of
from torchpeek.hooks import attached


class TestAttached:
    def test_changes_the_output_and_comes_off(self) -> None:
        model = PooledNet().eval()
        x = torch.randn(1, 3, 4, 4)
        before = model(x)
        with attached([(model.act, lambda module, args, output: output * 2)]):
            doubled = model(x)
        assert torch.allclose(doubled - model.head.bias, 2 * (before - model.head.bias), atol=1e-6)
        assert torch.equal(model(x), before)

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_comes_off_after_an_error(self, error: BaseException) -> None:
        model = messy()
        before = state_of(model)
        with pytest.raises(type(error)), attached([(model.conv, lambda *_: None), (model.bn, lambda *_: None)]):
            raise error
        assert state_of(model) == before

    def test_a_hook_that_cannot_be_registered_leaves_none(self) -> None:
        model = MessyNet()
        before = state_of(model)
        with pytest.raises(AttributeError), attached([(model.conv, lambda *_: None), (None, None)]):  # type: ignore[list-item]
            pass
        assert state_of(model) == before
