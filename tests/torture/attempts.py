"""The attempts, by family. Each is drawn from a seed and a number, so that it can be repeated alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchpeek as tp
from torchpeek.errors import TorchpeekError
from torture.interruptions import Arrived, Instructions, Signals, raise_in, raised_after, sent_after
from torture.networks import Countdown, Networks
from torture.state import SIGNALS, differences, process_state, state
from torture.subjects import Subject, subjects

SECONDS_FOR_ANOTHER_THREAD = 20.0


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

    New networks are made after a failure, and for some attempts: the first call of a network makes trial passes.
    """

    def __init__(self) -> None:
        self.signals = Signals()
        self.signals.install(SIGNALS)
        self.dropped: list[str] = []  # what handlers raised in finalizers: Python prints it, and goes on
        sys.unraisablehook = self._note_dropped
        self.subjects = subjects()
        self.networks = Networks()
        self.process: dict[str, Any] = {}
        self.new = False  # whether nothing has been called with these networks
        self._undisturbed: dict[tuple[str, bool], Undisturbed] = {}
        for each in self.subjects.values():  # what a first call imports or registers is no attempt's doing
            each.run(self.networks)
        self.renew()

    def _note_dropped(self, what: sys.UnraisableHookArgs) -> None:
        self.signals.raising = False  # Python would drop what a handler raises here, too
        if isinstance(what.exc_value, (Arrived, KeyboardInterrupt)):
            self.dropped.append(repr(what.object))
        else:
            sys.__unraisablehook__(what)

    def renew(self) -> None:
        """Make new networks, and put the process right as far as that goes. `broken` says whether it did not."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.signals.install(SIGNALS)
        torch.set_grad_enabled(True)
        with torch.inference_mode(False):
            self.networks = Networks()
        self.before = state(self.networks)
        found = {name: value for name, value in process_state().items() if not name.startswith("random")}
        self.process = self.process or found
        self.broken = found != self.process

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
        session.renew()
    session.networks.fuse.raise_at = 0
    session.before = state(session.networks)
    try:
        FAMILIES[family][0](session, attempt)
    except (Exception, KeyboardInterrupt) as error:
        attempt.failed.append(f"raised {type(error).__name__}: {error}")
    session.networks.fuse.raise_at = 0
    if found := differences(session.before, state(session.networks)):
        attempt.failed += found
    if attempt.failed:
        session.renew()
    return attempt


_NOTHING = object()  # the result of a call that raised


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or what it raised."""

    value: Any = _NOTHING
    error: BaseException | None = None


