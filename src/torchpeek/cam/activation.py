"""Methods that need one forward pass."""

from __future__ import annotations

import operator
from typing import Annotated

import torch
from torch import Tensor

from torchpeek.argument_types import NonNegative, Number, Seed
from torchpeek.cam.algebra import (
    agreeing,
    first_component,
    first_eigenpair,
    grid_axes,
    grid_mean,
    live_channels,
    weighted_sum,
)
from torchpeek.cam.method import cam_method
from torchpeek.draws import fingerprint, generator
from torchpeek.engine import Trace
from torchpeek.errors import MethodNotApplicable, notify


@cam_method("cam", needs="head", differentiable=True, paper="arXiv:1512.04150")
def cam(trace: Trace) -> Tensor:
    """Channels weighted by the class's weights in the linear head (eq. 2).

    Exact: the mean of the map over the grid, plus the head's bias, is the score. Only for a network that ends in
    this layer, global average pooling and a linear layer, and only for class logits; MethodNotApplicable elsewhere.
    """
    if trace.head is None:
        raise MethodNotApplicable(
            "cam is defined for class logits of a network that ends in global average pooling and a linear layer, "
            f"and at the layer before these; {trace.origin.model} at {trace.layer!r} does not compute its scores that "
            "way. Next: take hirescam, whose map adds up to the score without the biases wherever that is linear in "
            "the layer's output, as after flattening; or gradcam, which is defined at every layer, and is cam divided "
            "by the number of positions only where cam is defined"
        )
    weights = trace.head.view(*trace.head.shape, *(1 for _ in trace.activations.shape[3:]))  # (N, K, C, *1)
    return weighted_sum(weights, trace.activations)


@cam_method("eigencam", needs="activations", paper="arXiv:2008.00299")
def eigencam(trace: Trace) -> Tensor:
    """The first principal component of the activations, the same for every class.

    The paper projects the activations O = U S V^T on the first column of V, without centring; other implementations
    subtract each channel's mean first. The paper leaves the sign open: here it agrees with the sum of the channels.
    """
    component = first_component(trace.activations, towards=trace.activations.sum(dim=2))
    flat = component.flatten(2)  # (N, 1, positions)
    if empty := int(((flat <= 0).all(2) & (flat < 0).any(2)).sum()):
        notify(
            f"eigencam at {trace.layer!r}: {empty} of {len(flat)} maps have no positive value, as the channels' sum is "
            "negative, which is usual before a ReLU; positive() and an overlay of them are empty. Next: read them "
            "signed, tp.render.overlay(..., signed=True), or choose the layer after the ReLU"
        )
    return component


# kpcacam's kernel has a number for each pair of positions: a quarter of a GiB for each picture.
_MOST_POSITIONS = 8192


@cam_method("fem", needs="activations", paper="doi:10.1109/IPTA50016.2020.9286629")
def fem(trace: Trace, *, k: NonNegative = 2.0) -> Tensor:
    """Where each channel is k standard deviations above its mean, weighted by that mean; the same for every class.

    Means and standard deviations are over a channel's positions. grad-cam computes something else under this name: the
    activations, weighted by the share of such positions.

    Args:
        k: The number of standard deviations.
    """
    A = trace.activations
    mean = grid_mean(A)
    deviation = (A - mean).square().mean(dim=grid_axes(A), keepdim=True).sqrt()
    live = live_channels(A).view(*mean.shape)  # for a constant channel rounding alone would decide
    return torch.where(live & (mean + k * deviation < A), mean, 0).sum(2)


@cam_method("kpcacam", needs="activations", paper="arXiv:2410.00267")
def kpcacam(trace: Trace, *, gamma: Annotated[float | None, Number()] = None) -> Tensor:
    """The first kernel principal component of the positions, with a sigmoid kernel; the same for every class.

    The kernel of two positions with centred activations a and b is tanh(gamma a . b + 1). It is centred in feature
    space, too, and the map is its first eigenvector times the root of the eigenvalue. The sign is arbitrary: here it
    agrees with the sum of the channels.

    Args:
        gamma: Factor of the inner product. None is 1 / C.
    """
    rows = trace.activations.flatten(3)  # (N, 1, C, positions)
    if rows.shape[3] > _MOST_POSITIONS:
        raise MethodNotApplicable(
            f"kpcacam compares all positions with each other; {trace.layer!r} has {rows.shape[3]}, allowed: up to "
            f"{_MOST_POSITIONS}. Next: choose a later layer, or eigencam"
        )
    rows = rows - rows.mean(dim=3, keepdim=True)
    kernel = torch.tanh((1 / rows.shape[2] if gamma is None else gamma) * (rows.mT @ rows) + 1)
    kernel = kernel - kernel.mean(dim=2, keepdim=True)
    kernel = kernel - kernel.mean(dim=3, keepdim=True)
    value, vector = first_eigenpair((kernel + kernel.mT) / 2)
    towards = trace.activations.sum(dim=2)
    component = agreeing(vector * value.clamp(min=0).sqrt(), towards.flatten(2))
    return component.view_as(towards)


@cam_method("random", needs="activations")
def random(trace: Trace, *, seed: Seed = 0) -> Tensor:
    """Uniform noise in [0, 1) on the layer's own grid: the baseline that a method has to beat.

    The noise of a map depends on the seed, the values of the picture, the class and the size of the grid. It does not
    depend on the batch, on the place in the batch, on the other classes, on the device, or on the floating-point type
    that holds the picture.

    Args:
        seed: Seed of the noise.
    """
    seed, grid = operator.index(seed), trace.activations.shape[3:]
    view = next(iter(trace.at.values())).layout.view  # of the picture's views in the batch axis; None without views
    place = () if view is None else (view,)
    # The whole picture, also for a view: which part of the picture a view shows is not always known.
    pictures = [fingerprint(_as_float64(each)) for each in trace.forward_pass.inputs]
    maps = [
        # On the CPU: the same on every device. In float32, which every type of activations holds exactly.
        torch.rand(grid, generator=generator(picture, "random", seed, label, *place), dtype=torch.float32, device="cpu")
        for picture, labels in zip(pictures, trace.question.labels.tolist(), strict=True)
        for label in labels
    ]
    return torch.stack(maps).view(*trace.scores.shape, *grid).to(trace.activations)


def _as_float64(picture: Tensor) -> Tensor:
    """The same values in float64, which is exact: a picture has one fingerprint in every floating-point type."""
    return picture.cpu().double() if picture.is_floating_point() else picture
