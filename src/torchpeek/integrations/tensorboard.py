"""Writes to TensorBoard through a SummaryWriter, or any object with its methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchpeek.anatomy import GradientFlow, Kernels, Statistics, TrainingFlow
from torchpeek.engine import Trace
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.render import feature_grid, kernel_grid


class Writer(Protocol):
    """The methods of torch.utils.tensorboard.SummaryWriter that are called."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> Any:
        """Write one number."""

    def add_image(self, tag: str, img_tensor: Any, global_step: int | None = None, *, dataformats: str = "CHW") -> Any:
        """Write one picture."""

    def add_histogram_raw(
        self,
        tag: str,
        min: float,
        max: float,
        num: int,
        sum: float,
        sum_squares: float,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: int | None = None,
    ) -> Any:
        """Write one distribution."""


def add_kernels(
    writer: Writer, kernels: Mapping[str, Tensor], step: int = 0, *, remark: str = "", **options: Any
) -> None:
    """Write a picture of each layer's kernels, tagged `kernels/LAYER`.

    Weights that do not belong to a convolution are left out. Weights of transposed convolutions are drawn with the
    output first if `kernels` comes from `tp.kernels`, which knows them.

    Args:
        writer: The SummaryWriter.
        kernels: Layer name -> weight, as `tp.kernels` returns them.
        step: The global step.
        remark: Added to each title, such as "random weights".
        **options: Options of `render.kernel_grid`.
    """
    shown = kernels.by_output() if isinstance(kernels, Kernels) else kernels
    for layer, weight in shown.items():
        if 3 <= weight.ndim <= 5 and not weight.is_complex():
            _add_picture(writer, f"kernels/{layer}", kernel_grid(weight, title=_title(layer, remark), **options), step)


def add_features(
    writer: Writer, activations: Mapping[str, Tensor | Trace], step: int = 0, *, remark: str = "", **options: Any
) -> None:
    """Write a picture of the first sample's feature maps for each layer with a grid, tagged `features/LAYER`.

    Args:
        writer: The SummaryWriter.
        activations: Layer name -> output (N, C, h, w), as `tp.activations` returns them, or a trace of one sample.
            Other outputs are left out.
        step: The global step.
        remark: Added to each title, such as "random weights".
        **options: Options of `render.feature_grid`.
    """
    for layer, activation in activations.items():
        if isinstance(activation, Tensor):
            if activation.is_complex() or (activation.ndim != 4 and options.get("layout") is None):
                continue
            activation = activation if options.get("layout") else activation[0]
        elif not isinstance(activation, Trace):
            continue
        _add_picture(
            writer, f"features/{layer}", feature_grid(activation, title=_title(layer, remark), **options), step
        )


def add_statistics(writer: Writer, statistics: Statistics, step: int = 0) -> None:
    """Write each layer's mean, standard deviation, share of zeros, dead channels, and its histogram if there is one."""
    for row in statistics:
        for what, values in (("activation", row.output), ("gradient", row.gradient)):
            if values is not None and values.calls:
                _add_layer(writer, f"{what}/{row.name}", values, step)


def add_gradient_flow(writer: Writer, flow: GradientFlow, step: int = 0) -> None:
    """Write the gradient norm of each parameter that has a gradient, that over all parameters, and the loss."""
    for row in flow:
        if row.gradient_norm is not None:
            writer.add_scalar(f"gradient_norm/{row.layer}.{row.parameter}", row.gradient_norm, step)
    writer.add_scalar("gradient_norm/all", flow.total_norm, step)
    writer.add_scalar("loss", flow.loss, step)


def add_training_flow(writer: Writer, flow: TrainingFlow, since: int = 0) -> None:
    """Write the norms of each block at each step that `tp.watch` saw, tagged `gradient_norm/LAYER` and so on.

    Args:
        writer: The SummaryWriter.
        flow: What `tp.watch` yields.
        since: Leave out steps before this one, which an earlier call has written.

    Example:
        >>> with tp.watch(model := nn.Linear(2, 1)) as flow:
        ...     model(torch.rand(4, 2)).square().mean().backward()
        ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
        >>> from torchpeek.integrations.tensorboard import add_training_flow
        >>> add_training_flow(SummaryWriter(folder), flow)  # of torch.utils.tensorboard
    """
    for row in flow:
        if row.step >= since:
            name = row.layer or "(model)"
            for what in ("gradient_norm", "weight_norm", "update_ratio"):
                value = getattr(row, what)
                if value is not None:
                    writer.add_scalar(f"{what}/{name}", value, row.step)
    for step in flow.steps:
        total = flow.total_norm(step)
        if step >= since and total is not None:
            writer.add_scalar("gradient_norm/all", total, step)


def _add_layer(writer: Writer, tag: str, statistics: RunningStatistics, step: int) -> None:
    whole = statistics.summary()
    for name, value in (
        ("mean", whole.mean),
        ("std", whole.std),
        ("zero_share", whole.zero_share),
        ("dead", whole.dead),
        ("not_finite", whole.nan + whole.inf),
    ):
        writer.add_scalar(f"{tag}/{name}", value, step)
    if statistics.has_histogram:
        counts, edges = statistics.histogram()
        middles = (edges[1:] + edges[:-1]) / 2
        writer.add_histogram_raw(
            f"{tag}/histogram",
            min=float(edges[0]),
            max=float(edges[-1]),
            num=round(float(counts.sum())),  # the counts may be fractions
            sum=float((counts * middles).sum()),
            sum_squares=float((counts * middles.square()).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


def _title(layer: str, remark: str) -> str:
    return f"{layer} ({remark})" if remark else layer


def _add_picture(writer: Writer, tag: str, image: Image.Image, step: int) -> None:
    writer.add_image(tag, torch.from_numpy(np.array(image)), step, dataformats="HWC")
