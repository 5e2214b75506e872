"""record_gradients and edit_gradient: gradients of plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    def test_printed_as_a_table(self) -> None:
        w, v = torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)
        with tp.record_gradients(**{"<w>": w, "v": v}) as gradients:
            w.sum().backward()
        assert str(gradients).splitlines() == ["tensor  gradient", "<w>     (2, 3) float32", "v       none arrived"]
        assert "&lt;w&gt;" in gradients._repr_html_()

    def test_hooks_come_off(self) -> None:
        w = torch.tensor(1.0, requires_grad=True)
        with tp.record_gradients(w=w) as gradients, tp.edit_gradient(w, lambda g: g * 7):
            pass
        (w * 2).backward()
        assert float(w.grad) == 2
        assert gradients["w"] is None

    def test_an_edit_takes_effect_at_once_until_it_is_removed(self) -> None:
        w = torch.tensor(1.0, requires_grad=True)
        handle = tp.edit_gradient(w, lambda gradient: gradient * 7)
        assert torch.autograd.grad(w * 2, w)[0].item() == 14
        handle.remove()
        handle.remove()
        assert torch.autograd.grad(w * 2, w)[0].item() == 2
        assert not w._backward_hooks

    def test_a_recorded_gradient_of_a_leaf_outlives_later_backward_passes(self) -> None:
        w = torch.tensor(1.0, requires_grad=True)
        with tp.record_gradients(w=w) as gradients:
            (w * 2).backward()
        (w * 5).backward()
        assert (gradients["w"].item(), w.grad.item()) == (2, 7)

    def test_refusals(self) -> None:
        with pytest.raises(GradUnavailable, match="needs no gradient"), tp.record_gradients(a=torch.ones(1)):
            pass
        with pytest.raises(InputError, match="tensor is 3; allowed: a tensor"):
            tp.edit_gradient(3, abs)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="function is 3; allowed: a function"):
            tp.edit_gradient(torch.ones(1, requires_grad=True), 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (lambda gradient: None, "returned None; return the gradient to use"),
            (lambda gradient: 2.0, "returned a float"),
            (lambda gradient: (each for each in gradient), "returned a generator"),
            (lambda gradient: gradient.sum(), r"of shape \(\); allowed: \(2,\), as the gradient has"),
            (lambda gradient: gradient.half(), r"of dtype torch\.float16; allowed: torch\.float32"),
            (lambda gradient: gradient.to("meta"), "of device meta; allowed: cpu"),
        ],
    )
    def test_what_a_function_may_return(self, changed: Callable[[Tensor], Any], message: str) -> None:
        w, model = torch.ones(2, requires_grad=True), nn.Sequential(nn.Identity())
        with pytest.raises(InputError, match=f"gradient of the tensor .*{message}"), tp.edit_gradient(w, changed):
            (w * 2).sum().backward()
        with pytest.raises(InputError, match=f"layer '0' .*{message}"), tp.edit(model, gradients={"0": changed}):
            model(w).sum().backward()
        assert not w._backward_hooks


def reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=True)


def not_reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False)


def nested(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return reentrant(lambda x: reentrant(function, reentrant(function, x)), x)


def plain(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def nested_plain(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(function(x))


class Steps(torch.autograd.Function):
    """Runs two backward passes inside its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.x, ctx.function = x.detach(), function
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_()
            halves = [ctx.function(x) / 2 for _ in range(2)]
        for half in halves:
            half.backward(gradient)
        return x.grad, None


AROUND: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "reentrant": (reentrant, plain),
    "not reentrant": (not_reentrant, plain),
    "nested": (nested, nested_plain),
    "two inner passes": (lambda function, x: Steps.apply(x, function), plain),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("around", AROUND)
