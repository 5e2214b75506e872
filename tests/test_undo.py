"""Blocks that are undone whatever arrives from outside, at each instruction."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from outside_exceptions import HANDLED, STRIKES, FromOutside, numbers, raise_it, raising_handlers, struck
from torchpeek import signal_gate
from torchpeek import undo as undo_module
from torchpeek.interrupts import interruptible, uninterrupted
from torchpeek.turns import Turns
from torchpeek.undo import Undo, undone


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers that raise, and the check that all is as before."""
    with raising_handlers():
        expected = {number: signal.getsignal(number) for number in HANDLED}
        yield
        assert {number: signal.getsignal(number) for number in HANDLED} == expected
        assert not signal_gate._levels
        assert not signal_gate._guards
        assert not signal_gate._pending


@undone
def member(undo: Undo, members: list[str], name: str) -> None:
    undo.push(discard, members, name)
    members.append(name)


def discard(members: list[str], name: str) -> None:
    members[:] = [each for each in members if each != name]


MEMBERS: list[str] = []
TURNS = Turns()


def one_block() -> None:
    with member(MEMBERS, "one"):
        pass


def two_blocks() -> None:
    with member(MEMBERS, "outer"), member(MEMBERS, "inner"):
        pass


def one_object_twice() -> None:
    block = member(MEMBERS, "twice")
    with block, block:
        pass
    with block:
        pass


def without_signals() -> None:
    with uninterrupted(), member(MEMBERS, "inside"), interruptible():
        pass


def on_a_stack() -> None:
    with ExitStack() as stack:
        stack.enter_context(member(MEMBERS, "stacked"))
        stack.enter_context(member(MEMBERS, "stacked too"))


def by_hand() -> None:
    block = member(MEMBERS, "by hand")
    block.__enter__()
    block.__exit__(None, None, None)


def two_steps() -> Iterator[int]:
    with member(MEMBERS, "generator"):
        yield 1
        yield 2


def in_a_generator() -> None:
    steps = two_steps()
    next(steps)
    steps.close()


def in_a_coroutine() -> None:
    async def coroutine() -> None:
        with member(MEMBERS, "coroutine"):
            pass

    with pytest.raises(StopIteration):
        coroutine().send(None)


def a_turn() -> None:
    with TURNS.turn():
        MEMBERS.append("turn")
        MEMBERS.clear()


@undone
def failing(undo: Undo) -> None:
    undo.push(discard, MEMBERS, "failing")
    MEMBERS.append("failing")
    raise ValueError


def one_that_fails() -> None:
    with suppress(ValueError), failing():
        pass


