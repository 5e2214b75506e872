"""Methods that need one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.cam.algebra import first_component, weighted_sum
from torchpeek.cam.method import cam_method
from torchpeek.engine import Trace
from torchpeek.errors import MethodNotApplicable


@cam_method("cam", needs="head", paper="arXiv:1512.04150")
def cam(trace: Trace) -> Tensor:
    """Channels weighted by the class's weights in the linear head (eq. 2).

    Exact: the mean of the map over the grid, plus the head's bias, is the score. Only for a network that ends in
    this layer, global average pooling and a linear layer, and only for class logits; MethodNotApplicable elsewhere.
    """
    if trace.head is None:
        raise MethodNotApplicable(
            "cam is defined for class logits of a network that ends in global average pooling and a linear layer, "
            f"and at the layer before these; {trace.origin.model} at {trace.layer!r} does not give its scores that "
            "way. gradcam is the same there, up to the number of positions, and is defined everywhere"
        )
    weights = trace.head.view(*trace.head.shape, *(1 for _ in trace.activations.shape[3:]))  # (N, K, C, *1)
    return weighted_sum(weights, trace.activations)


@cam_method("eigencam", needs="activations", paper="arXiv:2008.00299")
def eigencam(trace: Trace) -> Tensor:
    """The first principal component of the activations, the same for every class.

    The paper projects the activations O = U S V^T on the first column of V, without centring; other implementations
    subtract each channel's mean first. The sign, which the paper leaves open, is the one that agrees with the sum of
    the channels.
    """
    return first_component(trace.activations, towards=trace.activations.sum(dim=2))


@cam_method("random", needs="activations")
def random(trace: Trace, *, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1) on the layer's own grid: the baseline that a method has to beat."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    shape = (*trace.scores.shape, *trace.activations.shape[3:])
    return torch.rand(shape, generator=generator, dtype=trace.activations.dtype).to(trace.activations.device)
