"""Summary: the statistics of a layer over all its channels, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The statistics of a layer over all its channels.

    Args:
        calls: The number of calls.
        count: The number of finite values. Only these enter the fields from `mean` to `zero_share`, which are NaN if
            there is none.
        mean: Their mean; NaN if there is none.
        std: Their standard deviation, of the population.
        min: The least of them.
        max: The largest of them.
        zero_share: The share of them that is exactly zero, from 0 to 1.
        channels: The number of channels.
        dead: The number of channels that were zero everywhere.
        nan: The number of values that were NaN.
        inf: The number of values that were infinite.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        ...     output = model(torch.tensor([[-1.0, 2.0]]))
        >>> tape["0"].output.summary().zero_share
        0.5
    """

    calls: int
    count: int
    mean: float
    std: float
    min: float
    max: float
    zero_share: float
    channels: int
    dead: int
    nan: int
    inf: int
