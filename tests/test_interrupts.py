"""Interrupts that wait until a block has ended."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from torchpeek.interrupts import interruptible, uninterrupted


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
