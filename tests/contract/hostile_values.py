"""Values that no argument is made for, by name; each is made anew, because some can be used once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "minus one": lambda: -1,
    "zero": lambda: 0,
    "1.5": lambda: 1.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "2**70": lambda: 2**70,
    "10**9": lambda: 10**9,
    "empty text": lambda: "",
    "a letter": lambda: "a",
    "1G": lambda: "1G",
    "bytes": lambda: b"",
    "a class": lambda: nn.ReLU,
    "an object": object,
    "a state_dict": lambda: nn.Conv2d(3, 4, 3).state_dict(),
    "an empty list": list,
    "an empty dict": dict,
    "a dict of None": lambda: {"gradcam": None},
    "a function": lambda: lambda *args, **kwargs: None,
    "a meta tensor": lambda: torch.zeros(1, 3, 8, 8, device="meta"),
    "an empty tensor": lambda: torch.zeros(0, 3, 8, 8),
    "a complex tensor": lambda: torch.zeros(1, 3, 8, 8, dtype=torch.complex64),
    "an integer tensor": lambda: torch.ones(1, 3, 8, 8, dtype=torch.int64),
    "a scalar tensor": lambda: torch.tensor(math.nan),
    "an array of texts": lambda: np.array(["a", "b"]),
    "an array of objects": lambda: np.array([None, object()]),
    "a lone surrogate": lambda: "\ud800",
    "a long text": lambda: "a" * 100_000,
    "a deep list": lambda: _nested(2_000),
    "a set": lambda: {1, "a"},
    "a generator": lambda: (each for each in (None, "a")),
    "a list of None": lambda: [None],
    "a list of huge numbers": lambda: [2**70, -(2**70)],
    "a module": lambda: nn.Identity(),
}
