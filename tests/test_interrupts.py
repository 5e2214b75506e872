"""Interrupts that wait until a block has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest

from torchpeek import interrupts, signal_gate, undo
from torchpeek.interrupts import interruptible, uninterrupted
from torchpeek.signal_gate import Level, finalised


class TestUninterrupted:
    def test_ctrl_c_waits(self) -> None:
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("still here")
        assert steps == ["still here"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_interruptible_parts_let_it_through(self) -> None:
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("held back")
            with interruptible():
                steps.append("never here")
        with pytest.raises(KeyboardInterrupt), uninterrupted(), uninterrupted(), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("nor here")
        assert steps == ["held back"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @pytest.mark.parametrize("nested", [False, True])
    def test_ctrl_c_at_any_line_of_the_way_in_stops_the_interruptible_part(self, nested: bool) -> None:
        """Also between the delivery of a delayed one and the moment from which the next one is let through."""
        sent_at = 0
        while True:
            sent_at += 1
            lines = 0
            finished = False

            def trace(frame: FrameType, event: str, argument: Any, sent_at: int = sent_at) -> Any:
                nonlocal lines
                if frame.f_code.co_filename not in (interrupts.__file__, signal_gate.__file__, undo.__file__):
                    return None
                if event == "line":
                    lines += 1
                    if lines == sent_at:
                        os.kill(os.getpid(), signal.SIGINT)
                return trace

            former = sys.gettrace()
            try:
                with uninterrupted(), uninterrupted() if nested else nullcontext():
                    sys.settrace(trace)
                    with interruptible():
                        if nested:
                            with uninterrupted():
                                pass
                        sys.settrace(former)
                        finished = sum(range(1000)) > 0
            except KeyboardInterrupt:
                assert not finished
            finally:
                sys.settrace(former)
            if lines < sent_at:
                break
            assert not finished, f"sent at line event {sent_at}"
        assert sent_at > 5
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_block_inside_an_interruptible_part_is_protected_too(self) -> None:
        """As when a model's forward calls torchpeek itself."""
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted(), interruptible():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                steps.append("held back")
            steps.append("never here")
        assert steps == ["held back"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_users_own_handler_is_called(self) -> None:
        received = []
        former = signal.signal(signal.SIGINT, lambda *_: received.append(1))
        try:
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                assert received == []
                with interruptible():
                    assert received == [1]
                    os.kill(os.getpid(), signal.SIGINT)
                    assert received == [1, 1]
        finally:
            signal.signal(signal.SIGINT, former)

    def test_other_threads_have_no_signals_to_hold_back(self) -> None:
        done = []

        def work() -> None:
            with uninterrupted():
                done.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [True]


def test_a_signal_in_a_finalizer_is_sent_again() -> None:
    """Python drops what its handler would raise there."""

    class Owner:
        pass

    def close() -> None:
        signal.raise_signal(signal.SIGALRM)
        closed.append(received == [])

    def handle(number: int, frame: object) -> None:
        received.append(number)
        raise TimeoutError

    received: list[int] = []
    closed: list[bool] = []
    owner = Owner()
    weakref.finalize(owner, finalised, close)
    former = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(TimeoutError):
            del owner
            time.sleep(5)
        assert signal.getsignal(signal.SIGALRM) is handle
        assert (closed, received) == ([True], [signal.SIGALRM])
    finally:
        signal.signal(signal.SIGALRM, former)


def test_a_guard_may_end_while_a_signal_asks_the_guards() -> None:
    """Blocks that are garbage end in any thread, and at any moment."""
    first, second = Level(), Level()
    try:
        first.begin()
        first.guard(lambda frame: bool(second.end()))
        second.begin()
        second.guard(lambda frame: False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        first.end()
        second.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_guard_nothing() -> None:
    """Python handles no signals in them."""
    level = Level()

    def begin() -> None:
        level.begin()
        level.guard(lambda frame: True)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert level not in signal_gate._guards


def test_a_finalizer_gives_back_what_it_has_where_another_threads_exception_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def struck(level: Level) -> None:
        raise KeyboardInterrupt

    given_back: list[str] = []
    monkeypatch.setattr(Level, "begin", struck)
    with pytest.raises(KeyboardInterrupt):
        finalised(given_back.append, "lock")
    assert given_back == ["lock"]
