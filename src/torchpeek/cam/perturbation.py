"""Methods that run many passes: over masked inputs, or with the layer's output changed.

A score is the one that the target selects. Masks are made for one chunk of passes at a time, and each pass gives all K
scores. A channel is live unless it is constant over the grid. A constant channel marks no position, and its mask,
scaled to [0, 1], is not defined, so it is skipped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from torchpeek.argument_types import Cells, Count, NonNegative, Number, Seed, Share
from torchpeek.cam.algebra import (
    area_average,
    gaussian_blur,
    grid_mean,
    live_channels,
    noise,
    per_channel,
    quantile,
    resized,
    share_of_live,
    spread,
    weighted_sum,
)
from torchpeek.cam.method import cam_method
from torchpeek.engine import Trace
from torchpeek.engine.batching import Precision, chunks
from torchpeek.errors import OptionError
from torchpeek.heatmap import upsample
from torchpeek.progress import progress


@cam_method("scorecam", needs="activations", passes="1 for each live channel", paper="arXiv:1910.01279")
def scorecam(trace: Trace, *, precision: Precision = None) -> Tensor:
    """Channels weighted by the softmax of the score of the input seen through each (algorithm 1).

    The mask of a channel is its activation, upsampled (bilinear, align_corners=False) and scaled to [0, 1]. The paper
    subtracts a baseline's score, which the softmax over the channels undoes. That softmax is over the live channels.

    Args:
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    masks = _channels(trace)
    live = live_channels(trace.activations)

    def masked(inputs: Tensor, rows: Tensor, channels: Tensor) -> Tensor:
        return inputs * _mask(masks[rows, channels], inputs)

    scores = trace.rescore(masked, masks.shape[1], live=live, precision=precision)  # (N, C, K)
    return _weighted_by_share(trace, scores, live)


