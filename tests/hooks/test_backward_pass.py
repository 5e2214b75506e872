"""Which backward pass runs, and the sum of the parts of a gradient that arrive in one of them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchpeek.hooks.backward_pass import (
    BackwardPass,
    current_backward_pass,
    graph_task,
    in_backward_pass,
    unshared,
    with_earlier_parts,
)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def noted(tensor: Tensor, passes: list[BackwardPass]) -> Tensor:
    """The tensor, whose gradient hook, if it has a gradient, adds the backward pass in which it runs."""
    if tensor.requires_grad:
        tensor.register_hook(lambda gradient: passes.append(current_backward_pass()))
    return tensor


class TestInBackwardPass:
    def test_it_is_so_in_hooks_alone(self) -> None:
        x = leaf(1.0)
        y = x * 2
        inside: list[tuple[bool, bool]] = []
        y.register_hook(lambda gradient: inside.append((in_backward_pass(), graph_task() != -1)))
        assert (in_backward_pass(), graph_task()) == (False, -1)
        y.sum().backward()
        assert inside == [(True, True)]
        assert not in_backward_pass()

    def test_it_ends_with_an_exception(self) -> None:
        def fail(gradient: Tensor) -> None:
            raise ArithmeticError

        y = leaf(1.0) * 2
        y.register_hook(fail)
        with pytest.raises(ArithmeticError):
            y.sum().backward()
        assert not in_backward_pass()


class TestCurrentBackwardPass:
    def test_hooks_of_one_pass_see_the_same_and_two_passes_differ(self) -> None:
        first: list[BackwardPass] = []
        x = leaf(1.0, 2.0)
        middle = noted(x * 2, first)
        loss = noted(middle * 3, first).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert len(first) == 4
        assert first[0] is first[1]
        assert first[2] is first[3]
        assert first[0] is not first[2]

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_a_checkpoint_belongs_to_the_outer_pass(self, use_reentrant: bool) -> None:
        passes: list[BackwardPass] = []

        def part(x: Tensor) -> Tensor:
            return noted(x * x, passes)

        x = leaf(3.0)
        inner = checkpoint(part, noted(x * 1, passes), use_reentrant=use_reentrant)
        noted(inner * 1, passes).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [6.0]
        assert len(passes) >= 3
        assert all(each is passes[0] for each in passes)

    def test_the_first_hook_may_be_inside_of_the_inner_pass(self) -> None:
        """Nothing outside has asked yet, so the pass waits for the function to return to the outer pass."""
        passes: list[BackwardPass] = []
        x = leaf(3.0)
        outer = noted(x * 1, passes)  # asks after the inner pass
        checkpoint(lambda y: noted(y * y, passes), outer, use_reentrant=True).backward()
        assert len(passes) == 2
        assert passes[0] is passes[1]

    def test_it_does_not_outlive_its_pass(self) -> None:
        passes: list[weakref.ref[BackwardPass]] = []
        y = leaf(1.0) * 2
        y.register_hook(lambda gradient: passes.append(weakref.ref(current_backward_pass())))
        y.sum().backward()
        gc.collect()
        assert passes[0]() is None


class TestWithEarlierParts:
    def test_parts_of_a_checkpoint_and_of_the_rest_add_up(self) -> None:
        """d/dy of y * y (inside) + 5y (outside) at y = 3 is 3 + 3 + 5."""
        sums: list[float] = []

        def hook(part: Tensor) -> None:
            sums.append(with_earlier_parts("y", part).item())

        y = leaf(3.0)

        def part(z: Tensor) -> Tensor:
            inside = y * 1
            if inside.requires_grad:  # the second run
                inside.register_hook(hook)
            return z * inside

        outside = y * 1
        outside.register_hook(hook)
        (checkpoint(part, outside, use_reentrant=True) + 5 * outside).sum().backward()
        assert sums == [3.0, 11.0]
        assert y.grad is not None
        assert y.grad.item() == 11

    def test_another_pass_and_another_key_begin_anew(self) -> None:
        sums: list[Any] = []
        y = leaf(1.0) * 2
        y.register_hook(lambda part: sums.append((with_earlier_parts("a", part), with_earlier_parts("b", part * 2))))
        loss = y.sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert [(a.item(), b.item()) for a, b in sums] == [(1.0, 2.0), (1.0, 2.0)]


class TestUnshared:
    def test_it_is_an_alias_without_a_graph(self) -> None:
        gradient = torch.ones(2)
        alias = unshared(gradient)
        assert alias is not gradient
        assert alias.data_ptr() == gradient.data_ptr()

    def test_a_gradient_with_a_graph_stays(self) -> None:
        gradient = leaf(1.0) * 2
        assert unshared(gradient) is gradient

    def test_a_batched_gradient_stays(self) -> None:
        x = leaf(1.0, 2.0)
        y = x * x
        found: list[Tensor] = []
        y.register_hook(lambda gradient: found.append(unshared(gradient)))
        (jacobian,) = torch.autograd.grad(y, x, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
        assert jacobian.tolist() == [[2.0, 0.0], [0.0, 4.0]]
        assert len(found) == 1
