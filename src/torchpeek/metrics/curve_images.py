"""The curves of a metric as an image that notebooks show."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from torchpeek.html import image_tag
from torchpeek.render.axes_plots import curve_plot
from torchpeek.render.plots import figure_class
from torchpeek.store import figure_bytes

_SIZE = (4.6, 3.4)  # inches
_DPI = 90


def metric_title(metric: str, *, higher_is_better: bool) -> str:
    """Return the title of a plot: the metric, and whether a higher value is better."""
    return f"{metric}: {'higher' if higher_is_better else 'lower'} is better"


def curves_image(
    curves: Mapping[str, Tensor], baselines: Mapping[str, Tensor], *, metric: str, higher_is_better: bool, seed: int
) -> str:
    """Draw the mean curve of each method by one metric, with those of the baselines.

    Args:
        curves: Method -> (N, steps + 1).
        baselines: Baseline -> (N, steps + 1).
        metric: Name of the metric.
        higher_is_better: Whether a higher value is better.
        seed: Seed of the bootstrap.

    Returns:
        HTML with the image.

    Raises:
        TorchpeekError: When matplotlib is not installed.
    """
    figure = figure_class()(figsize=_SIZE, layout="constrained")
    title = metric_title(metric, higher_is_better=higher_is_better)
    curve_plot(figure.subplots(), curves, baselines, title=title, metric=metric, seed=seed)
    with Image.open(io.BytesIO(figure_bytes(figure, dpi=_DPI))) as image:
        return image_tag(image, f"the curves of {metric}", lossless=True)
