"""Methods that need one forward pass and one backward pass, from the scores to the layer.

Throughout, A is the layer's activations (N, 1, C, *grid) and g the gradients (N, K, C, *grid) of the K scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.cam.algebra import first_component, grid_mean, grid_sum, weighted_sum
from torchpeek.cam.method import cam_method
from torchpeek.engine import Trace


@cam_method("gradcam", needs="gradients", paper="arXiv:1610.02391")
def gradcam(trace: Trace) -> Tensor:
    """Channels weighted by their mean gradient (eqs. 1 and 2)."""
    return weighted_sum(grid_mean(trace.gradients), trace.activations)


@cam_method("gradcam++", needs="gradients", paper="arXiv:1710.11063")
def gradcam_plus_plus(trace: Trace) -> Tensor:
    """Channels weighted by their positive gradients, each position by alpha (eqs. 5 and 19).

    alpha is g^2 / (2 g^2 + sum(A) g^3), written here as 1 / (2 + sum(A) g), which is the same where g is not zero, and
    does not underflow; where g is zero the position adds nothing. The paper's score is exp(logit), whose gradient has
    a further factor exp(logit): one constant for a map, left out because it overflows.
    """
    g = trace.gradients
    alpha = 1 / (2 + grid_sum(trace.activations) * g)  # (N, K, C, *grid)
    weights = grid_sum(torch.where(g > 0, alpha * g, 0))  # (N, K, C, *1)
    return weighted_sum(weights, trace.activations)


@cam_method("xgradcam", needs="gradients", paper="arXiv:2008.02312")
def xgradcam(trace: Trace) -> Tensor:
    """Channels weighted by their gradients, averaged in proportion to the activation.

    A channel whose activations add up to exactly zero has no such average, and gets no weight. The quotient is unstable
    where they nearly do, as after activations that can be negative (GELU, SiLU).
    """
    A = trace.activations
    total = grid_sum(A)  # (N, 1, C, *1)
    weights = torch.where(total != 0, grid_sum(trace.gradients * A) / total, 0)
    return weighted_sum(weights, A)


@cam_method("hirescam", needs="gradients", paper="arXiv:2011.08891")
def hirescam(trace: Trace) -> Tensor:
    """Activations times gradients, position by position."""
    return weighted_sum(trace.gradients, trace.activations)


@cam_method("gradcam-elementwise", needs="gradients", paper="arXiv:2011.08891")
def gradcam_elementwise(trace: Trace) -> Tensor:
    """Activations times gradients, position by position, without the products that are negative.

    HiResCAM with a ReLU before the sum over the channels; so the map is never negative.
    """
    return (trace.gradients * trace.activations).clamp(min=0).sum(dim=2)


@cam_method("layercam", needs="gradients", paper="doi:10.1109/TIP.2021.3089943")
def layercam(trace: Trace) -> Tensor:
    """Activations weighted, position by position, by their positive gradients (eqs. 6 and 7)."""
    return weighted_sum(trace.gradients.clamp(min=0), trace.activations)


@cam_method("eigengradcam", needs="gradients", paper="arXiv:2008.00299")
def eigengradcam(trace: Trace) -> Tensor:
    """The first principal component of activations times gradients: EigenCAM that tells classes apart.

    Not centred, as in eigencam; the sign is the one that agrees with the sum over the channels, which is HiResCAM.
    """
    product = trace.gradients * trace.activations
    return first_component(product, towards=product.sum(dim=2))
