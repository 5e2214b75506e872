"""Attempts with exceptions: from other threads, near the recursion limit, and of the user's own code."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial
from typing import Any

import torch

from torchpeek.errors import TorchpeekError
from torture.interruptions import Arrived, Instructions, raise_in, raised_after
from torture.networks import Countdown
from torture.outcomes import check, finished_by_the_next, outcome_of, same
from torture.session import Attempt, Session


def asynchronous_exception(session: Session, attempt: Attempt) -> None:
    """PyThreadState_SetAsyncExc raises an exception before a chosen instruction, or soon after it."""
    subject = session.subject(attempt)
    error = attempt.draw.choice([Arrived, KeyboardInterrupt, SystemExit, TimeoutError])
    follow = Instructions(
        attempt.draw.randint(1, session.undisturbed(subject).instructions),
        partial(raise_in, threading.get_ident(), error),
    )

    def run() -> Any:
        with follow.followed():
            return subject.run(session.networks)

    outcome = outcome_of(run)
    attempt.details = f"{subject.name}, {error.__name__} at {follow.place}"
    if follow.place and outcome.error is None:
        if session.dropped:
            attempt.details += ", in a finalizer, where Python drops exceptions"
        else:
            attempt.failed.append("what was raised was lost")
    finished_by_the_next(session, attempt)
    check(session, attempt, subject, outcome, error)


def asynchronous_exception_at_a_time(session: Session, attempt: Attempt) -> None:
    """PyThreadState_SetAsyncExc raises an exception at a chosen moment, from another thread."""
    subject = session.subject(attempt)
    error = attempt.draw.choice([Arrived, TimeoutError])
    seconds = attempt.draw.uniform(0, 1.0) * session.undisturbed(subject).seconds

    def run() -> Any:
        with raised_after(seconds, error):
            return subject.run(session.networks)

    outcome = outcome_of(run)
    attempt.details = f"{subject.name}, {error.__name__} after {seconds * 1000:.1f} ms"
    finished_by_the_next(session, attempt)
    check(session, attempt, subject, outcome, error)


def recursion_limit(session: Session, attempt: Attempt) -> None:
    """The call begins with so few frames left that it may meet the limit anywhere."""
    subject = session.subject(attempt)
    frames = attempt.draw.randint(5, 120)
    former = sys.getrecursionlimit()

    def run() -> Any:
        sys.setrecursionlimit(_depth() + frames)
        try:
            return subject.run(session.networks)
        finally:
            sys.setrecursionlimit(former)

    outcome = outcome_of(run)
    attempt.details = f"{subject.name}, {frames} frames left"
    finished_by_the_next(session, attempt)
    check(session, attempt, subject, outcome, RecursionError)


def _depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return depth


USER_ERRORS: tuple[BaseException, ...] = (
    Countdown("of the user"), RuntimeError("of the user"), ValueError("of the user"), TypeError("of the user"),
    TimeoutError("of the user"), MemoryError("of the user"), NotImplementedError("of the user"),
    AssertionError("of the user"), RecursionError("of the user"), KeyboardInterrupt(), StopIteration(),
    torch.OutOfMemoryError("of the user"), TorchpeekError("of the user"), asyncio.CancelledError(),
)  # fmt: skip


def exception_at_a_call(session: Session, attempt: Attempt) -> None:
    """A user's hook raises in its k-th call."""
    subject = session.subject(attempt, runs_model=True)
    calls = session.undisturbed(subject).calls
    error = attempt.draw.choice(USER_ERRORS)
    fuse = session.networks.fuse
    fuse.calls, fuse.raise_at, fuse.error = 0, attempt.draw.randint(1, max(1, calls)), error
    outcome = outcome_of(lambda: subject.run(session.networks))
    attempt.details = f"{subject.name}, {type(error).__name__} in call {fuse.raise_at} of {calls}"
    # Out of memory in a chunk that torchpeek has made, it tries smaller ones.
    if fuse.calls >= fuse.raise_at and outcome.error is None and not isinstance(error, torch.OutOfMemoryError):
        attempt.failed.append("the user's exception was swallowed")
    fuse.raise_at = 0
    check(session, attempt, subject, outcome, type(error))
    if not same(subject.run(session.networks), session.undisturbed(subject).value):
        attempt.failed.append("afterwards, the same call returns something else")