def _outcome(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(call())
    except BaseException as error:
        return Outcome(error=error.with_traceback(None))


def _check(
    session: Session, attempt: Attempt, subject: Subject, outcome: Outcome, *allowed: type[BaseException]
) -> None:
    """A result is the one of an undisturbed call, an error is what arrived, and another thread can run the network."""
    if outcome.error is not None and type(outcome.error) not in allowed:
        attempt.failed.append(f"raised {type(outcome.error).__name__}: {outcome.error}")
    if outcome.value is not _NOTHING and not _same(outcome.value, session.undisturbed(subject).value):
        attempt.failed.append("returned something else than undisturbed")
    if subject.runs_model:
        _check_locks(session, attempt)


def _same(left: Any, right: Any) -> bool:
    """Whether they are equal up to rounding: without a replay, say, sums are of another order."""
    if isinstance(left, Tensor):
        return left.shape == right.shape and torch.allclose(left, right, rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _check_locks(session: Session, attempt: Attempt) -> None:
    networks = session.networks
    done: list[Any] = []
    thread = threading.Thread(
        target=lambda: done.append(_outcome(lambda: tp.activations(networks.messy, networks.x, "conv"))), daemon=True
    )
    thread.start()
    thread.join(SECONDS_FOR_ANOTHER_THREAD)
    if not done:
        attempt.failed.append("another thread waits for a lock for ever")
    elif done[0].error is not None:
        attempt.failed.append(f"another thread got {done[0].error!r}")


# ---- signals ----


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

    outcome = _outcome(run)
    attempt.details = f"{subject.name}, {number.name} at {follow.place}"
    expected = [number.value] * bool(follow.place) + [signal.SIGALRM.value] * (
        bool(follow.place) and alarm_after is not None
    )
    _check_signals(session, attempt, expected, outcome)
    _check(session, attempt, subject, outcome, KeyboardInterrupt, Arrived)


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

    outcome = _outcome(run)
    attempt.details = f"{subject.name}, {number.name} after {seconds * 1000:.1f} ms"
    _check_signals(session, attempt, [number.value], outcome)
    _check(session, attempt, subject, outcome, KeyboardInterrupt, Arrived)


def signals_all_the_time(session: Session, attempt: Attempt) -> None:
    """SIGALRM arrives a thousand times a second, and its handler only counts."""
    subject = session.subject(attempt)
    signals = session.signals
    signals.raising = False
    session.undisturbed(subject)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-3)
    started = time.perf_counter()
    try:
        outcome = _outcome(lambda: subject.run(session.networks))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    attempt.details = f"{subject.name}, {len(signals.received)} signals in {seconds * 1000:.0f} ms"
    if seconds > 0.01 and not signals.received:
        attempt.failed.append("the handler was never called")
    _check(session, attempt, subject, outcome)


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
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(1e-4)


# ---- exceptions that nothing can hold back ----


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

    outcome = _outcome(run)
    attempt.details = f"{subject.name}, {error.__name__} at {follow.place}"
    if follow.place and outcome.error is None:
        attempt.failed.append("what was raised was lost")
    _finished_by_the_next(session, attempt)
    _check(session, attempt, subject, outcome, error)


def asynchronous_exception_at_a_time(session: Session, attempt: Attempt) -> None:
    """PyThreadState_SetAsyncExc raises an exception at a chosen moment, from another thread."""
    subject = session.subject(attempt)
    error = attempt.draw.choice([Arrived, TimeoutError])
    seconds = attempt.draw.uniform(0, 1.0) * session.undisturbed(subject).seconds

    def run() -> Any:
        with raised_after(seconds, error):
            return subject.run(session.networks)

    outcome = _outcome(run)
    attempt.details = f"{subject.name}, {error.__name__} after {seconds * 1000:.1f} ms"
    _finished_by_the_next(session, attempt)
    _check(session, attempt, subject, outcome, error)


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

    outcome = _outcome(run)
    attempt.details = f"{subject.name}, {frames} frames left"
    _finished_by_the_next(session, attempt)
    _check(session, attempt, subject, outcome, RecursionError)


def _depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return depth


def _finished_by_the_next(session: Session, attempt: Attempt) -> None:
    """Note what was not as found, and make the next call, which finishes what was cut short."""
    found = differences(session.before, state(session.networks))
    if not found:
        return
    networks = session.networks
    tp.activations(networks.messy, networks.x, "conv")
    tp.activations(networks.clean, networks.x, "act")
    if not differences(session.before, state(networks)):
        attempt.late += found


# ---- exceptions of the user's own code ----

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
    outcome = _outcome(lambda: subject.run(session.networks))
    attempt.details = f"{subject.name}, {type(error).__name__} in call {fuse.raise_at} of {calls}"
    # Out of memory in a chunk that torchpeek has made, it tries smaller ones.
    if fuse.calls >= fuse.raise_at and outcome.error is None and not isinstance(error, torch.OutOfMemoryError):
        attempt.failed.append("the user's exception was swallowed")
    fuse.raise_at = 0
    _check(session, attempt, subject, outcome, type(error))
    if not _same(subject.run(session.networks), session.undisturbed(subject).value):
        attempt.failed.append("afterwards, the same call returns something else")


# ---- threads and processes ----


def threads(session: Session, attempt: Attempt) -> None:
    """Several threads make calls with one network, and another one draws random numbers."""
    chosen = [session.subject(attempt, runs_model=True) for _ in range(3)]
    chosen = [each for each in chosen if each.name not in _RUN_BY_THE_USER] or [session.subjects["compare"]]
    attempt.details = ", ".join(each.name for each in chosen)
    for each in chosen:
        session.undisturbed(each)
    outcomes: dict[str, Outcome] = {}
    drawn: list[float] = []
    ended = threading.Event()

    def work(name: str, subject: Subject) -> None:
        outcomes[name] = _outcome(lambda: subject.run(session.networks))

    def draw() -> None:
        while not ended.is_set():
            drawn.append(torch.rand((), dtype=torch.float64).item())
            time.sleep(1e-4)

    random_state = torch.get_rng_state()
    running = [
        threading.Thread(target=work, args=(f"{number}", each), daemon=True) for number, each in enumerate(chosen)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    ended.set()
    if any(thread.is_alive() for thread in running):
        attempt.failed.append("the threads wait for each other for ever")
    for number, each in enumerate(chosen):
        outcome = outcomes.get(f"{number}", Outcome())
        _check(session, attempt, each, outcome)
    torch.set_rng_state(random_state)


# What these record or change are the passes of the user's own thread.
_RUN_BY_THE_USER = frozenset({"check_finite", "watch", "evaluate randomisation", "edit", "nested blocks"})


def random_numbers_of_another_thread(session: Session, attempt: Attempt) -> None:
    """Another thread draws random numbers while a network that draws none is explained."""
    drawn: list[float] = []
    ended = threading.Event()
    random_state = torch.get_rng_state()

    def draw() -> None:
        while not ended.is_set():
            drawn.append(torch.rand((), dtype=torch.float64).item())
            time.sleep(2e-5)

    # rise draws by itself, and cam is not defined for this network.
    method = attempt.draw.choice([name for name in tp.METHODS if name not in ("rise", "cam")])
    attempt.details = f"explain {method}"
    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        for _ in range(5):
            tp.explain(session.networks.clean, session.networks.x, method=method, layer="act", target=1)
    finally:
        ended.set()
        thread.join()
        torch.set_rng_state(random_state)
    if len(set(drawn)) < len(drawn):
        attempt.failed.append(f"only {len(set(drawn))} of {len(drawn)} random numbers of another thread were distinct")


def fork(session: Session, attempt: Attempt) -> None:
    """The process forks while another thread explains; the child explains, too."""
    networks, ended = session.networks, threading.Event()
    subject = session.subjects["explain cam"]
    expected = session.undisturbed(subject).value
    random_state = torch.get_rng_state()

    def work() -> None:
        while not ended.is_set():
            tp.explain(networks.messy, networks.x, method="eigencam", target=1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(attempt.draw.uniform(0, 0.01))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        status = 1
        try:
            modes = {name: module.training for name, module in networks.messy.named_modules()}
            if not _same(subject.run(networks), expected):
                status = 2
            elif modes != session.before["messy: modes"]:
                status = 3
            else:
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    ended.set()
    thread.join()
    torch.set_rng_state(random_state)
    attempt.details = "explain cam in a child"
    meaning = {1: "the child raised", 2: "the child got something else", 3: "the child found the network in eval mode"}
    if os.WIFSIGNALED(status):
        attempt.failed.append("the child waited for ever")
    elif code := os.waitstatus_to_exitcode(status):
        attempt.failed.append(meaning[code])


# ---- surroundings ----


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class _EveryFunction(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class _EveryOperation(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": _default_dtype,
    "deterministic algorithms": _deterministic,
    "a function mode": _EveryFunction,
    "a dispatch mode": _EveryOperation,
    "saved tensor hooks": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor, lambda tensor: tensor
    ),
    "a device": lambda: torch.device("cpu"),
    "fork_rng": torch.random.fork_rng,
    "no multithreaded backward": lambda: torch.autograd.set_multithreading_enabled(False),
}


def surroundings(session: Session, attempt: Attempt) -> None:
    """The call is made inside one or more of the caller's own contexts."""
    subject = session.subject(attempt)
    names = attempt.draw.sample(sorted(SURROUNDINGS), attempt.draw.randint(1, 3))
    attempt.details = f"{subject.name} inside {', '.join(names)}"

    def run() -> Any:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(SURROUNDINGS[name]())
            inside = state(session.networks)
            try:
                return subject.run(session.networks)
            finally:
                attempt.failed += differences(inside, state(session.networks))

    outcome = _outcome(run)
    # In a pass of the user's own, the contexts have their effect, and an error says that there are no gradients.
    # The caller's autocast holds in every pass.
    own_pass = subject.name in _OWN_PASSES
    if isinstance(outcome.error, TorchpeekError) or (own_pass and isinstance(outcome.error, RuntimeError)):
        return
    if own_pass or "autocast" in names:
        outcome = Outcome(error=outcome.error)
    _check(session, attempt, subject, outcome)


_OWN_PASSES = frozenset({
    "record", "record with backward", "record statistics", "edit", "check_finite", "watch", "nested blocks",
    "TensorStream", "record_gradients", "edit_gradient",
})  # fmt: skip


# ---- files ----


@cache
def _files() -> Mapping[str, tuple[bytes, Callable[[Path], Any]]]:
    nn = torch.nn
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        heatmap = tp.explain(model, torch.rand(2, 3, 8, 8), layer="1", target=torch.tensor([[0, 1], [2, 3]]))
        with tempfile.TemporaryDirectory() as folder:
            tp.save(heatmap, Path(folder) / "heatmap.safetensors")
            stream = tp.TensorStream(Path(folder) / "stream")
            with tp.record(model, "1", keep=tp.keep.Callback(stream)), torch.no_grad():
                model(torch.rand(2, 3, 8, 8))
            (part,) = (Path(folder) / "stream").glob("*.safetensors")
            name = part.name
            contents = (Path(folder) / "heatmap.safetensors").read_bytes(), part.read_bytes()

    def load_heatmap(file: Path) -> Any:
        loaded = tp.load(file)
        text = json.dumps(loaded.provenance.__dict__, default=str, sort_keys=True)
        return [loaded.values, loaded.scores, text]

    def load_stream(file: Path) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(file.read_bytes())
            return list(tp.TensorStream.opened(folder).read("1"))

    return {"heatmap": (contents[0], load_heatmap), "tensor": (contents[1], load_stream)}


def damaged_file(session: Session, attempt: Attempt) -> None:
    """A file is loaded of which some bytes were changed, left out, doubled or cut off."""
    draw = attempt.draw
    name = draw.choice(sorted(_files()))
    content, load = _files()[name]
    damage = draw.choice(["changed", "left out", "doubled", "cut off", "zeroed", "appended"])
    # Half of the damage is in the header, which is much shorter than the data.
    place = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(len(content), 2048))
    length = draw.choice([1, 1, 1, 2, 8, 64])
    damaged = bytearray(content)
    if damage == "changed":
        damaged[place] ^= draw.randint(1, 255)
    elif damage == "left out":
        del damaged[place : place + length]
    elif damage == "doubled":
        damaged[place:place] = damaged[place : place + length]
    elif damage == "cut off":
        del damaged[place:]
    elif damage == "zeroed":
        damaged[place : place + length] = bytes(len(damaged[place : place + length]))
    else:
        damaged += draw.randbytes(length)
    attempt.details = f"{name}, {length} bytes at {place} {damage}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.safetensors"
        file.write_bytes(content)
        expected = load(file)
        file.write_bytes(damaged)
        outcome = _outcome(lambda: load(file))
    if outcome.error is not None:
        if not isinstance(outcome.error, TorchpeekError):
            attempt.failed.append(f"raised {type(outcome.error).__name__}: {outcome.error}")
    elif not _same(outcome.value, expected):
        attempt.failed.append("the damaged file was loaded, and its content is another")


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