class TestPartsOfAGradient:
    """The reference is the same computation without checkpoints."""

    @pytest.fixture
    def tensors(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        w, x = torch.randn(2, 4, dtype=torch.float64, generator=generator)
        return w.requires_grad_(), x.requires_grad_()

    def score(self, around: Callable[..., Tensor], w: Tensor, x: Tensor, *, before: bool, after: bool) -> Tensor:
        def step(x: Tensor) -> Tensor:
            return (x * w).tanh() + w

        x = around(step, around(step, x * w if before else x))
        return (x * w.exp() if after else x).sum()

    @pytest.mark.parametrize(("before", "after"), [(False, False), (True, False), (False, True), (True, True)])
    def test_the_whole_gradient(self, around: str, before: bool, after: bool, tensors: tuple[Tensor, Tensor]) -> None:
        (checkpointed, reference), (w, x) = AROUND[around], tensors
        (expected,) = torch.autograd.grad(self.score(reference, w, x, before=before, after=after), w)
        with tp.record_gradients(w=w) as gradients:
            for _ in range(2):
                w.grad = None
                self.score(checkpointed, w, x, before=before, after=after).backward()
                torch.testing.assert_close(gradients["w"], expected)
                torch.testing.assert_close(w.grad, expected)

        edited, clamped = torch.tensor([0.5, -0.25, 2.0, 1.0], dtype=torch.float64), expected.clamp(-1, 1)
        handle = tp.edit_gradient(w, lambda gradient: gradient.clamp_(-1, 1) * edited)
        with tp.record_gradients(w=w) as gradients:
            for _ in range(2):
                w.grad = None
                score = self.score(checkpointed, w, x, before=before, after=after)
                score.backward(retain_graph=True)
                torch.testing.assert_close(w.grad, clamped * edited)
                torch.testing.assert_close(gradients["w"], clamped * edited)
                score.backward()
                torch.testing.assert_close(w.grad, 2 * clamped * edited)
                torch.testing.assert_close(gradients["w"], clamped * edited)
        handle.remove()

    def test_a_tensor_that_is_no_leaf(self, around: str, tensors: tuple[Tensor, Tensor]) -> None:
        checkpointed, reference = AROUND[around]
        v, x = tensors
        w = v + 1
        expected_w, expected_v = torch.autograd.grad(self.score(reference, w, x, before=True, after=True), (w, v))
        with tp.record_gradients(w=w) as gradients:
            self.score(checkpointed, w, x, before=True, after=True).backward()
        torch.testing.assert_close(gradients["w"], expected_w)
        torch.testing.assert_close(v.grad, expected_v)
        v.grad = None
        with tp.edit_gradient(w, torch.square):
            self.score(checkpointed, w, x, before=True, after=True).backward()
        torch.testing.assert_close(v.grad, expected_w.square())

    def test_a_pass_that_raised_leaves_nothing_behind(self, around: str, tensors: tuple[Tensor, Tensor]) -> None:
        (checkpointed, reference), (w, x) = AROUND[around], tensors
        (expected,) = torch.autograd.grad(self.score(reference, w, x, before=True, after=True), w)
        raises, parts = [True], [0]

        def may_raise(gradient: Tensor) -> None:
            parts[0] += 1
            if raises[0] and parts[0] > stop:
                raise ZeroDivisionError

        for stop in range(4):
            with tp.record_gradients(w=w) as gradients, tp.edit_gradient(w, torch.square):
                w.register_hook(may_raise)
                score = self.score(checkpointed, w, x, before=True, after=True)
                raises[0], parts[0] = True, 0
                try:
                    score.backward(retain_graph=True)
                except ZeroDivisionError:
                    assert parts[0] == stop + 1
                raises[0], w.grad = False, None
                score.backward()
                torch.testing.assert_close(gradients["w"], expected)
                torch.testing.assert_close(w.grad, expected.square())
                w._backward_hooks.popitem()

    def test_a_backward_pass_inside_a_hook_is_a_pass_of_its_own(
        self, around: str, tensors: tuple[Tensor, Tensor]
    ) -> None:
        (checkpointed, reference), (w, x) = AROUND[around], tensors
        (expected,) = torch.autograd.grad(self.score(reference, w, x, before=True, after=True), w)
        inner: list[Tensor] = []

        def on_gradient(gradient: Tensor) -> None:
            with torch.enable_grad():
                inner.extend(torch.autograd.grad((5 * w).sum(), w))

        x.register_hook(on_gradient)
        with tp.edit_gradient(w, torch.square):
            self.score(checkpointed, w, x, before=True, after=True).backward()
        torch.testing.assert_close(w.grad, expected.square())
        assert [each.tolist() for each in inner] == [[25.0] * 4]

    def test_recorded_parameters(self, around: str) -> None:
        checkpointed, reference = AROUND[around]

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.lin, self.around = nn.Linear(3, 3), checkpointed

            def forward(self, x: Tensor) -> Tensor:
                x = self.around(lambda x: torch.tanh(x @ self.lin.weight), x)
                return self.lin(x)

        model, x = Tied().double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        with tp.record(model, "lin", gradients=True, parameters=True) as tape:
            model(x).square().sum().backward()
        model.around = reference
        expected = torch.autograd.grad(model(x).square().sum(), model.lin.weight)[0]
        torch.testing.assert_close(tape["lin"].grad_parameters["weight"], expected)
