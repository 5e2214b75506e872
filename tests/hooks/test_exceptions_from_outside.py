"""Whatever strikes while a block is opened or closed, the model is left as found and Ctrl-C works."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer

import torchpeek as tp
from outside_exceptions import HANDLED, STRIKES, FromOutside, numbers, raise_it, raising_handlers, struck
from torchpeek import signal_gate
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import process, replaced

MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
X = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
LEAF = torch.ones(2, requires_grad=True)
INNER = LEAF * 2
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def unchanged(value: Any) -> Any:
    return value


def state() -> list[Any]:
    """What must be as before."""
    tensors: list[Tensor] = [*MODEL.parameters(), LEAF, INNER]
    return [
        [(module.training, "forward" in module.__dict__) for module in MODEL.modules()],
        [dict(getattr(module, name)) for module in MODEL.modules() for name in HOOKS],
        [buffer.tolist() for buffer in MODEL.buffers()],
        [dict(tensor._backward_hooks or {}) for tensor in tensors],
        [dict(optimizer._global_optimizer_pre_hooks), dict(optimizer._global_optimizer_post_hooks)],
        [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._len_torch_function_stack()],
        [signal.getsignal(number) for number in HANDLED],
        [*signal_gate._levels, *signal_gate._pending, *signal_gate._guards],
        [dict(process._SHARED), list(process._SHARED_TURNS._queue)],
        torch.get_rng_state().tolist(),
    ]


def edit() -> None:
    with tp.edit(MODEL, outputs={"0": unchanged, "4": unchanged}, inputs={"1": unchanged}, gradients={"2": unchanged}):
        pass


def edit_one_call() -> None:
    with tp.edit(MODEL, outputs={"0[0]": unchanged}):
        pass


def record() -> None:
    with tp.record(MODEL, ["0", "4"], gradients=True, parameters=True):
        pass


def record_until_a_layer() -> None:
    with tp.record(MODEL, "0", stop=True):
        MODEL(X)


def nested() -> None:
    with tp.record(MODEL, "0"), tp.edit(MODEL, outputs={"0": unchanged}):
        pass


def on_a_stack() -> None:
    with ExitStack() as stack:
        tape = stack.enter_context(tp.record(MODEL, "0"))
        stack.enter_context(tp.edit(MODEL, outputs={"0": unchanged}))
        assert tape is not None


def record_gradients() -> None:
    with tp.record_gradients(leaf=LEAF, inner=INNER):
        pass


def edit_gradient() -> None:
    edited = tp.edit_gradient(LEAF, unchanged)
    try:
        edited.remove()
    except (FromOutside, KeyboardInterrupt):
        edited.remove()
        raise


def check_finite() -> None:
    with tp.check_finite(MODEL):
        pass


def watch() -> None:
    with tp.watch(MODEL):
        pass


def preserve() -> None:
    with preserved(MODEL):
        pass


def replace() -> None:
    with replaced([(MODEL[0], MODEL[0].forward)]):
        pass


BLOCKS: list[Callable[[], None]] = [
    edit,
    edit_one_call,
    record,
    record_until_a_layer,
    nested,
    on_a_stack,
    record_gradients,
    edit_gradient,
    check_finite,
    watch,
    preserve,
    replace,
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    with raising_handlers():
        yield


@pytest.mark.filterwarnings("ignore::torchpeek.errors.Notice")
@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("block", BLOCKS)
def test_everything_is_as_before(block: Callable[[], None], strike: str) -> None:
    MODEL.train()
    sample = numbers(block, 90)
    before = state()
    for number in sample:
        if block is record_until_a_layer:
            MODEL[1].reset_running_stats()
        place = struck(block, number, STRIKES[strike])
        if strike == "another thread" and block is on_a_stack:
            gc.collect(0)  # the frames of a stack refer to each other
        assert (state(), place) == (before, place)


class TestTheUsersHandlers:
    """What is installed inside the block stays, and is delayed as well."""

    def test_one_that_is_installed_inside_stays(self) -> None:
        received: list[int] = []

        def other(number: int, frame: object) -> None:
            received.append(number)

        with tp.record(MODEL, "0"):
            signal.signal(signal.SIGALRM, other)
        assert signal.getsignal(signal.SIGALRM) is other
        signal.raise_signal(signal.SIGALRM)
        assert received == [signal.SIGALRM]

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_what_is_no_function_is_left_alone(self, handler: signal.Handlers) -> None:
        signal.signal(signal.SIGALRM, handler)
        with preserved(MODEL):
            assert signal.getsignal(signal.SIGALRM) is handler
            assert signal.getsignal(signal.SIGTERM) is not raise_it
        assert signal.getsignal(signal.SIGTERM) is raise_it

    def test_inside_the_block_of_a_recording_the_handlers_are_the_users(self) -> None:
        with tp.record(MODEL, "0"), tp.edit(MODEL, outputs={"0": unchanged}):
            assert signal.getsignal(signal.SIGALRM) is raise_it
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_each_signal_that_was_delayed_is_handled_once(self) -> None:
        received: list[int] = []
        for number in HANDLED:
            signal.signal(number, lambda number, frame: received.append(number))
        try:
            with preserved(MODEL):
                for number in (*reversed(HANDLED), *HANDLED):
                    signal.raise_signal(number)
                assert received == []
            assert received == list(reversed(HANDLED))
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def test_ctrl_c_works_again_after_one_was_caught_inside(self) -> None:
        caught = 0
        with ExitStack() as stack:
            stack.enter_context(tp.edit(MODEL, outputs={"0": unchanged}))
            for _ in range(3):
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    caught += 1
        assert caught == 3
