"""What a call returned or raised, and the checks of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import torchpeek as tp
from torture.session import Attempt, Session
from torture.state import differences, state
from torture.subjects import Subject

SECONDS_FOR_ANOTHER_THREAD = 20.0

_NOTHING = object()  # the result of a call that raised


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or what it raised."""

    value: Any = _NOTHING
    error: BaseException | None = None


def outcome_of(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(call())
    except BaseException as error:
        return Outcome(error=error.with_traceback(None))


def check(
    session: Session, attempt: Attempt, subject: Subject, outcome: Outcome, *allowed: type[BaseException]
) -> None:
    """A result is the one of an undisturbed call, an error is what arrived, and another thread can run the network."""
    if outcome.error is not None and type(outcome.error) not in allowed:
        attempt.failed.append(f"raised {type(outcome.error).__name__}: {outcome.error}")
    if outcome.value is not _NOTHING and not same(outcome.value, session.undisturbed(subject).value):
        attempt.failed.append("returned something else than undisturbed")
    if subject.runs_model:
        _check_locks(session, attempt)


def same(left: Any, right: Any) -> bool:
    """Whether they are equal up to rounding: without a replay, say, sums are of another order."""
    if isinstance(left, Tensor):
        return left.shape == right.shape and torch.allclose(left, right, rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _check_locks(session: Session, attempt: Attempt) -> None:
    networks = session.networks
    done: list[Any] = []
    thread = threading.Thread(
        target=lambda: done.append(outcome_of(lambda: tp.activations(networks.messy, networks.x, "conv"))), daemon=True
    )
    thread.start()
    thread.join(SECONDS_FOR_ANOTHER_THREAD)
    if not done:
        attempt.failed.append("another thread waits for a lock for ever")
    elif done[0].error is not None:
        attempt.failed.append(f"another thread got {done[0].error!r}")


def finished_by_the_next(session: Session, attempt: Attempt) -> None:
    """Note what was not as found, and make the next call, which finishes what was cut short."""
    found = differences(session.before, state(session.networks))
    if not found:
        return
    networks = session.networks
    tp.activations(networks.messy, networks.x, "conv")
    tp.activations(networks.clean, networks.x, "act")
    if not differences(session.before, state(networks)):
        attempt.late += found
