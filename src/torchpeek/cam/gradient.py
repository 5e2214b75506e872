"""Methods that need gradients of the scores: at the layer, for one or several inputs, or through all layers.

Throughout, A is the layer's activations (N, 1, C, *grid) and g the gradients (N, K, C, *grid) of the K scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.argument_types import Count, NonNegative, Seed
from torchpeek.cam.algebra import first_component, grid_mean, grid_sum, noise, spread, weighted_sum
from torchpeek.cam.method import cam_method
from torchpeek.engine import FullGradients, Trace, bias_gradients
from torchpeek.errors import MethodNotApplicable, notify
from torchpeek.heatmap import upsample


@cam_method("gradcam", needs="gradients", differentiable=True, paper="arXiv:1610.02391")
def gradcam(trace: Trace) -> Tensor:
    """Channels weighted by their mean gradient (eqs. 1 and 2)."""
    return weighted_sum(grid_mean(trace.gradients), trace.activations)


@cam_method("gradcam++", needs="gradients", differentiable=True, paper="arXiv:1710.11063")
def gradcam_plus_plus(trace: Trace) -> Tensor:
    """Channels weighted by their positive gradients, each position by alpha (eqs. 5 and 19).

    alpha is g^2 / (2 g^2 + sum(A) g^3), written here as 1 / (2 + sum(A) g), which is the same where g is not zero, and
    does not underflow; where g is zero the position adds nothing. The paper's score is exp(logit), whose gradient has
    a further factor exp(logit): one constant for a map, left out because it overflows.
    """
    g = trace.gradients.clamp(min=0)  # a negative gradient adds nothing to the weight
    alpha = 1 / (2 + grid_sum(trace.activations) * g)  # (N, K, C, *grid)
    weights = grid_sum(alpha * g)  # (N, K, C, *1)
    return weighted_sum(weights, trace.activations)


@cam_method("xgradcam", needs="gradients", differentiable=True, paper="arXiv:2008.02312")
def xgradcam(trace: Trace) -> Tensor:
    """Channels weighted by their gradients, averaged in proportion to the activation.

    A channel whose activations add up to exactly zero has no such average and gets no weight. The quotient is unstable
    if they nearly do, which happens after activation functions that can be negative (GELU, SiLU).
    """
    A = trace.activations
    total = grid_sum(A)  # (N, 1, C, *1)
    # A division by zero would make the derivative of the map NaN, although `where` leaves its result out.
    divisor = torch.where(total != 0, total, 1)
    weights = torch.where(total != 0, grid_sum(trace.gradients * A) / divisor, 0)
    return weighted_sum(weights, A)


@cam_method("hirescam", needs="gradients", differentiable=True, paper="arXiv:2011.08891")
def hirescam(trace: Trace) -> Tensor:
    """Activations times gradients, position by position."""
    return weighted_sum(trace.gradients, trace.activations)


@cam_method("gradcam-elementwise", needs="gradients", differentiable=True, paper="arXiv:2011.08891")
def gradcam_elementwise(trace: Trace) -> Tensor:
    """Activations times gradients, position by position, without the products that are negative.

    This is HiResCAM with a ReLU before the sum over the channels, so the map is never negative.
    """
    return (trace.gradients * trace.activations).clamp(min=0).sum(dim=2)


@cam_method("layercam", needs="gradients", differentiable=True, paper="doi:10.1109/TIP.2021.3089943")
def layercam(trace: Trace) -> Tensor:
    """Activations weighted, position by position, by their positive gradients (eqs. 6 and 7)."""
    return weighted_sum(trace.gradients.clamp(min=0), trace.activations)


@cam_method("eigengradcam", needs="gradients", paper="arXiv:2008.00299")
def eigengradcam(trace: Trace) -> Tensor:
    """The first principal component of activations times gradients: EigenCAM that tells classes apart.

    The product is not centred, as in eigencam. The sign agrees with the sum over the channels, which is HiResCAM.
    """
    product = trace.gradients * trace.activations
    return first_component(product, towards=product.sum(dim=2))


@cam_method("segeigencam", needs="gradients", paper="doi:10.3390/app15137562")
def segeigencam(trace: Trace) -> Tensor:
    """The first principal component of activations times absolute gradients (eqs. 10 to 13).

    Each channel of the product is centred over the positions, as in grad-cam. The value that is farthest from zero is
    positive.
    """
    product = trace.gradients.abs() * trace.activations
    component = first_component(product - grid_mean(product), towards=torch.zeros_like(product[:, :, 0]))
    flat = component.flatten(2)
    flipped = (-flat.amin(2) > flat.amax(2)).view(*flat.shape[:2], *(1 for _ in component.shape[2:]))
    return torch.where(flipped, -component, component)


@cam_method(
    "smoothgradcam++", needs="activations", passes="16 forward and backward to the layer", paper="arXiv:1908.01224"
)
def smoothgradcam_plus_plus(
    trace: Trace, *, samples: Count = 16, noise_level: NonNegative = 0.15, seed: Seed = 0
) -> Tensor:
    """Grad-CAM++ with the powers of the gradient averaged over noisy copies of the input.

    The noise is normal, as in SmoothGrad (arXiv:1706.03825). alpha is mean(g^2) / (2 mean(g^2) + sum(A) mean(g^3)),
    the average of Grad-CAM++'s alpha. As printed in the paper the numerator is mean(g), whose unit does not fit. A is
    that of the clean picture.

    Args:
        samples: Number of noisy copies.
        noise_level: Standard deviation of the noise, as a share of the range of the picture.
        seed: Seed of the noise.
    """
    flat = trace.inputs.flatten(1)
    deviation = noise_level * (flat.amax(1) - flat.amin(1))  # (N,)
    draw = noise(seed, samples, trace.inputs.shape[1:], trace.inputs)

    def noisy(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        added = torch.stack([draw(int(trial)) for trial in trials])
        return inputs + deviation[rows].view(-1, *(1 for _ in inputs.shape[1:])) * added

    A = trace.activations
    powers = [torch.zeros(*trace.scores.shape, *A.shape[2:]).to(A) for _ in range(3)]  # each (N, K, C, *grid)
    for rows, _, one in trace.variants(noisy, samples):
        for exponent, total in enumerate(powers, start=1):
            total.index_add_(0, rows.to(total.device), one.gradients.pow(exponent) / samples)
        del one  # frees it before the next one is made
    first, second, third = powers
    below = 2 * second + grid_sum(A) * third
    alpha = torch.where(below != 0, second / torch.where(below != 0, below, 1), 0)
    return weighted_sum(grid_sum(alpha * first.clamp(min=0)), A)


@cam_method(
    "integrated-gradcam", needs="activations", passes="50 forward and backward to the layer", paper="arXiv:2102.07805"
)
def integrated_gradcam(trace: Trace, *, steps: Count = 50) -> Tensor:
    """The mean of Grad-CAM's positive maps along the straight path from zero to the input.

    Step t of n is the input times t / n, for t from 1 to n: the input itself is a step, the zero input is not. As in
    the authors' code, the activations are those of the step, and each step's map is cut off below zero before the mean.

    Args:
        steps: Number of steps.
    """

    def part(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        return inputs * ((trials + 1) / steps).to(inputs).view(-1, *(1 for _ in inputs.shape[1:]))

    total = torch.zeros(*trace.scores.shape, *trace.activations.shape[3:]).to(trace.activations)
    for rows, _, one in trace.variants(part, steps):
        total.index_add_(0, rows.to(total.device), gradcam(one).clamp(min=0) / steps)
        del one  # frees it before the next one is made
    return total


@cam_method(
    "shapleycam",
    needs="gradients",
    passes="2 backward from the scores to the layer for each class",
    paper="arXiv:2501.06261",
)
def shapleycam(trace: Trace) -> Tensor:
    """Channels weighted by the mean of the gradient less half the Hessian times the activation.

    That is the Shapley value of a quadratic approximation of the score. If the score is piecewise linear in the layer,
    like a logit after ReLUs, the Hessian is zero and the map is Grad-CAM's.
    """
    A = trace.activations
    return weighted_sum(grid_mean(trace.gradients - trace.hessian_times(A) / 2), A)


@cam_method(
    "fullgrad",
    needs="activations",
    layers="all",
    passes="1 more forward, 1 backward through all layers for each class",
    paper="arXiv:1905.00780",
)
def fullgrad(trace: Trace) -> Tensor:
    """Input times gradient, and bias times gradient of every layer, all at the size of the input.

    Each layer's absolute contributions are scaled to [0, 1] over all its channels together, as in the authors' code.
    They are summed over the channels and then upsampled, which is the same as the other way round, because both are
    linear. A bias is everything that a layer adds to a linear map, also in batch normalisation and in activation
    functions. Together with the input's contributions they add up to the score (proposition 1). If they do not, because
    a part of the model is a function and no module, a notice says so.
    """
    if trace.inputs.ndim < 3 or not trace.inputs.is_floating_point():
        got = f"{trace.inputs.dtype} of shape {tuple(trace.inputs.shape)}"
        raise MethodNotApplicable(f"fullgrad needs floating-point inputs (N, C, *grid); got {got}")
    size = trace.inputs.shape[2:]

    def summed(gradients: FullGradients) -> tuple[Tensor, Tensor, Tensor]:
        maps, largest = _scaled(gradients.inputs), gradients.inputs.flatten(2).sum(2).abs().cpu()
        for term in gradients.biases:
            largest = torch.maximum(largest, term.flatten(2).sum(2).abs().cpu())
            if term.ndim == maps.ndim + 1 and term.shape[3:].numel() > 1 and bool((term != 0).any()):
                maps = maps + upsample(_scaled(term), size)
        return maps, gradients.remainder.abs(), largest

    maps, remainder, largest = (
        torch.cat(each, dim=1) for each in zip(*bias_gradients(trace.forward_pass, summed), strict=True)
    )
    missing = float((remainder / torch.maximum(trace.scores.abs().cpu(), largest).clamp(min=1e-30)).max())
    if missing > _INCOMPLETE:
        notify(
            f"fullgrad: the contributions do not add up to the score of {trace.origin.model}; up to {missing:.0%} of "
            "it comes from parts that are not modules, such as functions in its forward, or that are scripted"
        )
    return maps


# Share of the score, or of the largest term: more than rounding adds up to.
_INCOMPLETE = 0.01


def _scaled(term: Tensor) -> Tensor:
    """Scale the absolute values to [0, 1] together and sum over the channels, (N, k, C, *grid) -> (N, k, *grid)."""
    return spread(term.abs().flatten(0, 1)).view_as(term).sum(2)
