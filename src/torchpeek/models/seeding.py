"""Random numbers while a model is built: drawn from a seed, and the caller's random states left as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from torchpeek.errors import InputError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of torch, NumPy and Python inside the block, and restore their states after it.

    The initialisers of torch draw from the global generators, so no generator of our own can take their place: other
    threads that draw meanwhile draw from the seed as well.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as states:
        states.enter_context(torch.random.fork_rng(devices=[]))
        # torch.manual_seed would also seed devices that are not initialised yet, and so outlive the block.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
            states.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def check_seed(seed: object) -> None:
    """Raise InputError for a seed that torch does not take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; allowed: a whole number from 0 to {2**63 - 1}")
