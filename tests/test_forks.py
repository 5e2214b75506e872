"""A lock that no thread leaves held, also where an exception or a finalizer comes in the middle."""

from __future__ import annotations

import gc
import threading
import weakref

import torch
from torch import nn

from torchpeek.engine import model_locks
from torchpeek.engine.model_locks import LockHolder
from torchpeek.engine.preserve import preserved
from torchpeek.forks import Lock
from torchpeek.undo import Undo


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def enter(lock: Lock) -> None:
    with lock:
        pass


def enter_in_finalizer(lock: Lock) -> None:
    weakref.finalize(Cycle(), enter, lock)
    gc.collect()


def entered_elsewhere(lock: Lock) -> bool:
    """Whether another thread can enter at once."""
    entered = threading.Event()

    def try_to_enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=try_to_enter, daemon=True)
    thread.start()
    thread.join(0.2)
    return entered.is_set()


def test_a_finalizer_enters_in_the_middle_and_the_lock_stays_held() -> None:
    lock = Lock()
    with lock:
        enter_in_finalizer(lock)
        assert not entered_elsewhere(lock)
    assert entered_elsewhere(lock)


def leave_held(lock: Lock) -> None:
    lock.__enter__()  # and an exception strikes before the release


def test_what_a_thread_has_left_held_it_gives_back_when_it_enters_again() -> None:
    lock = Lock()
    leave_held(lock)
    leave_held(lock)
    assert not entered_elsewhere(lock)
    enter(lock)
    assert entered_elsewhere(lock)


def test_the_same_function_enters_again_after_an_exception() -> None:
    lock = Lock()
    for _ in range(2):
        lock.__enter__()
    lock.__exit__()
    assert entered_elsewhere(lock)


def test_the_lock_refers_to_no_frame_afterwards() -> None:
    lock = Lock()

    def with_value() -> weakref.ref[Cycle]:
        value = Cycle()
        with lock:
            enter_in_finalizer(lock)
        return weakref.ref(value)

    reference = with_value()
    gc.collect()
    assert reference() is None


def test_a_block_that_is_garbage_ends_while_another_one_takes_its_models() -> None:
    lost, model = nn.Linear(2, 2), nn.Linear(2, 2)
    block = preserved(lost)
    block.__enter__()
    cycle: list[object] = [block]
    cycle.append(cycle)

    class CollectsGarbage(dict[int, LockHolder]):
        def update(self, *args: object, **kwargs: LockHolder) -> None:
            gc.collect()
            super().update(*args, **kwargs)

    holders = model_locks._HOLDERS
    model_locks._HOLDERS = CollectsGarbage(holders)
    try:
        del block, cycle
        with preserved(model):
            assert list(model_locks._HOLDERS) == [id(model)]
        assert not model_locks._HOLDERS
        assert torch.is_grad_enabled()
    finally:
        model_locks._HOLDERS = holders
        holders.clear()


def test_a_second_release_takes_nothing_from_a_thread_that_waits() -> None:
    holder = LockHolder(Undo())
    holder.acquire([nn.Linear(2, 2)])
    holder.release()
    assert holder._released.acquire(blocking=False)  # as a waiting thread does for a moment
    holder.release()
    assert holder._released.locked()
