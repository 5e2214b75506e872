"""The attempts, by family. Each is drawn from a seed and a number, so that it can be repeated alone."""

from __future__ import annotations

import random
from collections.abc import Callable

from torture.damaged_files import damaged_file
from torture.exceptions import (
    asynchronous_exception,
    asynchronous_exception_at_a_time,
    exception_at_a_call,
    recursion_limit,
)
from torture.networks import Networks
from torture.session import Attempt, Session
from torture.signals import signal_at_a_time, signal_at_an_instruction, signals_all_the_time, two_signals
from torture.state import differences, state
from torture.surroundings import surroundings
from torture.threads_and_forks import fork, random_numbers_of_another_thread, threads


def attempted(session: Session, seed: int, number: int, family: str | None = None) -> Attempt:
    """Make one attempt, and compare the state of the networks and of the process before and after.

    Args:
        session: The networks of this process.
        seed: The seed of all attempts.
        number: The number of this one. The same seed and number make the same attempt.
        family: Its family; None to draw that, too.
    """
    family = family or family_of(seed, number)
    attempt = Attempt(family, random.Random(f"{seed} {family} {number}"))
    session.signals.reset()
    session.dropped.clear()
    session.new = attempt.draw.random() < 0.3
    if session.new:
        session.networks = Networks()
    session.networks.fuse.raise_at = 0
    session.before = state(session.networks)
    try:
        FAMILIES[family][0](session, attempt)
    except (Exception, KeyboardInterrupt) as error:
        attempt.failed.append(f"raised {type(error).__name__}: {error}")
    session.networks.fuse.raise_at = 0
    if found := differences(session.before, state(session.networks)):
        attempt.failed += found
    return attempt


Make = Callable[[Session, Attempt], None]

# The families, and how many of a hundred attempts are of each. The docstring of a function says what is attempted.
FAMILIES: dict[str, tuple[Make, int]] = {
    "signal at an instruction": (signal_at_an_instruction, 31),
    "two signals": (two_signals, 8),
    "signal at a time": (signal_at_a_time, 13),
    "signals all the time": (signals_all_the_time, 2),
    "asynchronous exception at an instruction": (asynchronous_exception, 10),
    "asynchronous exception at a time": (asynchronous_exception_at_a_time, 5),
    "recursion limit": (recursion_limit, 4),
    "exception in the user's k-th call": (exception_at_a_call, 10),
    "threads": (threads, 2),
    "random numbers of another thread": (random_numbers_of_another_thread, 1),
    "fork": (fork, 1),
    "surroundings": (surroundings, 5),
    "damaged file": (damaged_file, 6),
}


def family_of(seed: int, number: int) -> str:
    """The family of an attempt."""
    names, shares = list(FAMILIES), [share for _, share in FAMILIES.values()]
    return random.Random(f"{seed} {number}").choices(names, shares)[0]
