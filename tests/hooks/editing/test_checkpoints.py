"""edit() of checkpointed parts, against the same network with the edit written into its forward."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import torchpeek as tp
from networks import state_of
from replicas.checkpointed import CHECKPOINTS, Checkpointed, EditedByHand, gradients_of, not_reentrant, plain, reentrant
from torchpeek.errors import GradUnavailable, Notice
from torchpeek.hooks.editing import recomputation
from torchpeek.hooks.editing.edit import _Edit
from torchpeek.hooks.selected_layer import SelectedLayer

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tripled(value: Tensor) -> Tensor:
    return 3 * value.sin()


def shifted(value: Tensor) -> Tensor:
    return (value - 1) ** 2


def then_tripled(change: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    return tripled if change is None else lambda value: tripled(change(value))


EDITS: dict[str, tuple[dict[str, Any], dict[str, Callable[[Tensor], Tensor]]]] = {
    "outputs of a layer": ({"outputs": {"block.lin": tripled}}, {"lin_output": tripled}),
    "inputs of a layer": ({"inputs": {"block.lin": shifted}}, {"lin_input": shifted}),
    "both calls": ({"outputs": {"block.act": shifted}}, {"act_0": shifted, "act_1": shifted}),
    "the first call": ({"outputs": {"block.act[0]": shifted}}, {"act_0": shifted}),
    "the second call": ({"outputs": {"block.act[1]": shifted}}, {"act_1": shifted}),
    "a call and a layer": (
        {"outputs": {"block.act[1]": shifted, "block.lin": tripled}},
        {"act_1": shifted, "lin_output": tripled},
    ),
}


def run_model(model: nn.Module) -> Tensor:
    torch.manual_seed(7)  # of the dropout
    return model(X).square().sum()


def expected_gradients(model: Checkpointed, changes: dict[str, Callable[[Tensor], Tensor]]) -> dict[str, Any]:
    by_hand = EditedByHand(model, **changes)
    run_model(by_hand).backward()
    return gradients_of(by_hand)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state_of(model)["hooks"]
    yield
    assert state_of(model)["hooks"] == before


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
class TestGradientsOfWeights:
    def test_the_backward_pass_after_the_block(self, checkpoints: str, edit: str) -> None:
        model, (edits, changes) = Checkpointed(*CHECKPOINTS[checkpoints]), EDITS[edit]
        expected = expected_gradients(model, changes)
        with unchanged(model):
            with tp.edit(model, **edits):
                score = run_model(model)
            score.backward()
        torch.testing.assert_close(gradients_of(model), expected)
        run_model(model).backward()
        torch.testing.assert_close(gradients_of(model), expected_gradients(model, {}))

    def test_the_backward_pass_inside_the_block_and_once_more_after_it(self, checkpoints: str, edit: str) -> None:
        model, (edits, changes) = Checkpointed(*CHECKPOINTS[checkpoints]), EDITS[edit]
        expected = expected_gradients(model, changes)
        with unchanged(model):
            with tp.edit(model, **edits):
                score = run_model(model)
                score.backward(retain_graph=True)
                torch.testing.assert_close(gradients_of(model), expected)
                other = run_model(model)
            score.backward()
            torch.testing.assert_close(gradients_of(model), expected)
            other.backward()
        torch.testing.assert_close(gradients_of(model), expected)

    def test_the_backward_pass_while_another_edit_is_open(self, checkpoints: str, edit: str) -> None:
        model, (edits, changes) = Checkpointed(*CHECKPOINTS[checkpoints]), EDITS[edit]
        expected, clean = expected_gradients(model, changes), expected_gradients(model, {})
        unedited = run_model(model)
        with tp.edit(model, **edits):
            score = run_model(model)
        with tp.edit(model, outputs={"block.act": lambda output: output * 0, "block.act[0]": lambda output: -output}):
            score.backward()
            torch.testing.assert_close(gradients_of(model), expected)
            unedited.backward()
            torch.testing.assert_close(gradients_of(model), clean)

    def test_two_edits(self, checkpoints: str, edit: str) -> None:
        """The outer one changes the layer first, also where the inner one has met the checkpoint first."""
        model, (edits, changes) = Checkpointed(*CHECKPOINTS[checkpoints]), EDITS[edit]
        both = {name: then_tripled(changes.get(name)) for name in ("act_0", "act_1", "lin_output")}
        both |= {name: change for name, change in changes.items() if name == "lin_input"}
        expected = expected_gradients(model, both)
        inner = {"block.act": tripled, "block.lin": tripled}
        with unchanged(model):
            with tp.edit(model, **edits):
                with tp.edit(model, outputs=inner):
                    first, second, third = run_model(model), run_model(model), run_model(model)
                    first.backward()
                    torch.testing.assert_close(gradients_of(model), expected)
                second.backward()
                torch.testing.assert_close(gradients_of(model), expected)
            third.backward()
        torch.testing.assert_close(gradients_of(model), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
class TestOtherUses:
    def test_a_gradient(self, checkpoints: str) -> None:
        class Tripled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return tripled(gradient)

        model = Checkpointed(*CHECKPOINTS[checkpoints])
        expected = expected_gradients(model, {"lin_output": Tripled.apply})
        with tp.edit(model, gradients={"block.lin": tripled}):
            run_model(model).backward()
        torch.testing.assert_close(gradients_of(model), expected)

    def test_a_gradient_that_arrives_after_the_block_is_noticed(self, checkpoints: str) -> None:
        model = Checkpointed(*CHECKPOINTS[checkpoints])
        with (
            pytest.warns(Notice, match=r"no gradient flowed back through layer 'block\.lin' inside the block"),
            tp.edit(model, gradients={"block.lin": tripled}),
        ):
            score = run_model(model)
        score.backward()
        torch.testing.assert_close(gradients_of(model), expected_gradients(model, {}))

    def test_without_gradients(self, checkpoints: str) -> None:
        model = Checkpointed(*CHECKPOINTS[checkpoints])
        with tp.edit(model, outputs={"block.act[1]": shifted}), torch.no_grad():
            found = run_model(model)
        torch.testing.assert_close(found, run_model(EditedByHand(model, act_1=shifted)).detach())

    def test_a_model_inside_a_checkpoint(self, checkpoints: str) -> None:
        model = Checkpointed(*CHECKPOINTS[checkpoints])
        expected = expected_gradients(model, {"act_1": shifted})
        for around in (reentrant, not_reentrant):
            with tp.edit(model, outputs={"block.act[1]": shifted}):
                torch.manual_seed(7)
                score = around(model, X.clone().requires_grad_()).square().sum()
            score.backward()
            torch.testing.assert_close(gradients_of(model), expected)

    def test_an_edit_that_raises_in_the_second_run(self, checkpoints: str) -> None:
        model, calls = Checkpointed(*CHECKPOINTS[checkpoints]), []

        def raising(output: Tensor) -> Tensor:
            calls.append(output)
            if len(calls) > 2:
                raise ZeroDivisionError
            return output

        with unchanged(model):
            with tp.edit(model, outputs={"block.act": raising}):
                score = run_model(model)
            if checkpoints == "no checkpoint":
                return
            with pytest.raises(ZeroDivisionError) as caught:
                score.backward()
            assert caught.value.__notes__ == ["in the edit of layer 'block.act'"]

    def test_a_recording_beside_the_edit(self, checkpoints: str) -> None:
        model = Checkpointed(*CHECKPOINTS[checkpoints])
        expected = expected_gradients(model, {"lin_output": tripled})
        with tp.edit(model, outputs={"block.lin": tripled}), tp.record(model, ["block.act", "block.lin"]) as tape:
            score = run_model(model)
            score.backward()
            torch.testing.assert_close(gradients_of(model), expected)
        assert [len(tape[name]) for name in tape] == [2, 1]
        torch.testing.assert_close(tape["block.act"][1].output, torch.tanh(tape["block.lin"].output))


@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
def test_a_torch_that_does_not_tell_the_hooks_for_saved_tensors(
    checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recomputation, "_saved_tensors_hooks", lambda ignore_is_tracing: (None, None))
    model = Checkpointed(*CHECKPOINTS[checkpoints])
    expected = expected_gradients(model, {"act_1": shifted})
    with tp.edit(model, outputs={"block.act[1]": shifted}):
        score = run_model(model)
    score.backward()
    torch.testing.assert_close(gradients_of(model), expected)


@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
def test_the_backward_pass_in_another_thread(checkpoints: str) -> None:
    """So do the passes of other devices run, and the frames of the caller are not on the stack there."""
    model = Checkpointed(*CHECKPOINTS[checkpoints])
    expected = expected_gradients(model, {"lin_output": tripled})
    for inside in (True, False):
        with tp.edit(model, outputs={"block.lin": tripled}):
            score = run_model(model)
            thread = threading.Thread(target=score.backward)
            if inside:
                thread.start()
                thread.join()
        if not inside:
            thread.start()
            thread.join()
        torch.testing.assert_close(gradients_of(model), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("around", [plain, reentrant, not_reentrant])
@pytest.mark.parametrize("inner", [plain, reentrant, not_reentrant])
def test_an_edit_that_the_checkpointed_function_opens(
    around: Callable[..., Tensor], inner: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    lin = nn.Linear(3, 3).double()
    model = nn.Sequential(lin)

    def opens(x: Tensor) -> Tensor:
        x = model(x).tanh()
        with tp.edit(model, outputs={"0": tripled}):
            x = inner(lambda x: model(x).tanh(), x)
        return model(x).square()

    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(lin(tripled(lin(lin(x).tanh())).tanh()).square().sum(), [*lin.parameters(), x])
    for outer_edit in (False, True):
        around(opens, x).sum().backward()
        torch.testing.assert_close([lin.weight.grad, lin.bias.grad, x.grad], list(expected))
        lin.weight.grad = lin.bias.grad = x.grad = None
        with tp.edit(model, outputs={"0": shifted}):
            score = around(opens, x).sum()
            if outer_edit:
                score.backward()
        if not outer_edit:
            score.backward()
        hidden = lin(tripled(shifted(lin(shifted(lin(x)).tanh()))).tanh())
        both = torch.autograd.grad(shifted(hidden).square().sum(), [*lin.parameters(), x])
        torch.testing.assert_close([lin.weight.grad, lin.bias.grad, x.grad], list(both))
        lin.weight.grad = lin.bias.grad = x.grad = None


def test_a_checkpoint_that_hooks_of_a_module_begin() -> None:
    composable = pytest.importorskip("torch.distributed._composable")
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))).double()
    run_model(nn.Sequential(model[0], model[1][0], nn.Tanh(), Tripled(), model[1][2])).backward()
    expected = gradients_of(model)
    composable.checkpoint(model[1])
    with tp.edit(model, outputs={"1.1": tripled}):
        score = run_model(model)
    score.backward()
    torch.testing.assert_close(gradients_of(model), expected)


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return tripled(x)


def test_an_edit_is_in_no_reference_cycle() -> None:
    model = Checkpointed(*CHECKPOINTS["not reentrant"])
    layers = [(SelectedLayer("block.act", model.block.act, call), tripled) for call in (None, 1)]
    gc.disable()
    try:
        edited = _Edit(model, layers, layers, layers)
        reference = weakref.ref(edited)
        del edited
        assert reference() is None
    finally:
        gc.enable()


class Reversible(torch.autograd.Function):
    """Runs a module again in its backward, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.x = module, x.detach()
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.x.requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return x.grad, None


