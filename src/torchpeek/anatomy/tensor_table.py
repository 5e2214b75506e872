"""TensorTable: a dict of tensors by layer that prints as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchpeek.hooks import containers
from torchpeek.html import MOST_ROWS, notebook_html, table
from torchpeek.text_table import text_table

_HEADER = ("layer", "shape", "dtype", "device", "min", "max", "mean")
_PRINTED = 60  # most rows of a printed table; of more, those in the middle are left out
_MOST_READ = 1 << 27  # values that are read for one table: half a second on one core


class TensorTable(dict[str, Any]):
    """A dict from layer name to a tensor, or to a container of tensors, that prints as a table.

    Each row has the shape, the dtype, and the smallest, the largest and the mean value, which are NaN where a value is.
    They are computed on the tensor's own device. Of complex numbers they are those of the magnitudes.
    """

    def __repr__(self) -> str:
        rows = self._tensors()
        half = _PRINTED // 2
        if len(rows) <= _PRINTED:
            cells = _cells(rows)
        else:
            cells = _cells(rows[:half] + rows[-half:])
            cells.insert(half, (f"... {len(rows) - 2 * half:,} more", *[""] * (len(_HEADER) - 1)))
        return text_table(_HEADER, cells, _footer(rows, cells))

    @notebook_html
    def _repr_html_(self) -> str:
        rows = self._tensors()
        cells = _cells(rows[:MOST_ROWS])
        rest = [(name, *[""] * (len(_HEADER) - 1)) for name, _ in rows[MOST_ROWS:]]  # which `table` counts
        return table(_HEADER, [*cells, *rest], footer=_footer(rows, cells))

    def _tensors(self) -> list[tuple[str, Any]]:
        """A name for each tensor: `lstm:1.0` is the tensor at that path of the layer's output."""
        return [
            (f"{name}:{path}" if path else name, leaf)
            for name, value in self.items()
            for path, leaf in (list(containers.leaves(value)) or [("", value)])
        ]


def _cells(rows: list[tuple[str, Any]]) -> list[tuple[str, ...]]:
    cells, read = [], 0
    for name, value in rows:
        if not isinstance(value, Tensor):
            cells.append((name, f"no tensor, but {type(value).__name__}", *[""] * 5))
            continue
        read += 0 if value.is_nested else value.numel()
        numbers = _numbers(value) if read <= _MOST_READ else ("not read", "", "")
        shape = "nested" if value.is_nested else str(tuple(value.shape))
        dtype = str(value.dtype).removeprefix("torch.")
        if value.layout not in (torch.strided, torch.jagged):
            dtype += f", {str(value.layout).removeprefix('torch.')}"
        device = "" if value.device.type == "cpu" else str(value.device)
        cells.append((name, shape, dtype, device, *numbers))
    return cells


def _numbers(tensor: Tensor) -> tuple[str, str, str]:
    """The smallest, the largest and the mean value as text, from one transfer; empty where a tensor has no numbers."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return "", "", ""
    try:
        with torch.no_grad():
            values = tensor.detach()
            values = values.dequantize() if values.is_quantized else values
            values = values.abs() if values.is_complex() else values
            values = values.to(_COMPUTABLE[values.dtype]) if values.dtype in _COMPUTABLE else values
            # A sum in float32 may overflow although the mean does not. MPS has no float64.
            wide = torch.float32 if values.device.type == "mps" else torch.float64
            low, high = torch.aminmax(values)
            numbers = torch.stack([low.to(wide), high.to(wide), values.mean(dtype=wide)]).tolist()
    except (RuntimeError, TypeError):  # a kind of tensor that has no such operation, such as a fake one
        return "", "", ""
    low_text, high_text, mean_text = (f"{number:.4g}" for number in numbers)
    return low_text, high_text, mean_text


# The dtypes without a minimum -> one that holds their values.
_COMPUTABLE = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
}


def _footer(rows: list[tuple[str, Any]], cells: list[tuple[str, ...]]) -> str:
    sizes = [value.numel() for _, value in rows if isinstance(value, Tensor) and not value.is_nested]
    text = f"{len(rows):,} {'tensor' if len(rows) == 1 else 'tensors'}, {sum(sizes):,} values"
    if any("not read" in row for row in cells):
        text += f"; numbers are read of the first {_MOST_READ:,} values"
    return text
