"""Session: the networks of a process, and what is known of its subjects; Attempt: one attempt, and what came of it."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from torture.interruptions import Arrived, Instructions, Signals
from torture.networks import Networks
from torture.state import SIGNALS
from torture.subjects import Subject, subjects


@dataclass
class Attempt:
    """One attempt, and what came of it.

    Args:
        family: Its family, a key of FAMILIES.
        draw: What it draws its details from.
        details: What was done, in words.
        failed: What was not as it must be; empty if all held.
        late: What was as found only after the next call of torchpeek.
    """

    family: str
    draw: random.Random
    details: str = ""
    failed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Undisturbed:
    """A subject's call without an attempt: its result, its instructions, its seconds, and the user's calls in it."""

    value: Any
    instructions: int
    seconds: float
    calls: int


class Session:
    """The networks of a process, and what is known of the subjects.

    New networks are made for some attempts: the first call of a network makes trial passes. After a failure the process
    may be as no state tells, so it is used no more.
    """

    def __init__(self) -> None:
        self.signals = Signals()
        self.signals.install(SIGNALS)
        self.dropped: list[str] = []  # where an exception came in a finalizer: Python prints it, and goes on
        sys.unraisablehook = self._note_dropped
        self.subjects = subjects()
        self.networks = Networks()
        self.before: dict[str, Any] = {}  # their state, and that of the process, before the attempt
        self.new = False  # whether nothing has been called with these networks
        self._undisturbed: dict[tuple[str, bool], Undisturbed] = {}
        for each in self.subjects.values():  # what a first call imports or registers is no attempt's doing
            each.run(self.networks)
        self.networks = Networks()

    def _note_dropped(self, what: sys.UnraisableHookArgs) -> None:
        self.signals.raising = False  # Python would drop what a handler raises here, too
        if isinstance(what.exc_value, (Arrived, KeyboardInterrupt, SystemExit, TimeoutError)):
            self.dropped.append(repr(what.object))
        else:
            sys.__unraisablehook__(what)

    def undisturbed(self, subject: Subject) -> Undisturbed:
        """What is known of a subject, with new networks or with used ones."""
        key = subject.name, self.new
        if key not in self._undisturbed:
            networks = Networks() if self.new else self.networks
            if not self.new:
                subject.run(networks)
            networks.fuse.calls = 0
            started = time.perf_counter()
            value = subject.run(networks)
            seconds = time.perf_counter() - started
            calls = networks.fuse.calls
            follow = Instructions()
            networks = Networks() if self.new else self.networks
            with follow.followed():
                subject.run(networks)
            self._undisturbed[key] = Undisturbed(value, follow.count, seconds, calls)
        return self._undisturbed[key]

    def subject(self, attempt: Attempt, *, runs_model: bool = False) -> Subject:
        listed = [each for each in self.subjects.values() if each.runs_model or not runs_model]
        return attempt.draw.choice(listed)
