"""Convert weights that flax saved, a pickle of NumPy arrays, to a safetensors file with torchvision's names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)  # their places in torchvision's AlexNet.features


def alexnet_features(source: Path, target: Path) -> None:
    """Write the convolutions of AlexNet, Conv_0 to Conv_4 in the source, as a state dict of torchvision's features."""
    with source.open("rb") as file:
        layers = _ArraysOnly(file).load()["AlexNet_0"]
    state = {}
    for number, place in enumerate(ALEXNET_CONVOLUTIONS):
        layer = layers[f"Conv_{number}"]
        kernel = np.transpose(layer["kernel"], (3, 2, 0, 1))  # (h, w, in, out) to (out, in, h, w)
        state[f"{place}.weight"] = np.ascontiguousarray(kernel)
        state[f"{place}.bias"] = np.ascontiguousarray(layer["bias"])
    save_file(state, target)


class _ArraysOnly(pickle.Unpickler):
    """Read NumPy arrays in plain containers. A pickle that names anything else, and could so run code, is refused."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # NumPy 2 renamed the module.
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file names {module}.{name}; only NumPy arrays are read")
        return self._ALLOWED[module, name]
