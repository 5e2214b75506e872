"""Weights files: safetensors, and pickles without code unless the caller trusts them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.errors import FormatError, WeightsError, type_shown
from torchpeek.store import open_regular, read_safetensors
from torchpeek.system_errors import is_from_outside, is_of_library


def load_weights_file(module: nn.Module, path: Path, *, trust_pickle: bool = False) -> None:
    """Load `path` into `module`, all keys or none. The WeightsError for keys that do not fit names them."""
    state = _state_dict(_read(path, trust_pickle), path)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
        listed = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in parts if keys)
        raise WeightsError(
            f"{path.name} does not fit {type(module).__name__}, which has {len(expected)} keys: {listed}. Next: check "
            "the architecture and the number of classes"
        )
    module.load_state_dict(state)


def _read(path: Path, trust_pickle: bool) -> Any:
    if not os.path.lexists(path):
        raise WeightsError(f"no weights file {str(path)!r}")
    try:
        with open_regular(path, WeightsError) as file:  # once, because the name may lead to another file later
            if path.suffix == ".safetensors":
                return read_safetensors(file, path.name, "weights")
            return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except (WeightsError, FormatError) as error:
        raise WeightsError(str(error)) from error
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise WeightsError(f"{path.name} cannot be read: {error}") from error
        raise WeightsError(
            f"{path.name} holds more than tensors, so loading it may run any code in it. Next: save a state_dict, "
            "best as .safetensors; or, only if you trust its author, use --trust-pickle"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if is_from_outside(error) or (isinstance(error, OSError) and not is_of_library(error)):
            raise
        raise WeightsError(f"{path.name} cannot be read as weights: {error}") from error


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict: the saved object itself, the usual key of a checkpoint, or that of a whole module."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path.name} holds no state_dict; it holds {type_shown(loaded)}")
    state = dict(loaded)
    if all(key.startswith("module.") for key in state):  # saved from a DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _first(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
