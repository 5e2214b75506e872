"""Layers that two models share: the calls of one model are neither recorded nor edited for the other."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import torchpeek as tp
from torchpeek.errors import NotFired, Notice
from torchpeek.hooks import model_calls


class Net(nn.Module):
    """A trunk that may belong to another net, too, and a head of its own."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(4, outputs)

    def encode(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def actor_and_critic() -> tuple[Net, Net, Tensor]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    return Net(trunk, 2).double(), Net(trunk, 1).double(), torch.randn(5, 3, dtype=torch.float64)


class Both(nn.Module):
    """A module that contains both nets."""

    def __init__(self, actor: Net, critic: Net) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x).sum() + self.critic(x).sum()

    def parts(self, x: Tensor) -> Tensor:
        return self.actor.trunk(x)


class Unrelated(nn.Module):
    """A module with parameters that calls a function it is given, as a solver or a loss does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)


class Hidden(nn.Module):
    """A wrapper with layers of its own that has a net without registering it."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.nets, self.own = [net], nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.nets[0].trunk(x)


class HiddenShare(nn.Module):
    """Another model that has the trunk without registering it."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = {"trunk": trunk}, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared["trunk"](x)


class Registry(nn.Module):
    """A function of a trunk and a parameter, but no layer of its own."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.weight = trunk, nn.Parameter(torch.ones(1, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.trunk(x), self.weight)


Run = Callable[[Net, Net, Tensor], object]


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


OF_ANOTHER_MODEL: dict[str, Run] = {
    "its forward": lambda actor, critic, x: critic(x),
    "its method": lambda actor, critic, x: critic.encode(x),
    "its method, of a part of the part": lambda actor, critic, x: Unrelated()(critic.encode, x),
    "functional_call": lambda actor, critic, x: functional_call(critic, dict(critic.named_parameters()), (x,)),
    "a wrapper of it": lambda actor, critic, x: Both(critic, critic)(x),
    "a wrapper of both": lambda actor, critic, x: [Both(actor, critic).critic(x)],
    "a Sequential with another head": lambda actor, critic, x: nn.Sequential(actor.trunk, nn.ReLU())(x),
    "a parameter of its own": lambda actor, critic, x: Registry(actor.trunk)(x),
    "a trunk that is not registered": lambda actor, critic, x: HiddenShare(actor.trunk)(x),
    "a slice in it": lambda actor, critic, x: _calling(critic, lambda: critic.trunk[:3](x)),
    "a replica of it": lambda actor, critic, x: critic._replicate_for_data_parallel()(x),
}
OF_THE_MODEL: dict[str, Run] = {
    "its forward": lambda actor, critic, x: actor(x),
    "its method": lambda actor, critic, x: actor.encode(x),
    "a part of it": lambda actor, critic, x: actor.trunk(x),
    "a slice of it": lambda actor, critic, x: actor.trunk[:3](x),
    "a new container of its layers": lambda actor, critic, x: nn.Sequential(*actor.trunk.children())(x),
    "a traced part of it": lambda actor, critic, x: torch.fx.symbolic_trace(_Tracing(actor.trunk))(x),
    "a wrapper": lambda actor, critic, x: nn.Sequential(actor, nn.ReLU())(x),
    "a part of it, from a wrapper": lambda actor, critic, x: Both(actor, critic).parts(x),
    "a part of it, from a wrapper that does not register it": lambda actor, critic, x: Hidden(actor)(x),
    "its method, from an unrelated module": lambda actor, critic, x: Unrelated()(actor.encode, x),
    "a part of it, from an unrelated module": lambda actor, critic, x: Unrelated()(actor.trunk, x),
    "functional_call": lambda actor, critic, x: functional_call(actor, dict(actor.named_parameters()), (x,)),
    "a copy of its hooks, as a replica": lambda actor, critic, x: actor._replicate_for_data_parallel()(x),
}


class _Tracing(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)


def _calling(module: nn.Module, function: Callable[[], object]) -> object:
    """Call a function from inside the forward of a module, which goes on to its own forward."""
    own = module.forward
    module.forward = lambda *args: function()
    try:
        return module(None)
    finally:
        del module.forward
        assert module.forward == own


@pytest.fixture(autouse=True)
def _no_dynamo_state() -> object:
    yield
    torch.compiler.reset()
    assert model_calls._OPEN == {}


