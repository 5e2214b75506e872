"""Methods that follow the gradients of the scores to the input. Their maps are on the input's own grid.

Throughout, x is the input (N, C, *grid) and g the gradients (N, K, C, *grid) of the K scores with respect to it. One
map is made of the C channels in one of two ways. Where the gradient itself is shown, as a sensitivity, the map is the
largest absolute value of the channels, as for saliency. Where contributions are shown, which add up, it is their sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchpeek.argument_types import Count, NonNegative, Seed
from torchpeek.cam.algebra import Filling, along_samples, filled, floating_inputs, noise
from torchpeek.cam.gradient import gradcam
from torchpeek.cam.method import cam_method
from torchpeek.engine import Change, Trace, input_gradient_chunks
from torchpeek.errors import MethodNotApplicable, notify
from torchpeek.heatmap import upsample

Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]


@cam_method(
    "saliency",
    needs="inputs",
    layers="none",
    through_model=True,
    passes="1 more forward, 1 backward through all layers for each class",
    paper="arXiv:1312.6034",
)
def saliency(trace: Trace) -> Tensor:
    """The absolute value of the gradient at each input position, the largest over the channels (section 3.1)."""
    return _strongest(_of_inputs(trace, "saliency"))


@cam_method(
    "input-x-gradient",
    needs="inputs",
    layers="none",
    through_model=True,
    passes="1 more forward, 1 backward through all layers for each class",
    paper="arXiv:1605.01713",
)
def input_x_gradient(trace: Trace) -> Tensor:
    """Input times gradient, summed over the channels (section 2).

    The map adds up to the score if the network has ReLUs and no biases. What a picture's zero is depends on its
    preprocessing: after normalisation it is the mean colour of the training pictures, and such a position has no
    contribution.
    """
    x = floating_inputs(trace, "input-x-gradient")
    return _summed(trace, _unchanged, 1, lambda g, rows, trials: (g * x[rows].unsqueeze(1)).sum(2))


@cam_method(
    "smoothgrad",
    needs="inputs",
    layers="none",
    through_model=True,
    passes="50 more forward, 50 backward through all layers for each class",
    paper="arXiv:1706.03825",
)
def smoothgrad(trace: Trace, *, samples: Count = 50, noise_level: NonNegative = 0.15, seed: Seed = 0) -> Tensor:
    """The gradient, averaged over noisy copies of the input; then the largest absolute value over the channels.

    The mean is of signed gradients, as in the paper's equation. The channels become one map as for saliency. The draws
    are the same for every picture and class.

    Args:
        samples: Number of noisy copies.
        noise_level: Standard deviation of the noise, as a share of the range of the picture.
        seed: Seed of the noise.
    """
    x = floating_inputs(trace, "smoothgrad")
    flat = x.flatten(1)
    deviation = noise_level * (flat.amax(1) - flat.amin(1))  # (N,)
    draw = noise(seed, samples, x.shape[1:], x)

    def noisy(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        added = torch.stack([draw(int(trial)) for trial in trials])
        return (x[rows] + along_samples(deviation[rows], x) * added).to(inputs)

    return _strongest(_summed(trace, noisy, samples, lambda g, rows, trials: g / samples))


@cam_method(
    "integrated-gradients",
    needs="inputs",
    layers="none",
    through_model=True,
    passes="51 more forward, 50 backward through all layers for each class",
    paper="arXiv:1703.01365",
)
def integrated_gradients(trace: Trace, *, steps: Count = 50, baseline: Filling = 0.0) -> Tensor:
    """The mean gradient along the straight path from a baseline, times the input less the baseline (eq. 1).

    The products are summed over the channels. The integral is a Riemann sum of `steps` equal parts with the gradient in
    the middle of each, where the paper's sum (eq. 3) takes the end of each: the middle is more exact with as many
    steps. The map adds up to the score less the score of the baseline (completeness). If the sum is more than 10 % off,
    a notice says so; more steps mend that.

    Args:
        steps: Number of parts of the path.
        baseline: A number, or a tensor (*grid), (C, *grid) or (N, C, *grid) with 1 in place of any length. After
            normalisation 0 is the mean colour.
    """
    x = floating_inputs(trace, "integrated-gradients")
    start = filled("baseline", baseline, x)  # (N, C, *grid)
    change = x - start

    def part(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        return (start[rows] + along_samples((trials.to(x) + 0.5) / steps, x) * change[rows]).to(inputs)

    values = _summed(
        trace, part, steps, lambda g, rows, trials: (g * change[rows].unsqueeze(1)).sum(2) / steps
    )  # (N, K, *grid)
    of_baseline = trace.rescore(lambda inputs, rows, trials: start[rows].to(inputs), 1)[:, 0]  # (N, K)
    missing = (trace.scores - of_baseline - values.flatten(2).sum(2).to(trace.scores)).abs()
    largest = torch.maximum(trace.scores.abs(), of_baseline.abs()).clamp(min=torch.finfo(missing.dtype).tiny)
    if bool((missing > _INCOMPLETE * largest).any()):
        notify(
            f"integrated-gradients: the map differs from the score less the baseline's score by up to "
            f"{float((missing / largest).max()):.0%} of the score; {steps} steps are too few for this model. Next: "
            f"steps={4 * steps}"
        )
    return values


# Share of the score that a sum of the map may miss without a notice.
_INCOMPLETE = 0.1


@cam_method(
    "guided-backprop",
    needs="inputs",
    layers="none",
    through_model=True,
    passes="1 more forward, 1 backward through all layers for each class",
    paper="arXiv:1412.6806",
)
def guided_backprop(trace: Trace) -> Tensor:
    """The gradient without what is negative where it arrives at a ReLU; the largest absolute value of the channels.

    At every ReLU the gradient flows back only where it is positive and the activation is, too (section 3.4). The
    gradient is changed in the graph of one pass; no module is touched. For networks with ReLUs only. The map shows
    edges and textures of the picture, and hardly depends on the class or even on the weights of the later layers
    (arXiv:1810.03292): it does not explain a decision.
    """
    return _strongest(_of_inputs(trace, "guided-backprop", guided=True))


@cam_method(
    "guided-gradcam",
    needs="gradients",
    through_model=True,
    passes="1 more forward, 1 backward through all layers for each class",
    paper="arXiv:1610.02391",
)
def guided_gradcam(trace: Trace) -> Tensor:
    """Guided backpropagation times the positive part of Grad-CAM, upsampled to the input (section 3.2).

    The product is taken for each channel. Grad-CAM is the same for all of them, so the largest absolute value over the
    channels is guided-backprop times Grad-CAM. Where it is large is Grad-CAM's statement; its fine structure is guided
    backpropagation's, of which the limits hold here, too.
    """
    size = trace.inputs.shape[2:]
    coarse = gradcam(trace).clamp(min=0)  # (N, K, *grid)
    if coarse.ndim - 2 != len(size):
        grids = [" x ".join(map(str, each)) for each in (coarse.shape[2:], size)]
        raise MethodNotApplicable(
            f"guided-gradcam multiplies the map of the layer, {grids[0]}, with one of the input, {grids[1]}: their "
            "numbers of axes differ. Next: choose a layer whose grid has the axes of the input, or gradcam"
        )
    return guided_backprop(trace) * upsample(coarse, size)


def _of_inputs(trace: Trace, method: str, *, guided: bool = False) -> Tensor:
    """The gradients at the clean inputs, (N, K, C, *grid) reduced to the strongest channel, (N, K, 1, *grid)."""
    floating_inputs(trace, method)
    return _summed(trace, _unchanged, 1, lambda g, rows, trials: g.abs().amax(2, keepdim=True), guided=guided)


def _summed(trace: Trace, change: Change, trials: int, reduce: Reduction, *, guided: bool = False) -> Tensor:
    """The sum over the trials of what `reduce` makes of the gradients, (N, K, ...)."""
    total: Tensor | None = None
    for rows, _, part in input_gradient_chunks(
        trace.forward_pass, change, trials, reduce, guided=guided, view=trace.view
    ):
        if total is None:
            total = part.new_zeros(len(trace.inputs), *part.shape[1:])
        total.index_add_(0, rows.to(part.device), part)
    assert total is not None  # there is at least one sample and one trial
    return total


def _unchanged(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
    return inputs


def _strongest(gradients: Tensor) -> Tensor:
    """The largest absolute value over the channels, (N, K, C, *grid) -> (N, K, *grid)."""
    return gradients.abs().amax(2)
