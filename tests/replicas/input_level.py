"""Slow replicas of the methods that look at the input: written from the papers, no code shared with src/.

Each takes a network of float64, one picture x (1, C, H, W) and one class. PyTorch only runs the network and
differentiates it.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from replicas.further_passes import bilinear, gradient, logit, noises
from replicas.one_pass import gradcam


def largest_of_channels(g):
    C, h, w = g.shape
    return np.array([[max(abs(g[c][i][j]) for c in range(C)) for j in range(w)] for i in range(h)])


def saliency(net, x, label):
    """arXiv:1312.6034, section 3.1: M_ij = max_c |w_h(i,j,c)|."""
    return largest_of_channels(gradient(net, x[0].numpy(), label))


def input_x_gradient(net, x, label):
    """arXiv:1605.01713, section 2: input times gradient; the contributions of the channels add up."""
    picture = x[0].numpy()
    g = gradient(net, picture, label)
    C, h, w = g.shape
    return np.array([[sum(picture[c][i][j] * g[c][i][j] for c in range(C)) for j in range(w)] for i in range(h)])


def smoothgrad(net, x, label, samples=50, noise_level=0.15, seed=0):
    """arXiv:1706.03825: M^(x) = 1/n sum M_c(x + N(0, sigma^2)), sigma = level (x_max - x_min)."""
    sigma = noise_level * float(x.max() - x.min())
    total = np.zeros(x.shape[1:])
    for draw in noises(samples, seed, x.shape[1:], x.dtype):
        total += gradient(net, (x[0] + sigma * draw).numpy(), label)
    return largest_of_channels(total / samples)


def integrated_gradients(net, x, label, steps=50, baseline=0.0):
    """arXiv:1703.01365, eq. 1, the integral by the midpoints of `steps` equal parts."""
    picture = x[0].numpy()
    start = np.zeros_like(picture) + (baseline if isinstance(baseline, float) else baseline.numpy())
    C, h, w = picture.shape
    out = np.zeros((h, w))
    for step in range(steps):
        alpha = (step + 0.5) / steps
        g = gradient(net, start + alpha * (picture - start), label)
        for i in range(h):
            for j in range(w):
                out[i][j] += sum((picture[c][i][j] - start[c][i][j]) * g[c][i][j] for c in range(C)) / steps
    return out


def occlusion(net, x, label, window=None, stride=None, fill=0.0):
    """arXiv:1311.2901, section 4.2: the fall of the score, a position's mean over the windows that cover it."""
    _, _, H, W = x.shape
    window = window or (math.ceil(H / 7), math.ceil(W / 7))
    stride = stride or (math.ceil(window[0] / 2), math.ceil(window[1] / 2))
    falls = [[[] for _ in range(W)] for _ in range(H)]
    top = 0
    while True:
        left = 0
        while True:
            covered, inside = x.clone(), []
            for i in range(top, min(top + window[0], H)):
                for j in range(left, min(left + window[1], W)):
                    covered[0, :, i, j] = fill
                    inside.append((i, j))
            fall = logit(net, x, label) - logit(net, covered, label)
            for i, j in inside:
                falls[i][j].append(fall)
            if left + window[1] >= W:
                break
            left += stride[1]
        if top + window[0] >= H:
            break
        top += stride[0]
    return np.array([[sum(each) / len(each) for each in row] for row in falls])


def rise(net, x, label, samples=4000, cells=7, probability=0.5, seed=0):
    """arXiv:1806.07421, eq. 6, with the authors' cells of ceil(H / s) positions."""
    _, _, H, W = x.shape
    length = math.ceil(H / cells), math.ceil(W / cells)
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.rand(samples, 1, cells, cells, generator=generator) < probability).double().numpy()
    tops = torch.randint(length[0], (samples,), generator=generator)
    lefts = torch.randint(length[1], (samples,), generator=generator)
    out = np.zeros((H, W))
    for m in range(samples):
        larger = bilinear(coarse[m][0], ((cells + 1) * length[0], (cells + 1) * length[1]))
        mask = np.array([[larger[tops[m] + i][lefts[m] + j] for j in range(W)] for i in range(H)])
        out += logit(net, x * torch.from_numpy(mask), label) * mask
    return out / (samples * probability)


def guided_backprop_channels(linear_parts, x, label):
    """arXiv:1412.6806, section 3.4: R_l = (f > 0) (R > 0) R at each ReLU, the usual gradient everywhere else.

    `linear_parts` are the differentiable parts of a network with a ReLU after each but the last.
    """
    inputs, at = [], x
    for k, part in enumerate(linear_parts):
        inputs.append(at)
        with torch.no_grad():
            at = part(at)
        if k < len(linear_parts) - 1:
            at = torch.where(at > 0, at, 0.0)
    arriving = np.zeros(at.shape)
    arriving[0][label] = 1.0
    for k in reversed(range(len(linear_parts))):
        leaf = inputs[k].clone().requires_grad_()
        out = linear_parts[k](leaf)
        if k < len(linear_parts) - 1:
            f = out.detach().numpy()
            arriving = np.where((f > 0) & (arriving > 0), arriving, 0.0)
        arriving = torch.autograd.grad(out, leaf, torch.from_numpy(arriving))[0].numpy()
    return arriving[0]


def guided_backprop(linear_parts, x, label):
    return largest_of_channels(guided_backprop_channels(linear_parts, x, label))


def guided_gradcam(linear_parts, x, label, layer):
    """arXiv:1610.02391, section 3.2: guided backpropagation times ReLU(Grad-CAM), upsampled; each channel apart.

    Grad-CAM is that of the ReLU after part `layer`.
    """
    with torch.no_grad():
        at = x
        for part in linear_parts[: layer + 1]:
            at = part(at).clamp(min=0)

    def rest(activation):
        for k, part in enumerate(linear_parts[layer + 1 :]):
            activation = part(activation if k == 0 else activation.clamp(min=0))
        return activation

    a = at[0].numpy()
    coarse = gradcam(a, gradient(rest, a, label))
    fine = bilinear(np.maximum(coarse, 0), x.shape[2:])
    channels = guided_backprop_channels(linear_parts, x, label)
    return largest_of_channels(np.array([channel * fine for channel in channels]))


REPLICAS_OF_INPUTS = {
    "saliency": saliency,
    "input-x-gradient": input_x_gradient,
    "smoothgrad": smoothgrad,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "rise": rise,
}