class TestRecord:
    @pytest.mark.parametrize("name", OF_ANOTHER_MODEL)
    def test_not_the_calls_of_another_model(self, name: str) -> None:
        actor, critic, x = actor_and_critic()
        with tp.record(actor, "*", inputs=True, gradients=True, passes="all") as tape:
            OF_ANOTHER_MODEL[name](actor, critic, x)
            assert len(tape["trunk"]) == 0
            actor(x).sum().backward()
            OF_ANOTHER_MODEL[name](actor, critic, 2 * x)
        assert [len(tape[layer]) for layer in tape] == [1] * 5
        assert torch.equal(tape["trunk"].input, x)
        expected = actor.head.weight.sum(0).expand(5, 4)  # d sum(head(trunk)) / d trunk
        torch.testing.assert_close(tape["trunk"].grad_output, expected.detach())

    @pytest.mark.parametrize("name", OF_THE_MODEL)
    def test_every_call_of_the_model(self, name: str) -> None:
        actor, critic, x = actor_and_critic()
        with tp.record(actor, ["trunk.0", "trunk.2"], inputs=True, gradients=True) as tape:
            OF_THE_MODEL[name](actor, critic, x)
        assert torch.equal(tape["trunk.0"].input, x)
        assert torch.equal(tape["trunk.0"].output, nn.functional.linear(x, actor.trunk[0].weight, actor.trunk[0].bias))

    def test_two_recordings_at_once(self) -> None:
        actor, critic, x = actor_and_critic()
        with tp.record(actor, "trunk", gradients=True) as first, tp.record(critic, "trunk", gradients=True) as second:
            (actor(x).sum() + critic(2 * x).sum()).backward()
        torch.testing.assert_close(first["trunk"].output, actor.trunk(x).detach())
        torch.testing.assert_close(second["trunk"].output, critic.trunk(2 * x).detach())
        torch.testing.assert_close(first["trunk"].grad_output, actor.head.weight.sum(0).expand(5, 4).detach())
        torch.testing.assert_close(second["trunk"].grad_output, critic.head.weight.sum(0).expand(5, 4).detach())

    def test_while_the_model_runs_every_call_is_part_of_its_pass(self) -> None:
        actor, critic, x = actor_and_critic()
        _calling(actor, lambda: None)
        with tp.record(actor, "trunk") as tape:
            _calling(actor, lambda: critic(x))
        assert len(tape["trunk"]) == 1

    def test_a_compiled_model(self) -> None:
        actor, critic, x = actor_and_critic()
        compiled = torch.compile(actor, backend="eager")
        compiled(x)
        with contextlib.ExitStack() as stack:
            with pytest.warns(Notice, match="compiled"):
                tape = stack.enter_context(tp.record(compiled, "*trunk", passes="all"))
            critic(x)
            compiled(x)
            actor(x)  # the compiled model has it
        assert len(tape["_orig_mod.trunk"]) == 2

    def test_one_call_is_counted_in_the_models_own_passes(self) -> None:
        actor, critic, x = actor_and_critic()
        with tp.record(actor, ["trunk[0]", "trunk[-1]"]) as tape:
            critic(2 * x)
            actor(x)
            critic(3 * x)
        for name in tape:
            torch.testing.assert_close(tape[name].output, actor.trunk(x).detach())

    def test_the_reason_names_the_other_model(self) -> None:
        actor, _, x = actor_and_critic()
        with tp.record(actor, "trunk") as tape:
            HiddenShare(actor.trunk)(x)
        with pytest.raises(NotFired, match=r"'trunk' was called by a HiddenShare alone, .* shares it with this Net"):
            _ = tape["trunk"].output

    def test_running_statistics_and_callbacks(self) -> None:
        actor, critic, x = actor_and_critic()
        for keep in (tp.keep.Running(), tp.keep.Callback(lambda captured: captured.tensor.mean(0))):
            with tp.record(actor, "trunk", keep=keep) as tape:
                critic(100 * x)
                actor(x)
                critic(100 * x)
            value = tape["trunk"].output
            mean = value.mean if isinstance(keep, tp.keep.Running) else value
            torch.testing.assert_close(mean, actor.trunk(x).mean(0).detach())

    def test_statistics_with_a_loss_that_calls_another_model(self) -> None:
        actor, critic, x = actor_and_critic()
        table = tp.statistics(actor, [x], "trunk", loss=lambda output: output.sum() + critic(100 * x).sum())
        torch.testing.assert_close(table["trunk"].output.mean, actor.trunk(x).mean(0).detach())

    def test_after_a_pass_that_was_stopped(self) -> None:
        """Ending a pass early is no Exception, so no hook of torch is told that the model returned."""
        actor, critic, x = actor_and_critic()
        with tp.record(actor, "trunk", passes="all") as tape:
            tp.activations(actor, x, "trunk.0")
            with contextlib.suppress(KeyboardInterrupt), tp.record(actor, "trunk.0", stop=True):
                actor(x)
            critic(x)
            actor(x)
        assert len(tape["trunk"]) == 1

    def test_after_an_interrupt_the_next_pass_is_a_pass(self) -> None:
        actor, _, x = actor_and_critic()

        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        with tp.record(actor, "trunk") as tape:
            handle = actor.head.register_forward_hook(interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                actor(x)
            handle.remove()
            actor(2 * x)
        torch.testing.assert_close(tape["trunk"].output, actor.trunk(2 * x).detach())


class TestEdit:
    @pytest.mark.parametrize("name", OF_ANOTHER_MODEL)
    def test_not_the_calls_of_another_model(self, name: str) -> None:
        actor, critic, x = actor_and_critic()
        edited: list[object] = []
        changed = {"trunk": lambda value: edited.append(value) or value * 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            with tp.edit(actor, outputs=changed, inputs=changed, gradients=changed):
                OF_ANOTHER_MODEL[name](actor, critic, x)
                critic(x).sum().backward()
        assert edited == []

    @pytest.mark.parametrize("name", OF_THE_MODEL)
    def test_every_call_of_the_model(self, name: str) -> None:
        actor, critic, x = actor_and_critic()
        edited: list[Tensor] = []
        with tp.edit(actor, inputs={"trunk.0": lambda value: edited.append(value) or value * 0}):
            OF_THE_MODEL[name](actor, critic, x)
        assert len(edited) == 1

    def test_values_of_both_directions(self) -> None:
        actor, critic, x = actor_and_critic()
        score, value = actor(x), critic(x)
        for edited, other, same in ((actor, critic, value), (critic, actor, score)):
            with tp.edit(edited, outputs={"trunk": lambda output: output * 0}):
                assert torch.equal(other(x), same)
                torch.testing.assert_close(edited(x), edited.head.bias.expand(5, -1))
                assert torch.equal(other(x), same)
                assert torch.equal(edited.encode(x), torch.zeros(5, 4, dtype=torch.float64))

    def test_gradients_of_one_model_alone(self) -> None:
        actor, critic, x = actor_and_critic()

        def weight_gradient(*models: Net) -> Tensor:
            (gradient,) = torch.autograd.grad(sum(model(x).sum() for model in models), actor.trunk[2].weight)
            return gradient

        of_critic = weight_gradient(critic)
        with tp.edit(actor, gradients={"trunk": lambda gradient: gradient * 0}):
            torch.testing.assert_close(weight_gradient(actor, critic), of_critic)
            assert not weight_gradient(actor).any()

    def test_one_call(self) -> None:
        actor, critic, x = actor_and_critic()
        with tp.edit(actor, outputs={"trunk[0]": lambda output: output * 0}):
            before = critic(x)
            torch.testing.assert_close(actor(x), actor.head.bias.expand(5, -1))
            assert torch.equal(critic(x), before)

    def test_other_threads(self) -> None:
        actor, critic, x = actor_and_critic()
        edited: list[Tensor] = []
        with tp.edit(actor, outputs={"trunk": lambda output: edited.append(output) or output}):
            in_thread(lambda: critic(x))
            assert edited == []
            in_thread(lambda: actor(x))
            in_thread(lambda: actor.trunk(x))
        assert len(edited) == 2

    def test_a_notice_says_that_only_another_model_called_it(self) -> None:
        actor, critic, x = actor_and_critic()
        with (
            pytest.warns(Notice, match="an edit did nothing: layer 'trunk' was called by a Net alone"),
            tp.edit(actor, outputs={"trunk": lambda output: output * 0}),
        ):
            critic(x)

    def test_after_a_pass_that_was_stopped(self) -> None:
        actor, critic, x = actor_and_critic()
        before = critic(x)
        with tp.edit(actor, outputs={"trunk": lambda output: output * 0}):
            assert not tp.activations(actor, x, "trunk")["trunk"].any()
            assert torch.equal(critic(x), before)


def test_a_student_with_parts_of_its_teacher() -> None:
    """The student's forward runs the teacher, which shares its trunk: the student's pass has both calls."""
    student, teacher, x = actor_and_critic()

    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x).mean() - self.teacher(x).mean()

    model = Distilled()
    with tp.record(student, "trunk") as of_student, tp.record(model, "student.trunk") as of_both:
        model(x)
    assert (len(of_student["trunk"]), len(of_both["student.trunk"])) == (1, 2)
