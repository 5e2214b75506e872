"""What has to be as it was: of a model, and of the process."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from networks import state_of
from torchpeek import signal_gate, undo
from torture.networks import Networks

SIGNALS = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# What a network's own forward counts here, in place, is not torchpeek's to undo.
_OWN_COUNTERS = frozenset({"user_calls", "fail_with"})


def state(networks: Networks) -> dict[str, Any]:
    """The state of both networks and of the process, in a form that `==` compares."""
    return {
        **{f"messy: {name}": value for name, value in model_state(networks.messy).items()},
        **{f"clean: {name}": value for name, value in model_state(networks.clean).items()},
        **process_state(),
    }


def model_state(model: nn.Module) -> dict[str, Any]:
    found = {name: value for name, value in state_of(model).items() if name not in ("random state", "grad mode")}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found["identities"] = {name: id(tensor) for name, tensor in tensors.items()}
    found["versions"] = {name: tensor._version for name, tensor in tensors.items()}
    found["attributes"] = {
        f"{name}.{attribute}": id(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in _OWN_COUNTERS and not attribute.startswith("_")
    }
    return found


def process_state() -> dict[str, Any]:
    return {
        "signal handlers": {number.name: signal.getsignal(number) for number in SIGNALS},
        "random state of torch": torch.get_rng_state().numpy().tobytes(),
        "random state of Python": hash(random.getstate()),
        "random state of NumPy": np.random.get_state()[1].tobytes(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "warnings": list(warnings.filters),
        "threads": threading.active_count(),
        "unraisable hook": sys.unraisablehook,
        "garbage collector": gc.isenabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "functions reach modes": torch._C._is_torch_function_enabled(),
        "recursion limit": sys.getrecursionlimit(),
        "hooks of all modules": _global_hooks(),
        "delayed signals": (len(signal_gate._levels), len(signal_gate._guards), len(signal_gate._pending)),
        "open blocks": len(undo._unfinished),
    }


def _global_hooks() -> Mapping[str, list[int]]:
    from torch.nn.modules import module
    from torch.optim import optimizer

    return {
        name: sorted(getattr(holder, name))
        for holder in (module, optimizer)
        for name in dir(holder)
        if name.startswith("_global_") and isinstance(getattr(holder, name), dict)
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, in words; empty if nothing does."""
    found = []
    for name in before:
        if before[name] == after.get(name):
            continue
        if isinstance(before[name], Mapping):
            found += [f"{name}: {each}" for each in differences(_complete(before, name, after), after[name])]
        else:
            found.append(f"{name}: {_shown(before[name])} -> {_shown(after.get(name))}")
    return found


def _complete(before: Mapping[str, Any], name: str, after: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of a nested mapping before, with None for those that are new."""
    return {**dict.fromkeys(after[name]), **before[name]}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
