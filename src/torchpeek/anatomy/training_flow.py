"""The table of a training that watch() yields: a row for each block and watched step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from torchpeek.anatomy.table import Table
from torchpeek.errors import InputError
from torchpeek.keywords import checked_class
from torchpeek.render.axes_plots import training_plot
from torchpeek.render.training import FlowColumn

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class BlockStep:
    """One block in one watched step of the training.

    Args:
        step: The number of the step, from 0: so many steps were taken before it.
        layer: Name of the block; "" is the model itself.
        numel: Number of the elements of its parameters.
        weight_norm: Euclidean norm of its parameters before the step.
        gradient_norm: Euclidean norm of the gradients that the optimizer finds in `.grad`: summed over the batches that
            were accumulated, and after clipping. With a GradScaler it is of the gradients without the scale. None
            without a gradient.
        update_norm: Euclidean norm of what the step changed: weights after it minus weights before it. None if no
            optimizer took a step with these parameters.
        update_ratio: `update_norm / weight_norm`. About 1e-3 is usual. None without an update, or if all
            weights were 0.
        remark: Why there is no number, or what is wrong with it.
    """

    step: int
    layer: str
    numel: int
    weight_norm: float
    gradient_norm: float | None
    update_norm: float | None
    update_ratio: float | None
    remark: str = ""


@checked_class
class TrainingFlow(Table[BlockStep]):
    """The watched steps of a training: a row for each block and step. It grows while the training runs.

    It prints the latest watched step. `rows` has all of them, the oldest first.

    Args:
        every: Each step whose number can be divided by this is watched.

    Attributes:
        every: The same.
        step_count: The number of steps that were taken, also of those that were not watched.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with tp.watch(model, every=1) as flow:
        ...     model(torch.rand(4, 2)).square().mean().backward()
        ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
        >>> flow.step_count, flow.steps, len(flow.latest)
        (1, (0,), 1)
    """

    header = ("layer", "size", "gradient norm", "weight norm", "update norm", "update / weight", "remark")

    def __init__(self, every: int) -> None:
        self.every = every
        self.step_count = 0
        self._by_step: dict[int, tuple[BlockStep, ...]] = {}
        self._totals: dict[int, float | None] = {}

    @property
    def rows(self) -> tuple[BlockStep, ...]:  # type: ignore[override]  # it grows, so it is no attribute
        """All rows, the oldest step first, and in a step in the order of `named_modules`."""
        return tuple(row for rows in self._by_step.values() for row in rows)

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the steps that were watched."""
        return tuple(self._by_step)

    @property
    def latest(self) -> tuple[BlockStep, ...]:
        """The rows of the latest watched step; empty before the first."""
        return self._by_step[self.steps[-1]] if self._by_step else ()

    def total_norm(self, step: int) -> float | None:
        """Return the gradient norm over all blocks in a watched step, each parameter counted once.

        Args:
            step: The number of the step.

        Returns:
            The norm, or None if no parameter had a gradient.

        Raises:
            InputError: When that step was not watched.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> with tp.watch(model) as seen:
            ...     model(torch.tensor([[3.0, 4.0]])).sum().backward()
            ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
            >>> f"{seen.total_norm(0):.4f}"
            '5.0990'
        """
        if step not in self._totals:
            raise InputError(f"step {step} was not watched; watched steps: {list(self._totals)}")
        return self._totals[step]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the rows as columns, for example for `pandas.DataFrame(seen.to_dict())`.

        Returns:
            The names of the fields of BlockStep -> their values, one for each row.

        Example:
            >>> with tp.watch(model := nn.Linear(2, 1)) as seen:
            ...     model(torch.rand(4, 2)).square().mean().backward()
            ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
            >>> columns = seen.to_dict()
            >>> columns["step"], columns["layer"], columns["numel"]
            ([0], [''], [3])
        """
        rows = [asdict(row) for row in self.rows]
        return {field.name: [row[field.name] for row in rows] for field in fields(BlockStep)}

    def plot(self, ax: Axes | None = None, *, column: FlowColumn = "gradient_norm") -> Axes:
        """Plot one number of each block, step by step. Needs the extra `plot`.

        A line is a block, from dark (the first) to light (the last). The axis of the number is logarithmic; what it
        cannot show, such as zero, NaN or that of a frozen block, is a gap. `tp.render.training_flow` draws the gradient
        norms above the update ratios, in one figure.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.
            column: What to draw: "gradient_norm", "weight_norm", "update_norm" or "update_ratio". The dotted line in
                a plot of the ratio marks a usual one, 1e-3.

        Returns:
            The matplotlib Axes.

        Raises:
            InputError: When no step was watched yet.
            OptionError: When there is no such column.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> with tp.watch(model := nn.Linear(2, 1)) as flow:
            ...     model(torch.rand(4, 2)).square().mean().backward()
            ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
            >>> flow.plot(column="update_ratio").get_ylabel()
            'update / weights'
        """
        return training_plot(ax, self.rows, column)

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows of the latest watched step as text, as in `Table.cells`."""
        return [
            (
                row.layer or "(model)",
                f"{row.numel:,}",
                *(
                    "" if value is None else f"{value:.4g}"
                    for value in (row.gradient_norm, row.weight_norm, row.update_norm, row.update_ratio)
                ),
                row.remark,
            )
            for row in self.latest
        ]

    @property
    def footer(self) -> str:
        """Which step the printed rows are of, and the gradient norm over all blocks."""
        if not self._by_step:
            return "no step yet"
        step = self.steps[-1]
        total = self._totals[step]
        norm_text = "" if total is None else f"; gradient norm over all blocks {total:.4g}"
        return (
            f"step {step}, counted from 0{norm_text}\n.rows has all {len(self.steps)} watched steps, of "
            f"{self.step_count} that were taken"
        )

    def _add(self, step: int, rows: Sequence[BlockStep], total: float | None) -> None:
        """Add the rows of a step, in place of earlier ones of the same step."""
        self._by_step[step] = tuple(rows)
        self._totals[step] = total
