"""Attempts with signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torture.interruptions import Arrived, Instructions, sent_after
from torture.outcomes import Outcome, check, outcome_of
from torture.session import Attempt, Session
from torture.state import SIGNALS


def signal_at_an_instruction(session: Session, attempt: Attempt) -> None:
    """A signal arrives before a chosen instruction of torchpeek's code."""
    _signal_at_an_instruction(session, attempt, alarm_after=None)


def two_signals(session: Session, attempt: Attempt) -> None:
    """As before, and SIGALRM follows while the first signal is dealt with."""
    _signal_at_an_instruction(session, attempt, alarm_after=10 ** attempt.draw.uniform(-6, -2.5))


def _signal_at_an_instruction(session: Session, attempt: Attempt, *, alarm_after: float | None) -> None:
    subject, number = session.subject(attempt), attempt.draw.choice(SIGNALS)
    signals = session.signals
    signals.raising = attempt.draw.random() < 0.9
    signals.alarm_after = alarm_after
    follow = Instructions(
        attempt.draw.randint(1, session.undisturbed(subject).instructions), partial(signal.raise_signal, number)
    )

    def run() -> Any:
        try:
            with follow.followed():
                value = subject.run(session.networks)
        finally:
            sent = bool(follow.place) * (1 + (alarm_after is not None))
            _wait_until(lambda: len(signals.received) >= sent)  # one that arrived in a finalizer is sent again
        return value

    outcome = outcome_of(run)
    attempt.details = f"{subject.name}, {number.name} at {follow.place}"
    expected = [number.value] * bool(follow.place) + [signal.SIGALRM.value] * (
        bool(follow.place) and alarm_after is not None
    )
    _check_signals(session, attempt, expected, outcome)
    check(session, attempt, subject, outcome, KeyboardInterrupt, Arrived)


def signal_at_a_time(session: Session, attempt: Attempt) -> None:
    """A signal arrives at a chosen moment."""
    subject, number = session.subject(attempt), attempt.draw.choice(SIGNALS)
    session.signals.raising = attempt.draw.random() < 0.9
    seconds = attempt.draw.uniform(0, 1.1) * session.undisturbed(subject).seconds

    def run() -> Any:
        with sent_after(seconds, number):
            value = subject.run(session.networks)
        _wait_until(lambda: bool(session.signals.received))  # one that arrived in a finalizer is sent again
        return value

    outcome = outcome_of(run)
    attempt.details = f"{subject.name}, {number.name} after {seconds * 1000:.1f} ms"
    _check_signals(session, attempt, [number.value], outcome)
    check(session, attempt, subject, outcome, KeyboardInterrupt, Arrived)


def signals_all_the_time(session: Session, attempt: Attempt) -> None:
    """SIGALRM arrives a thousand times a second, and its handler only counts."""
    subject = session.subject(attempt)
    signals = session.signals
    signals.raising = False
    session.undisturbed(subject)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-3)
    started = time.perf_counter()
    try:
        outcome = outcome_of(lambda: subject.run(session.networks))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    attempt.details = f"{subject.name}, {len(signals.received)} signals in {seconds * 1000:.0f} ms"
    if seconds > 0.01 and not signals.received:
        attempt.failed.append("the handler was never called")
    check(session, attempt, subject, outcome)


def _check_signals(session: Session, attempt: Attempt, expected: list[int], outcome: Outcome) -> None:
    """Each handler was called once for each signal, and what it raised came through."""
    received = session.signals.received
    if sorted(received) != sorted(expected):
        attempt.failed.append(f"handlers were called for {received}, and {expected} were sent")
    if received and session.signals.raising and outcome.error is None:
        if session.dropped:
            attempt.details += ", in a finalizer, where Python drops exceptions"
        else:
            attempt.failed.append("what a handler raised was lost")


def _wait_until(condition: Callable[[], bool], seconds: float = 1.0) -> None:
    """Wait for a condition, whatever arrives meanwhile; the last of what arrived is raised."""
    end = time.monotonic() + seconds
    arrived: BaseException | None = None
    while not condition() and time.monotonic() < end:
        try:
            time.sleep(1e-4)
        except BaseException as error:
            arrived = error
    if arrived is not None:
        raise arrived
