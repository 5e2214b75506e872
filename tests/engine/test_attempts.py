"""Who is to blame for an exception in a pass that torchpeek has changed: `attempted`, and whole functions."""

from __future__ import annotations

import gc
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.engine.attempts import NEVER_REFUSALS, Refusal, attempted, shown_later, stop_iteration_restored
from torchpeek.engine.batching import chunks, in_memory
from torchpeek.errors import InputError, NotFired, Notice
from torchpeek.interrupts import interruptible, uninterrupted

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class MyError(Exception):
    """Not known to torchpeek."""


class Passes:
    """A function that raises in some of its calls, and a list of all calls."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls = iter(outcomes), 0

    def __call__(self) -> Any:
        self.calls += 1
        outcome = next(self.outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class TestAttempted:
    def test_what_succeeds_runs_once(self) -> None:
        changed, unchanged = Passes(5), Passes()
        assert attempted(changed, unchanged) == 5
        assert (changed.calls, unchanged.calls) == (1, 0)

    def test_a_refusal_comes_again_and_the_unchanged_pass_succeeds(self) -> None:
        result = attempted(Passes(MyError("too many\nof them"), MyError("too many")), Passes(7))
        assert isinstance(result, Refusal)
        assert (result.unchanged, result.reason) == (7, "MyError: too many")

    def test_what_does_not_come_again_goes_through_as_it_is(self) -> None:
        error = MyError("once")
        with pytest.raises(MyError) as raised:
            attempted(Passes(error, 5), Passes(7))
        assert raised.value is error
        assert error.__context__ is None
        assert raised.traceback[-1].name == "__call__"

    def test_another_exception_in_the_repetition_is_no_refusal(self) -> None:
        error = MyError("of a hook")
        with pytest.raises(MyError) as raised:
            attempted(Passes(error, RuntimeError("of the change")), Passes(7))
        assert raised.value is error

    def test_what_the_unchanged_pass_raises_goes_through(self) -> None:
        with pytest.raises(MyError, match="unchanged"):
            attempted(Passes(MyError("changed"), MyError("changed")), Passes(MyError("unchanged")))

    @pytest.mark.parametrize("kind", [*NEVER_REFUSALS, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_these_are_never_refusals(self, kind: type[BaseException]) -> None:
        changed, unchanged = Passes(kind("now"), 5), Passes()
        with pytest.raises(kind, match="now"):
            attempted(changed, unchanged)
        assert (changed.calls, unchanged.calls) == (1, 0)
        with pytest.raises(kind, match="now"):
            attempted(Passes(MyError("first"), kind("now")), shown_later)

    def test_only_what_is_possible(self) -> None:
        changed = Passes(MyError("no"))
        with pytest.raises(MyError):
            attempted(changed, shown_later, possible=lambda error: isinstance(error, ValueError))
        assert changed.calls == 1

    def test_nothing_of_a_failure_stays_in_memory(self) -> None:
        class Large:
            pass

        held: list[weakref.ref[Large]] = []

        def fails() -> None:
            large = Large()
            held.append(weakref.ref(large))
            raise MyError

        def unchanged() -> list[bool]:
            return [each() is None for each in held]

        gc.disable()
        try:
            result = attempted(fails, unchanged)
        finally:
            gc.enable()
        assert isinstance(result, Refusal)
        assert result.unchanged == [True]
        assert [each() for each in held] == [None, None]


class TestMemory:
    def test_a_batch_that_never_fits_is_refused(self) -> None:
        again = Passes(torch.OutOfMemoryError("tried 2 GiB"), torch.OutOfMemoryError("tried 3 GiB"))
        assert isinstance(in_memory(again, 2), Refusal)

    def test_one_that_fits_the_second_time_was_not_too_large(self) -> None:
        with pytest.raises(torch.OutOfMemoryError, match="once"):
            in_memory(Passes(torch.OutOfMemoryError("once"), 5), 2)

    def test_one_sample_is_not_repeated(self) -> None:
        changed = Passes(torch.OutOfMemoryError("one"))
        with pytest.raises(torch.OutOfMemoryError):
            in_memory(changed, 1)
        assert changed.calls == 1

    def test_chunks_are_halved_until_they_fit(self) -> None:
        sizes: list[int] = []

        def function(rows: Tensor, trials: Tensor) -> int:
            sizes.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError
            return len(rows)

        assert sum(result for _, _, result in chunks(function, 1, 10, 8, "trials")) == 10
        assert sizes == [8, 8, 4, 4, 2, 2, 2, 2, 2]


def test_a_stop_iteration_leaves_a_generator_as_what_it_is() -> None:
    error = StopIteration("the user's")

    def generator() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(StopIteration) as raised, stop_iteration_restored():
        list(generator())
    assert raised.value is error
    with pytest.raises(RuntimeError, match="another"), stop_iteration_restored():
        raise RuntimeError("another")


def network(check: Callable[[Tensor], None] | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 4)).double().eval()
    if check is not None:
        model[2].register_forward_hook(lambda module, args, output: check(args[0]))
    return model


def explained(model: nn.Module, method: str, x: Tensor = X, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return tp.explain(model, x, method=method, target=1, **options).values


class TestTheChangeIsTheCause:
    @pytest.mark.parametrize("method", ["scorecam", "ablationcam", "recipro-cam", "iscam", "groupcam"])
    @pytest.mark.parametrize("kind", [MyError, RuntimeError, ValueError, torch.OutOfMemoryError])
    def test_a_hook_that_raises_for_larger_batches_than_the_users(self, method: str, kind: type[Exception]) -> None:
        def check(features: Tensor) -> None:
            if len(features) > len(X):
                raise kind("too many")

        torch.testing.assert_close(
            explained(network(check), method, layer="3"), explained(network(), method, layer="3"), rtol=1e-9, atol=1e-12
        )

    @pytest.mark.parametrize("method", ["scorecam", "ablationcam", "gradcam", "fullgrad", "smoothgradcam++"])
    def test_a_model_that_takes_batches_of_one_size(self, method: str) -> None:
        def check(features: Tensor) -> None:
            if len(features) != len(X):
                raise MyError("another size")

        torch.testing.assert_close(explained(network(check), method), explained(network(), method))

    def test_a_model_that_raises_for_the_random_picture_that_is_tried_in_its_place(self) -> None:
        even = torch.full_like(X, 0.25)

        def check(features: Tensor) -> None:
            if features.std() > 1e-3 and features.shape[2] == 12:
                raise MyError("not even")

        model = nn.Sequential(nn.Identity(), nn.Identity(), *network())
        model[1].register_forward_hook(lambda module, args, output: check(args[0]))
        with pytest.raises(MyError, match="not even"):  # the layer is looked for with a picture that shows something
            explained(model, "gradcam", even)
        assert explained(model, "gradcam", even, layer="5").shape == (2, 1, 10, 10)

    @pytest.mark.parametrize("bad", ["nan", "dark"])
    def test_a_model_that_raises_for_a_picture_that_the_method_needs(self, bad: str) -> None:
        def check(features: Tensor) -> None:
            if bool(features.isnan().any()) or (bad == "dark" and bool((features.flatten(1).std(1) < 1e-9).any())):
                raise MyError(bad)

        model = network()
        model[0].register_forward_pre_hook(lambda module, args: check(args[0]))
        if bad == "dark":
            with pytest.raises(MyError, match="dark"):
                explained(model, "polycam")  # one of its pictures is zero
        else:
            explained(model, "scorecam")
            with pytest.raises(MyError, match="nan"):
                explained(model, "scorecam", X * torch.nan)


class TestTheChangeIsNotTheCause:
    def test_the_state_of_forward(self) -> None:
        class Limited(nn.Sequential):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                if self.calls == 2:
                    raise MyError("the second call")
                return super().forward(x)

        with pytest.raises(MyError, match="the second call"):
            tp.explain(Limited(*network()).eval(), X, method="ablationcam")

    def test_a_signal_handler(self) -> None:
        class Alarm(Exception):
            pass

        def ring(number: int, frame: object) -> None:
            raise Alarm("now")

        def slow(features: Tensor) -> None:
            time.sleep(0.02)

        assert threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGALRM, ring)
        try:
            for delay in (0.01, 0.03, 0.05, 0.07, 0.09):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(Alarm, match="now"):
                    explained(network(slow), "ablationcam")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    def test_a_note_is_added_once(self) -> None:
        error = MyError("always the same")

        def check(features: Tensor) -> None:
            raise error

        with pytest.raises(MyError):
            tp.explain(network(check), X)
        assert len(set(error.__notes__)) == len(error.__notes__)

    def test_an_error_of_the_users_own_class_is_not_said_to_be_of_the_inputs(self) -> None:
        class Refused(RuntimeError):
            pass

        def check(features: Tensor) -> None:
            raise Refused("three channels, please")

        model = network()
        model[0].register_forward_pre_hook(lambda module, args: check(args[0]))
        with pytest.raises(Refused, match="three channels"):
            tp.explain(model, X[:, :1], layer="3")
        with pytest.raises(InputError, match="1 channel, not 3"):
            tp.explain(network(), X[:, :1], layer="3")


class Window:
    """A forward hook that raises in the calls from `first` to `last`, from 1, as long as it is `on`."""

    def __init__(self, first: int, last: float) -> None:
        self.first, self.last, self.on, self.calls = first, last, True, 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.calls += 1
        if self.on and self.first <= self.calls <= self.last:
            raise MyError("for a while")


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "fullgrad"])
@pytest.mark.parametrize("length", [1, 2, float("inf")])
def test_a_failure_goes_through_and_changes_nothing_afterwards(method: str, length: float) -> None:
    expected = tp.explain(network(), X, method=method, target=1)
    for first in range(1, 40):
        model, window = network(), Window(first, first + length - 1)
        model[3].register_forward_hook(window)
        succeeds = _succeeds(model, method)
        assert not succeeds or window.calls < first
        window.on = False
        got = tp.explain(model, X, method=method, target=1)
        assert got.provenance.layer == expected.provenance.layer
        assert got.provenance.layer_reason == expected.provenance.layer_reason
        torch.testing.assert_close(got.values, expected.values)
        if succeeds:
            return
    raise AssertionError("more calls than expected")


def _succeeds(model: nn.Module, method: str) -> bool:
    try:
        tp.explain(model, X, method=method, target=1)
    except MyError:
        return False
    return True


@pytest.mark.parametrize("kind", [RuntimeError, NotFired])
@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "fullgrad", "gradcam"])
def test_a_handler_that_raises_the_same_again_and_again(method: str, kind: type[Exception]) -> None:
    """A signal strikes in every changed pass, and in none that is unchanged: no pass stands in for the failed one."""
    expected = explained(network(), method, layer="3")

    def handle(number: int, frame: object) -> None:
        raise kind("of a handler")

    def check(features: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls >= first:
            signal.raise_signal(signal.SIGALRM)

    former = signal.signal(signal.SIGALRM, handle)
    try:
        calls, first = 0, 10**9
        torch.testing.assert_close(explained(network(check), method, layer="3"), expected)
        for number in range(1, calls + 1, max(1, calls // 4)):
            calls, first = 0, number
            with pytest.raises(kind, match="of a handler"):
                explained(network(check), method, layer="3")
    finally:
        signal.signal(signal.SIGALRM, former)


def test_a_handler_that_strikes_only_in_changed_passes() -> None:
    def handle(number: int, frame: object) -> None:
        raise ValueError("of a handler")

    def changed() -> None:
        signal.raise_signal(signal.SIGALRM)

    former = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(ValueError, match="of a handler"):
            attempted(changed, lambda: 7)
        with pytest.raises(ValueError, match="of a handler"), uninterrupted(), interruptible():
            attempted(changed, lambda: 7)
    finally:
        signal.signal(signal.SIGALRM, former)
    # The same exception, which no handler has raised.
    result = attempted(Passes(ValueError("same"), ValueError("same")), Passes(7))
    assert isinstance(result, Refusal)


def test_exceptions_whose_contexts_are_in_a_circle() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one

    def fails() -> None:
        raise one

    with pytest.raises(ValueError, match="one"):
        attempted(fails, fails)
    assert isinstance(attempted(fails, lambda: 3), Refusal)