class TestOtherAutogradFunctions:
    def test_inside_the_block_and_after_it(self) -> None:
        model = Checkpointed(lambda function, x: Reversible.apply(x, function), plain)
        model.block.drop.p = 0.0  # its backward does not restore the state of the random numbers
        expected = expected_gradients(model, {"lin_output": tripled})
        with tp.edit(model, outputs={"block.lin": tripled}):
            score = run_model(model)
            score.backward()
            torch.testing.assert_close(gradients_of(model), expected)
            score = run_model(model)
        with pytest.raises(GradUnavailable, match=r"'block\.lin' ran inside Reversible.*inside the block"):
            score.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_another_model_that_shares_a_checkpointed_layer(reentrant: bool) -> None:
    class WithTrunk(nn.Module):
        def __init__(self, trunk: nn.Module) -> None:
            super().__init__()
            self.trunk, self.head = trunk, nn.Linear(3, 1, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.trunk, x, use_reentrant=reentrant))

    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh()).double()
    actor, critic = WithTrunk(trunk), WithTrunk(trunk)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with tp.edit(actor, outputs={"trunk.0": lambda output: 2 * output}):
        of_actor, of_critic = actor(x).sum(), critic(x).sum()
    weight = trunk[0].weight
    (gradient,) = torch.autograd.grad((actor.head(torch.tanh(2 * x @ weight.T))).sum(), weight)
    of_actor.backward()
    assert torch.allclose(weight.grad, gradient)
    (gradient,) = torch.autograd.grad((critic.head(torch.tanh(x @ weight.T))).sum(), weight)
    weight.grad = None
    of_critic.backward()
    assert torch.allclose(weight.grad, gradient)
