"""Attempts inside the caller's own contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from torchpeek.errors import TorchpeekError
from torture.outcomes import Outcome, check, outcome_of
from torture.session import Attempt, Session
from torture.state import differences, state


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

    outcome = outcome_of(run)
    # In a pass of the user's own, the contexts have their effect, and an error says that there are no gradients.
    # The caller's autocast holds in every pass.
    own_pass = subject.name in _OWN_PASSES
    if isinstance(outcome.error, TorchpeekError) or (own_pass and isinstance(outcome.error, RuntimeError)):
        return
    if own_pass or "autocast" in names:
        outcome = Outcome(error=outcome.error)
    check(session, attempt, subject, outcome)


_OWN_PASSES = frozenset({
    "record", "record with backward", "record statistics", "edit", "check_finite", "watch", "nested blocks",
    "TensorStream", "record_gradients", "edit_gradient",
})  # fmt: skip