@cam_method("sscam", needs="activations", passes="35 for each live channel", paper="arXiv:2006.14255")
def sscam(
    trace: Trace,
    *,
    samples: Count = 35,
    sigma: NonNegative = 2.0,
    seed: Seed = 0,
    precision: Precision = None,
) -> Tensor:
    """Score-CAM with noise on the activations, its scores averaged over the draws: SS-CAM (1) of the paper.

    As in the equation, the noise is added to the activation, before it becomes a mask. torchcam and the authors' code
    add it to the upsampled activation; the authors' code does not scale the sum to [0, 1], and divides sigma by the
    channel's range. The draws are the same for every picture and class.

    Args:
        samples: Number of draws for each channel.
        sigma: Standard deviation of the noise, in units of the activation.
        seed: Seed of the noise.
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    masks = _channels(trace)
    live, count = live_channels(trace.activations), masks.shape[1]
    draw = lru_cache(maxsize=1)(noise(seed, samples, masks.shape[1:], masks))

    def masked(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        channels, draws = trials % count, trials // count
        added = torch.stack([draw(int(i))[int(c)] for i, c in zip(draws, channels, strict=True)])
        return inputs * _mask(masks[rows, channels] + sigma * added, inputs)

    scores = trace.rescore(masked, samples * count, live=live.repeat(1, samples), precision=precision)
    return _weighted_by_share(trace, _split(scores, samples, count).mean(1), live)


@cam_method("iscam", needs="activations", passes="10 for each live channel", paper="arXiv:2010.03023")
def iscam(trace: Trace, *, steps: Count = 10, precision: Precision = None) -> Tensor:
    """Score-CAM, its scores averaged along the straight path from zero to the masked input.

    Step j of n is the masked input times j / n. Other implementations add these factors up. Their last steps are up to
    (n + 1) / 2 times the masked input, far outside the range of the network's inputs.

    Args:
        steps: Number of steps.
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    masks = _channels(trace)
    live, count = live_channels(trace.activations), masks.shape[1]

    def masked(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        channels, part = trials // steps, (trials % steps + 1) / steps
        factor = part.to(inputs).view(-1, *(1 for _ in inputs.shape[1:]))
        return inputs * (_mask(masks[rows, channels], inputs) * factor)

    scores = trace.rescore(masked, count * steps, live=live.repeat_interleave(steps, 1), precision=precision)
    return _weighted_by_share(trace, _split(scores, count, steps).mean(2), live)


@cam_method(
    "ablationcam",
    needs="activations",
    passes="1 of what comes after the layer for each channel",
    ablates=True,
    paper="doi:10.1109/WACV45572.2020.9093360",
)
def ablationcam(trace: Trace) -> Tensor:
    """Channels weighted by how far the score falls without each, relative to the score.

    A channel is removed by setting it to zero. The paper divides by the score, which inverts the map if the score is
    negative. Here the fall is divided by the absolute value of the score, which is the same for a positive score.
    """
    layer = _channels(trace)
    count, axes = layer.shape[1], layer.ndim - 2

    def without(activations: Tensor, rows: Tensor, channels: Tensor) -> Tensor:
        activations[torch.arange(len(channels)), channels] = 0
        return activations

    scores = trace.ablate(
        without, count, live=(layer.flatten(2) != 0).any(2)
    )  # (N, C, K); a zero channel changes nothing
    clean = trace.scores.unsqueeze(1)  # (N, 1, K)
    fall = (clean - scores) / torch.where(clean == 0, 1, clean.abs())
    return weighted_sum(per_channel(fall, axes).to(trace.activations), trace.activations)


@cam_method(
    "recipro-cam",
    needs="activations",
    passes="1 of what comes after the layer for each position",
    ablates=True,
    paper="arXiv:2209.14074",
)
def recipro_cam(trace: Trace) -> Tensor:
    """The score when the layer's output is kept at one position and is zero elsewhere.

    The paper's score is the probability: use target=ClassProbability(). The paper has two masks. This is the one of a
    single position; the other one spreads over the neighbours.
    """
    layer = _channels(trace)
    grid, positions = layer.shape[2:], layer.shape[2:].numel()

    def only(activations: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        mask = torch.nn.functional.one_hot(trials, positions).to(activations)
        return activations.mul_(mask.view(len(mask), 1, *grid))

    scores = trace.ablate(only, positions)  # (N, positions, K)
    return scores.mT.reshape(*scores.mT.shape[:2], *grid)


@cam_method("groupcam", needs="gradients", passes="32 for each class", paper="arXiv:2103.13859")
def groupcam(
    trace: Trace,
    *,
    groups: Cells = 32,
    keep: Share = 0.3,
    kernel: Cells = 51,
    sigma: Annotated[float, Number(1e-6)] = 50.0,
    precision: Precision = None,
) -> Tensor:
    """Groups of Grad-CAM's weighted channels, weighted by the score that each group restores in a blurred input.

    The mask of a group is the positive part of its sum, cut to the strongest positions and scaled to [0, 1]. Where the
    mask is below 1 the input is blurred. The paper scales after upsampling. Here it is before, so that the map at the
    layer's resolution, upsampled, is the weighted sum of the masks. The paper's score is the probability: use
    target=ClassProbability().

    Args:
        groups: Number of groups of channels.
        keep: Share of the positions that stay in each mask, 0 to 1.
        kernel: Number of taps of the blur, odd.
        sigma: Standard deviation of the blur, in positions of the input.
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    if kernel % 2 == 0:
        raise OptionError(f"option kernel is {kernel}; allowed: an odd number")
    weighted = grid_mean(trace.gradients) * trace.activations  # (N, K, C, *grid)
    parts = torch.stack([part.sum(2) for part in weighted.chunk(groups, dim=2)], dim=2).clamp(min=0)  # (N, K, G, *grid)
    count, size = parts.shape[1] * parts.shape[2], parts.shape[3:]
    flat = parts.flatten(3)
    strongest = torch.where(flat > quantile(flat, 1 - keep), flat, 0)
    masks = spread(strongest.reshape(-1, *size)).view(len(parts), count, *size)  # (N, K * G, *grid)
    tried = torch.cat([masks, torch.zeros_like(masks[:, :1])], dim=1)  # the last mask leaves only the blurred input
    blurred = gaussian_blur(trace.inputs.to(masks), kernel, sigma).to(trace.inputs)

    def blended(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        mask = resized(tried[rows, trials], inputs.shape[2:]).to(inputs)
        return inputs * mask + blurred[rows] * (1 - mask)

    alive = (masks.flatten(2) != 0).any(2)  # (N, K * G)
    live = torch.cat([alive, torch.ones_like(alive[:, :1])], dim=1)
    scores = trace.rescore(blended, count + 1, live=live, precision=precision)  # (N, K * G + 1, K)
    gains = _split(scores[:, :-1] - scores[:, -1:], *parts.shape[1:3])  # (N, K, G, K)
    own = torch.diagonal(gains, dim1=1, dim2=3).movedim(2, 1)  # (N, K, G): each score for its own masks
    own = own.to(masks).reshape(*own.shape, *(1 for _ in size))
    return (own * masks.view_as(parts)).sum(2)


@cam_method(
    "opticam",
    needs="activations",
    passes="100 forward and backward for each class",
    through_model=True,
    paper="arXiv:2301.07002",
)
def opticam(trace: Trace, *, steps: Count = 100, rate: NonNegative = 0.1) -> Tensor:
    """Channels weighted so that the input seen through their sum scores highest.

    The weights are a softmax over the channels. They start equal and are optimised by Adam. The mask is the weighted
    sum, upsampled and scaled to [0, 1]. The map is the sum with the last weights.

    Args:
        steps: Number of updates.
        rate: Learning rate of Adam.
    """
    layer = _channels(trace)

    def optimised(rows: Tensor, columns: Tensor) -> Tensor:
        weights = torch.zeros(len(rows), layer.shape[1], dtype=layer.dtype, device=layer.device, requires_grad=True)
        adam = torch.optim.Adam([weights], lr=rate)
        with progress("optimising", steps) as advance:
            for _ in range(steps):
                with torch.enable_grad():
                    masked = trace.inputs[rows] * _mask(_mixed(weights, layer[rows]), trace.inputs)
                _, gradient = trace.input_gradients(masked, rows, columns)
                (weights.grad,) = torch.autograd.grad(masked, weights, -gradient)
                adam.step()
                advance(1)
        return _mixed(weights.detach(), layer[rows])

    maps = torch.zeros(*trace.scores.shape, *layer.shape[2:], dtype=layer.dtype, device=layer.device)
    batch = trace.gradient_batch_size
    for rows, columns, part in chunks(optimised, len(layer), maps.shape[1], batch, "pictures and classes"):
        maps[rows, columns] = part
    return maps


@cam_method(
    "polycam",
    needs="activations",
    layers="many",
    stages=5,
    passes="2 for each live channel of every layer",
    paper="arXiv:2204.13359",
)
def polycam(trace: Trace, *, precision: Precision = None) -> Tensor:
    """The map of a late layer, made finer by the maps of earlier ones (PCAM+-).

    At each layer, a channel's weight is the gain of the score from the zero input to the input masked by the channel,
    plus its loss when the input is masked by the complement. Negative weights become zero. The authors' code omits the
    score of the zero input, which is close to zero for a probability; without it, the weight would depend on the offset
    of a logit. From the last layer on, each map is divided by its own average over the positions of the coarser map,
    and multiplied with the coarser map. The average is over areas. The authors' code interpolates, which skips
    positions where the grid shrinks more than twofold, and cuts off the outermost 0.1 % of the masks. The paper's score
    is the probability: use target=ClassProbability(). The result is on the finest grid.

    Args:
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    # Of two layers with grids of one size the later one counts as the coarser.
    captures = enumerate(trace.at.items())
    positions = {name: (capture.activation.shape[2:].numel(), -n) for n, (name, capture) in captures}
    coarsest_first = sorted(trace.at, key=positions.__getitem__)
    fine, *sharper = (_by_change_of_score(trace.only(name), precision) for name in coarsest_first)
    for own in sharper:
        average = upsample(area_average(own, fine.shape[2:]), own.shape[2:])
        share = torch.where(average > 0, own / torch.where(average > 0, average, 1), 0)
        fine = upsample(fine, own.shape[2:]) * share
    return fine


def _by_change_of_score(trace: Trace, precision: Precision) -> Tensor:
    """Return PCAM+- at one layer, without negative values, (N, K, *grid)."""
    layer = _channels(trace)
    live, count = live_channels(trace.activations), layer.shape[1]

    def shown_or_hidden(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        mask = resized(spread(layer[rows, trials % count]), inputs.shape[2:]).to(inputs)
        # The last trial is the zero input.
        kind = (trials // count).to(inputs.device).view(-1, *(1 for _ in inputs.shape[1:]))
        return inputs * torch.where(kind == 0, mask, torch.where(kind == 1, 1 - mask, 0))

    tried = torch.cat([live, live, torch.ones_like(live[:, :1])], dim=1)
    scores = trace.rescore(shown_or_hidden, 2 * count + 1, live=tried, precision=precision)
    shown, hidden = _split(scores[:, :-1], 2, count).unbind(1)  # (N, C, K)
    change = shown - scores[:, -1:] + trace.scores.unsqueeze(1) - hidden
    change = torch.where(live.unsqueeze(2), change.clamp(min=0), 0)
    return weighted_sum(per_channel(change, layer.ndim - 2).to(trace.activations), trace.activations).clamp(min=0)


def _split(scores: Tensor, first: int, second: int) -> Tensor:
    """Reshape (N, first * second, K) to (N, first, second, K)."""
    return scores.reshape(len(scores), first, second, -1)


def _channels(trace: Trace) -> Tensor:
    """Return the activations as (N, C, *grid)."""
    return trace.activations.squeeze(1)


def _mask(channels: Tensor, inputs: Tensor) -> Tensor:
    """Upsample channels (b, *grid) to the size of the inputs and scale them to [0, 1], (b, 1, *size)."""
    return spread(resized(channels, inputs.shape[2:])).to(inputs)


def _mixed(weights: Tensor, layer: Tensor) -> Tensor:
    """Return the mean of the channels by the softmax of the weights: (b, C), (b, C, *grid) -> (b, *grid)."""
    return (weights.softmax(1).unsqueeze(1) @ layer.flatten(2)).view(len(layer), *layer.shape[2:])


def _weighted_by_share(trace: Trace, scores: Tensor, live: Tensor) -> Tensor:
    """Weight the channels by the softmax of their scores (N, C, K), and sum them to (N, K, *grid)."""
    share = share_of_live(scores, live, trace.activations.ndim - 3)
    return weighted_sum(share.to(trace.activations), trace.activations)
