"""Attempts with several threads, and with a forked process."""

from __future__ import annotations

import os
import signal
import threading
import time

import torch

import torchpeek as tp
from torture.outcomes import Outcome, check, outcome_of, same
from torture.session import Attempt, Session
from torture.subjects import Subject


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
        outcomes[name] = outcome_of(lambda: subject.run(session.networks))

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
        check(session, attempt, each, outcome)
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

    # rise draws by itself. cam is not defined for this network, and fused attention has no second derivative.
    method = attempt.draw.choice([name for name in tp.METHODS if name not in ("rise", "cam", "shapleycam")])
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
            if not same(subject.run(networks), expected):
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