def near_the_limit(action: Callable[[], object], distance: int) -> None:
    """Call `action` so many calls before the recursion limit. It may raise RecursionError."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    with suppress(RecursionError):
        call_deep(sys.getrecursionlimit() - depth - distance, action)


def call_deep(calls: int, action: Callable[[], object]) -> None:
    """Call `action` below so many calls."""
    if calls:
        call_deep(calls - 1, action)
    else:
        action()


@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize(
    "action",
    [
        *(one_block, two_blocks, one_object_twice, without_signals, on_a_stack, in_a_generator, in_a_coroutine),
        *(one_that_fails, a_turn),
    ],
)
def test_nothing_is_left_behind_whatever_strikes_at_whatever_instruction(
    action: Callable[[], None], strike: str
) -> None:
    for number in numbers(action, 500):
        place = struck(action, number, STRIKES[strike])
        gc.collect(0) if action is on_a_stack else None  # a stack's own frames refer to each other
        assert (MEMBERS, place) == ([], place)
        assert (TURNS._queue, place) == ([], place)
        assert (signal_gate._levels, place) == ([], place)
        assert (signal.getsignal(signal.SIGINT), place) == (signal.default_int_handler, place)
    one_block()
    assert not undo_module._unfinished


def test_the_clean_up_is_done_while_the_traceback_is_alive() -> None:
    total, _ = struck(one_block, 0, raise_it)
    for number in range(1, total + 1):
        _, place = struck(keeping_the_traceback, number, raise_it)
        assert (MEMBERS, place) == ([], place)
        CAUGHT.clear()


CAUGHT: list[BaseException] = []


def keeping_the_traceback() -> None:
    try:
        one_block()
    except FromOutside as error:
        CAUGHT.append(error)
        raise


class TestUndo:
    def test_steps_run_in_reverse_and_one_that_raises_keeps_none_from_running(self) -> None:
        done: list[int] = []
        undo = Undo()
        undo.push(done.append, 1)
        undo.push(lambda: 1 / 0)
        undo.push(done.append, 2)
        with pytest.raises(ZeroDivisionError):
            undo.finish()
        assert done == [2, 1]
        assert undo.is_finished

    def test_a_step_that_was_cut_short_runs_again(self) -> None:
        attempts: list[int] = []

        def step() -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise FromOutside

        undo = Undo()
        undo.push(step)
        with pytest.raises(FromOutside):
            undo.finish()
        assert len(attempts) == 2

    def test_a_context_manager_of_others_is_left_once(self) -> None:
        events: list[str] = []

        @contextmanager
        def manager() -> Iterator[str]:
            events.append("enter")
            try:
                yield "result"
            finally:
                events.append("exit")

        undo = Undo()
        assert undo.enter_context(manager()) == "result"
        undo.finish()
        undo.finish()
        assert events == ["enter", "exit"]


class TestBlock:
    def test_it_opens_and_closes_by_hand(self) -> None:
        block = member(MEMBERS, "by hand")
        block.__enter__()
        block.__enter__()
        assert MEMBERS == ["by hand", "by hand"]
        block.__exit__(None, None, None)
        block.__exit__(None, None, None)
        assert MEMBERS == []
        block.__exit__(None, None, None)

    def test_one_that_is_thrown_away_open_is_closed(self) -> None:
        block = member(MEMBERS, "lost")
        block.__enter__()
        del block
        assert MEMBERS == []

    def test_looking_exit_up_closes_nothing(self) -> None:
        with member(MEMBERS, "open") as _, ExitStack() as stack:
            block = member(MEMBERS, "looked at")
            stack.enter_context(block)
            assert hasattr(block, "__exit__")
            assert callable(type(block).__exit__)
            assert MEMBERS == ["open", "looked at"]
        assert MEMBERS == []

    def test_tasks_open_and_close_in_any_order(self) -> None:
        block = member(MEMBERS, "task")

        async def task(wait: float) -> None:
            with block:
                await asyncio.sleep(wait)
                assert block._is_open()

        async def run() -> None:
            await asyncio.gather(task(0.02), task(0.01), task(0.0))

        asyncio.run(run())
        assert not block._is_open()
        assert MEMBERS == []

    @pytest.mark.parametrize("distance", range(61))
    @pytest.mark.parametrize("action", [two_blocks, one_that_fails, by_hand, on_a_stack])
    def test_opened_and_closed_near_the_recursion_limit(self, action: Callable[[], None], distance: int) -> None:
        limit = sys.getrecursionlimit()
        near_the_limit(action, distance)
        assert MEMBERS == []
        assert sys.getrecursionlimit() == limit

    @pytest.mark.parametrize("distance", range(61))
    def test_closed_near_the_recursion_limit(self, distance: int) -> None:
        """Where there is no room for `__exit__`, the block is closed when it is thrown away."""
        limit = sys.getrecursionlimit()
        stack, block = ExitStack(), member(MEMBERS, "by hand")
        stack.enter_context(member(MEMBERS, "stacked"))
        block.__enter__()
        near_the_limit(stack.close, distance)
        assert sys.getrecursionlimit() == limit
        near_the_limit(partial(block.__exit__, None, None, None), distance)
        assert sys.getrecursionlimit() == limit
        del stack, block
        gc.collect()
        assert MEMBERS == []

    @pytest.mark.parametrize("distance", range(61))
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_generator_closed_near_the_recursion_limit(self, distance: int) -> None:
        """Where there is no room for `__exit__` and for what stands in for it, the next block closes this one."""
        limit = sys.getrecursionlimit()
        generator = two_steps()
        next(generator)
        near_the_limit(generator.close, distance)
        assert sys.getrecursionlimit() == limit
        assert not signal_gate._levels
        del generator
        gc.collect()
        one_block()
        assert MEMBERS == []

    def test_a_generator_in_a_cycle_leaves_no_signals_delayed(self) -> None:
        """The garbage collector runs the steps first, and closes the generator then."""
        cycle: list[Any] = [two_steps()]
        cycle.append(cycle)
        next(cycle[0])
        del cycle
        gc.collect()
        assert MEMBERS == []
        assert not signal_gate._levels

    def test_real_exceptions_of_another_thread(self) -> None:
        struck_count = 0
        for attempt in range(60):
            ready = threading.Event()

            def work(ready: threading.Event = ready) -> None:
                nonlocal struck_count
                try:
                    ready.set()
                    while True:
                        two_blocks()
                        a_turn()
                except FromOutside:
                    struck_count += 1

            thread = threading.Thread(target=work)
            thread.start()
            ready.wait()
            time.sleep(0.0003 * (attempt % 7))
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(FromOutside))
            thread.join(10)
            assert not thread.is_alive()
            one_block()
            assert MEMBERS == []
            a_turn()
            assert TURNS._queue == []
        assert struck_count == 60


class TestTurns:
    def test_one_at_a_time(self) -> None:
        turns, inside, most = Turns(), 0, 0

        def work() -> None:
            nonlocal inside, most
            for _ in range(5):
                with turns.turn():
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.0005)
                    inside -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_a_holder_that_is_gone_holds_nothing(self) -> None:
        turns = Turns()
        undo: Any = Undo()
        turns.wait(undo)
        undo._steps.clear()
        del undo
        with turns.turn():
            pass
