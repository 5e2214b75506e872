"""Gradients and inference mode are as before when the block ends, whatever they were."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from torchpeek.hooks import grad_mode


def modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("gradients", "inference", "enabled"), [*product((True, False), repeat=3)])
def test_the_modes_inside_and_after(gradients: bool, inference: bool, enabled: bool) -> None:
    with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
        before = modes()
        with grad_mode(enabled):
            assert modes() == (enabled, False)
            with grad_mode(not enabled):
                assert modes() == (not enabled, False)
            assert modes() == (enabled, False)
        assert modes() == before


def test_a_mode_that_is_left_on_inside_is_off_afterwards() -> None:
    left = torch.inference_mode()
    with grad_mode(True):
        left.__enter__()
        torch.set_grad_enabled(False)
    assert modes() == (True, False)
