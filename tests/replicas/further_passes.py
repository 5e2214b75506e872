"""Slow replicas of the methods that need further passes: written from the papers, no code shared with src/.

Each takes a network of float64 (`net.prefix(x)` is the layer, `net.suffix(A)` the rest), one picture x (1, Cin, H, W)
and one class. PyTorch only runs the network, differentiates it and, for Opti-CAM, takes Adam's steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from replicas.one_pass import gradcam_plus_plus

# Tools


def bilinear(m, size):
    """Interpolation with half-pixel centres; beyond the outermost centres the edge goes on."""

    def neighbours(i, old, new):
        at = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(math.floor(at), old - 1)
        return low, min(low + 1, old - 1), at - low

    out = np.zeros(size)
    for i in range(size[0]):
        top, bottom, v = neighbours(i, m.shape[0], size[0])
        for j in range(size[1]):
            left, right, u = neighbours(j, m.shape[1], size[1])
            above = (1 - u) * m[top][left] + u * m[top][right]
            below = (1 - u) * m[bottom][left] + u * m[bottom][right]
            out[i][j] = (1 - v) * above + v * below
    return out


def adaptive_average(m, size):
    """Mean of each of size[0] x size[1] windows, from floor(i h / H) up to ceil((i + 1) h / H)."""
    h, w = m.shape
    out = np.zeros(size)
    for i in range(size[0]):
        rows = range(i * h // size[0], -(-(i + 1) * h // size[0]))
        for j in range(size[1]):
            columns = range(j * w // size[1], -(-(j + 1) * w // size[1]))
            out[i][j] = sum(m[a][b] for a in rows for b in columns) / (len(rows) * len(columns))
    return out


def quantile(values, q):
    """Linear interpolation between the two nearest ranks."""
    ranked = sorted(values)
    at = q * (len(ranked) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (at - low) * (ranked[high] - ranked[low])


def blur(m, kernel, sigma):
    """Gaussian along one axis, then along the other; the picture is reflected about the centres of its edge pixels."""

    def along(line):
        n = len(line)
        radius = min(kernel // 2, n - 1)
        taps = range(-radius, radius + 1)
        weights = [math.exp(-(t**2) / (2 * sigma**2)) for t in taps]
        out = []
        for i in range(n):
            total = 0.0
            for t, weight in zip(taps, weights, strict=True):
                at = abs(i + t)
                at = 2 * (n - 1) - at if at > n - 1 else at
                total += weight * line[at]
            out.append(total / sum(weights))
        return out

    rows = np.array([along(row) for row in m])
    return np.array([along(column) for column in rows.T]).T


def constant(m):
    return m.max() == m.min()


def minmax(m):
    return (m - m.min()) / (m.max() - m.min())


def live(A):
    return [c for c in range(len(A)) if not constant(A[c])]


def noises(samples, seed, shape, dtype):
    seeds = torch.randint(2**62, (samples,), generator=torch.Generator().manual_seed(seed))
    return [torch.randn(shape, generator=torch.Generator().manual_seed(int(s)), dtype=dtype) for s in seeds]


def logit(run, at, label):
    with torch.no_grad():
        return run(at)[0, label].item()


def activation(prefix, x):
    with torch.no_grad():
        return prefix(x)[0].numpy().copy()


def gradient(suffix, A, label):
    at = torch.from_numpy(A)[None].requires_grad_()
    return torch.autograd.grad(suffix(at.clone())[0, label], at)[0][0].numpy()


def masked(x, mask):
    return x * torch.from_numpy(mask)


def mixed(weights, A):
    """sum_c w_c A_c of the channels that `weights` names."""
    out = np.zeros(A.shape[1:])
    for c, weight in weights.items():
        out += weight * A[c]
    return out


def softmax(scores):
    if not scores:
        return {}
    highest = max(scores.values())
    total = sum(math.exp(s - highest) for s in scores.values())
    return {c: math.exp(s - highest) / total for c, s in scores.items()}


# Methods


def smoothgradcam_plus_plus(net, x, label, samples=16, noise=0.15, seed=0):
    """arXiv:1908.01224, with Grad-CAM++'s second derivative as alpha's numerator."""
    spread = noise * (x.max() - x.min())
    gs = []
    for n in noises(samples, seed, x.shape[1:], x.dtype):
        gs.append(gradient(net.suffix, activation(net.prefix, x + spread * n), label))
    A = activation(net.prefix, x)
    C, h, w = A.shape
    weights = {}
    for c in range(C):
        total = sum(A[c][i][j] for i in range(h) for j in range(w))
        weights[c] = 0.0
        for i in range(h):
            for j in range(w):
                d1, d2, d3 = (sum(g[c][i][j] ** power for g in gs) / samples for power in (1, 2, 3))
                denominator = 2 * d2 + total * d3
                alpha = d2 / denominator if denominator != 0 else 0.0
                weights[c] += alpha * max(d1, 0.0)
    return mixed(weights, A)


def scorecam(net, x, label):
    """arXiv:1910.01279, Algorithm 1."""
    A = activation(net.prefix, x)
    scores = {c: logit(net, masked(x, minmax(bilinear(A[c], x.shape[2:]))), label) for c in live(A)}
    return mixed(softmax(scores), A)


def sscam(net, x, label, samples=35, sigma=2.0, seed=0):
    """arXiv:2006.14255, the noise on the activation map."""
    A = activation(net.prefix, x)
    drawn = [n.numpy() for n in noises(samples, seed, A.shape, x.dtype)]
    scores = {}
    for c in live(A):
        scores[c] = 0.0
        for n in drawn:
            mask = minmax(bilinear(A[c] + sigma * n[c], x.shape[2:]))
            scores[c] += logit(net, masked(x, mask), label) / samples
    return mixed(softmax(scores), A)


def iscam(net, x, label, steps=10):
    """arXiv:2010.03023."""
    A = activation(net.prefix, x)
    scores = {}
    for c in live(A):
        mask = minmax(bilinear(A[c], x.shape[2:]))
        scores[c] = sum(logit(net, masked(x, j / steps * mask), label) for j in range(1, steps + 1)) / steps
    return mixed(softmax(scores), A)


def ablationcam(net, x, label):
    """doi:10.1109/WACV45572.2020.9093360; the drop is divided by |y|."""
    A = activation(net.prefix, x)
    y = logit(net.suffix, torch.from_numpy(A)[None], label)
    weights = {}
    for c in range(len(A)):
        ablated = A.copy()
        ablated[c] = 0.0
        drop = y - logit(net.suffix, torch.from_numpy(ablated)[None], label)
        weights[c] = drop / abs(y) if y != 0 else drop
    return mixed(weights, A)


def recipro_cam(net, x, label, width=1):
    """arXiv:2209.14074."""
    A = activation(net.prefix, x)
    C, h, w = A.shape
    row = [math.comb(width - 1, k) / 2 ** (width - 1) for k in range(width)]
    out = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            kept = np.zeros_like(A)
            for c in range(C):
                for k in range(width):
                    for n in range(width):
                        a, b = i + k - width // 2, j + n - width // 2
                        if 0 <= a < h and 0 <= b < w:
                            kept[c][a][b] = row[k] * row[n] * A[c][a][b]
            out[i][j] = logit(net.suffix, torch.from_numpy(kept)[None], label)
    return out


def groupcam(net, x, label, groups=32, keep=0.3, kernel=51, sigma=50.0):
    """arXiv:2103.13859."""
    A = activation(net.prefix, x)
    g = gradient(net.suffix, A, label)
    C, h, w = A.shape
    blurred = torch.tensor(np.array([[blur(m, kernel, sigma) for m in x[0].numpy()]]))
    ground = logit(net, blurred, label)
    size = math.ceil(C / min(groups, C))
    out = np.zeros((h, w))
    for first in range(0, C, size):
        M = np.zeros((h, w))
        for c in range(first, min(first + size, C)):
            M += sum(g[c][i][j] for i in range(h) for j in range(w)) / (h * w) * A[c]
        M = np.maximum(M, 0.0)
        threshold = quantile(M.ravel(), 1 - keep)
        M = np.array([[M[i][j] if M[i][j] > threshold else 0.0 for j in range(w)] for i in range(h)])
        if constant(M):
            continue
        n = minmax(M)
        mask = bilinear(n, x.shape[2:])
        out += (logit(net, masked(x, mask) + masked(blurred, 1 - mask), label) - ground) * n
    return out


def integrated_gradcam(net, x, label, steps=50):
    """arXiv:2102.07805, from a black picture."""
    out = 0.0
    for t in range(1, steps + 1):
        A = activation(net.prefix, t / steps * x)
        g = gradient(net.suffix, A, label)
        out = out + np.maximum(mixed({c: g[c].mean() for c in range(len(A))}, A), 0.0) / steps
    return out


def shapleycam(net, x, label):
    """arXiv:2501.06261, with the full Hessian."""
    A = activation(net.prefix, x)
    g = gradient(net.suffix, A, label)
    at = torch.from_numpy(A)[None]
    hessian = torch.autograd.functional.hessian(lambda a: net.suffix(a.clone())[0, label], at)
    product = (hessian.reshape(A.size, A.size).numpy() @ A.ravel()).reshape(A.shape)
    return mixed({c: (g[c] - 0.5 * product[c]).mean() for c in range(len(A))}, A)


def fem(net, x, label, k=2.0):
    """doi:10.1109/IPTA50016.2020.9286629."""
    A = activation(net.prefix, x)
    _, h, w = A.shape
    out = np.zeros((h, w))
    for c in live(A):
        mu = sum(A[c][i][j] for i in range(h) for j in range(w)) / (h * w)
        sigma = math.sqrt(sum((A[c][i][j] - mu) ** 2 for i in range(h) for j in range(w)) / (h * w))
        for i in range(h):
            for j in range(w):
                if A[c][i][j] > mu + k * sigma:
                    out[i][j] += mu
    return out


def kpcacam(net, x, label, gamma=None):
    """arXiv:2410.00267, the sigmoid kernel."""
    A = activation(net.prefix, x)
    C, h, w = A.shape
    gamma = 1 / C if gamma is None else gamma
    rows = [np.array([A[c][i][j] for c in range(C)]) for i in range(h) for j in range(w)]
    mean = sum(rows) / len(rows)
    rows = [row - mean for row in rows]
    K = np.array([[math.tanh(gamma * sum(p * q) + 1) for q in rows] for p in rows])
    K = K - K.mean(0, keepdims=True) - K.mean(1, keepdims=True) + K.mean()
    values, vectors = np.linalg.eigh(K)
    out = (vectors[:, -1] * math.sqrt(max(values[-1], 0.0))).reshape(h, w)
    return out if (out * A.sum(0)).sum() >= 0 else -out


def opticam(net, x, label, steps=100, rate=0.1):
    """arXiv:2301.07002. Interpolation is linear, so up(S) is the same mixture of the channels' up(A_c)."""
    A = activation(net.prefix, x)
    ups = [torch.from_numpy(bilinear(m, x.shape[2:])) for m in A]
    u = torch.zeros(len(A), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([u], lr=rate)
    for _ in range(steps):
        S = sum(weight * up for weight, up in zip(u.softmax(0), ups, strict=True))
        y = net(x * ((S - S.min()) / (S.max() - S.min())))[0, label]
        (u.grad,) = torch.autograd.grad(-y, u)
        adam.step()
    return mixed(dict(enumerate(u.detach().softmax(0).tolist())), A)


# Several layers: [(prefix, suffix), ...], the largest grid first


def polycam(net, x, label, layers):
    """arXiv:2204.13359, PCAM+-."""
    y, nothing = logit(net, x, label), logit(net, torch.zeros_like(x), label)
    maps = []
    for prefix, _ in layers:
        A = activation(prefix, x)
        weights = {}
        for c in live(A):
            mask = bilinear(minmax(A[c]), x.shape[2:])
            weights[c] = logit(net, masked(x, mask), label) - nothing + y - logit(net, masked(x, 1 - mask), label)
            weights[c] = max(weights[c], 0.0)
        maps.append(np.maximum(mixed(weights, A), 0.0))
    Z = maps[-1]
    for S in reversed(maps[:-1]):
        n = bilinear(adaptive_average(S, Z.shape), S.shape)
        up = bilinear(Z, S.shape)
        Z = np.zeros(S.shape)
        for i in range(S.shape[0]):
            for j in range(S.shape[1]):
                if n[i][j] != 0:
                    Z[i][j] = up[i][j] * S[i][j] / n[i][j]
    return Z


def refinecam(net, x, label, layers, base=gradcam_plus_plus):
    """arXiv:2605.14641; `base` takes A and g."""
    maps = []
    for prefix, suffix in layers:
        A = activation(prefix, x)
        m = np.maximum(base(A, gradient(suffix, A, label)), 0.0)
        maps.append(m / m.max() if m.max() > 0 else m)
    largest = max((m.shape for m in maps), key=math.prod)
    out = np.ones(largest)
    for m in maps:
        out *= bilinear(m, largest)
    return out


# Full-gradient: a network as a list of steps, its modules and the functions between them


def fullgrad_terms(steps, x, label):
    """arXiv:1905.00780, eq. 3: x dy/dx, and each module's implicit bias f^b in order, all as arrays without the batch.

    Where no function between the modules has a bias of its own, all the numbers together are the logit (completeness).
    """
    start = x.detach().clone().requires_grad_()
    value = start
    seen = []
    for step in steps:
        before = value
        value = step(before.clone())
        if isinstance(step, nn.Module):
            seen.append((step, before.detach(), value))
    dx, *ds = torch.autograd.grad(value[0, label], [start, *(output for _, _, output in seen)])
    terms = []
    for (step, before, output), d in zip(seen, ds, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z, step=step: step(z.clone()), before)
        linear = (jacobian.reshape(output.numel(), before.numel()) @ before.ravel()).reshape(output.shape)
        bias = output.detach() - linear
        if bias.abs().max() <= 1e-12 * max(output.abs().max().item(), linear.abs().max().item()):
            bias = torch.zeros_like(bias)  # a module without a bias: what is left is rounding
        terms.append((d * bias)[0].numpy())
    return (x * dx)[0].detach().numpy(), terms


def fullgrad(steps, x, label):
    """arXiv:1905.00780, eq. 8, at the picture's resolution."""
    size = x.shape[2:]

    def psi(t):
        t = np.abs(t)
        return np.zeros(size) if constant(t) else sum(bilinear(m, size) for m in minmax(t))

    first, terms = fullgrad_terms(steps, x, label)
    return psi(first) + sum(psi(t) for t in terms if t.ndim == 3)


REPLICAS_OF_PASSES = {
    "smoothgradcam++": smoothgradcam_plus_plus,
    "scorecam": scorecam,
    "sscam": sscam,
    "iscam": iscam,
    "ablationcam": ablationcam,
    "recipro-cam": recipro_cam,
    "groupcam": groupcam,
    "integrated-gradcam": integrated_gradcam,
    "shapleycam": shapleycam,
    "fem": fem,
    "kpcacam": kpcacam,
    "opticam": opticam,
}
