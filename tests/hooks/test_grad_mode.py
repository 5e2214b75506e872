"""Gradients and inference mode are as before when the block ends, whatever they were."""

from __future__ import annotations

import gc
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


def opened_and_lost(enabled: bool) -> list[object]:
    """A block in a cycle, which nothing but the garbage collector can close."""
    block = grad_mode(enabled)
    block.__enter__()
    cycle: list[object] = [block]
    cycle.append(cycle)
    return cycle


@torch.enable_grad()
def test_an_inner_block_that_ends_after_the_outer_one_changes_nothing() -> None:
    with grad_mode(False):
        lost = opened_and_lost(False)
    assert modes() == (True, False)
    del lost
    gc.collect()
    assert modes() == (True, False)


@torch.enable_grad()
def test_an_outer_block_that_ends_late_leaves_the_inner_one_its_mode() -> None:
    lost = opened_and_lost(False)
    with grad_mode(False):
        del lost
        gc.collect()
        assert modes() == (False, False)
    assert modes() == (True, False)


@torch.enable_grad()
def test_a_lost_block_ends_when_it_is_found() -> None:
    lost = opened_and_lost(False)
    assert modes() == (False, False)
    del lost
    gc.collect()
    assert modes() == (True, False)
