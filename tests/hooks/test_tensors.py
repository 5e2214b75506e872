"""record_gradients and edit_gradient: gradients of plain tensors."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from torchpeek.errors import GradUnavailable, InputError


class TestPlainTensors:
    def test_gradients_of_leaves_and_others(self) -> None:
        w, x = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        a, b = w + x, w + 1
        y = a * b
        with tp.record_gradients(a=a, w=w) as gradients:
            y.backward()
        assert (float(w.grad), float(x.grad)) == (5, 2)
        assert (float(gradients["a"]), float(gradients["w"])) == (2, 5)
        assert not a.retains_grad

    def test_an_edit_that_writes_in_place_and_returns_more(self) -> None:
        w, x = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        y = (w + x) * (w + 1)
        with tp.edit_gradient(w, lambda gradient: gradient.mul_(2) * 3):
            y.backward()
        assert float(w.grad) == 30

    def test_hooks_come_off(self) -> None:
        w = torch.tensor(1.0, requires_grad=True)
        with tp.record_gradients(w=w) as gradients, tp.edit_gradient(w, lambda g: g * 7):
            pass
        (w * 2).backward()
        assert float(w.grad) == 2
        assert gradients["w"] is None

    def test_refusals(self) -> None:
        with pytest.raises(GradUnavailable, match="needs no gradient"), tp.record_gradients(a=torch.ones(1)):
            pass
        with pytest.raises(InputError, match="only tensors have gradients"), tp.edit_gradient(3, abs):  # type: ignore[arg-type]
            pass
