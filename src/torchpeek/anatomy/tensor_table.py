"""TensorTable: a dict of tensors by layer that prints as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import InputError
from torchpeek.hooks import containers
from torchpeek.html import MOST_ROWS, html_table, notebook_html
from torchpeek.keywords import checked_class
from torchpeek.tensor_formats import dense, element_count, has_values, shape_text, type_text
from torchpeek.text_table import text_table

_HEADER = ("layer", "shape", "dtype", "device", "min", "max", "mean")
_PRINTED = 60  # most rows of a printed table; of more, those in the middle are left out
_MOST_READ = 1 << 27  # values that are read for one table: half a second on one core


@checked_class
class TensorTable(dict[str, Any]):
    """A dict from layer name to a tensor, or to a container of tensors, that prints as a table.

    Each row has the shape, the dtype, and the smallest, the largest and the mean value, which are NaN where a value is.
    They are computed on the tensor's own device. Of complex numbers they are those of the magnitudes.

    Example:
        >>> outputs = tp.activations(nn.Sequential(nn.Identity()), torch.tensor([[0.0, 2.0]]), "0")
        >>> print(outputs)
        layer  shape   dtype    min  max  mean
        0      (1, 2)  float32  0    2    1
        1 tensor, 2 values
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
        rest = [(name, *[""] * (len(_HEADER) - 1)) for name, _ in rows[MOST_ROWS:]]  # which `html_table` counts
        return html_table(_HEADER, [*cells, *rest], footer=_footer(rows, cells))

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
        read += element_count(value)
        numbers = _numbers(value) if read <= _MOST_READ else ("not read", "", "")
        device = "" if value.device.type in ("cpu", "meta") else str(value.device)
        cells.append((name, shape_text(value), type_text(value), device, *numbers))
    return cells


def _numbers(tensor: Tensor) -> tuple[str, str, str]:
    """The smallest, the largest and the mean value as text, from one transfer; empty where a tensor has no numbers."""
    if not has_values(tensor) or not element_count(tensor):
        return "", "", ""
    try:
        values = tensor.detach()  # nothing that follows has a graph
        if values.is_nested:
            values = torch.cat([part.flatten() for part in values.unbind()])
        values = dense(values, "a tensor")
        values = values.abs() if values.is_complex() else values
        values = values.byte() if values.dtype == torch.bool else values  # which has no minimum
        # A sum in float32 may overflow although the mean does not. MPS has no float64.
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        low, high = torch.aminmax(values)
        numbers = torch.stack([low.to(wide), high.to(wide), values.mean(dtype=wide)]).tolist()
    except (InputError, RuntimeError, TypeError):  # a tensor that has no such operation
        return "", "", ""
    low_text, high_text, mean_text = (f"{number:.4g}" for number in numbers)
    return low_text, high_text, mean_text


def _footer(rows: list[tuple[str, Any]], cells: list[tuple[str, ...]]) -> str:
    sizes = [element_count(value) for _, value in rows if isinstance(value, Tensor)]
    text = f"{len(rows):,} {'tensor' if len(rows) == 1 else 'tensors'}, {sum(sizes):,} values"
    if any("not read" in row for row in cells):
        text += f"; numbers are read of the first {_MOST_READ:,} values"
    return text
