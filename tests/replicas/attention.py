"""Slow replicas of the attention methods: float64 loops written from the papers, no code shared with src/."""

from __future__ import annotations

import math

import numpy as np


def vit(p, x, layers, heads, given=None):
    """A small vision transformer in eval mode for one picture x (C, H, W): attention, tokens after each block, scores.

    `p` are its parameters by name, as arrays. `given` maps a layer to attention (heads, T, T) to use in place of its
    own.
    """
    patch = p["patch.weight"].shape[-1]
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    tokens = [p["token"].reshape(-1)]
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(np.tensordot(p["patch.weight"], window, axes=3) + p["patch.bias"])
    z = np.stack(tokens) + p["position"].reshape(len(tokens), -1)
    attentions, after = [], []
    for layer in range(layers):
        b = f"blocks.{layer}."
        attention, update = attend(p, b, norm(z, p[b + "norm1.weight"], p[b + "norm1.bias"]), heads, given, layer)
        z = z + update
        hidden = np.tanh(norm(z, p[b + "norm2.weight"], p[b + "norm2.bias"]) @ p[b + "up.weight"].T + p[b + "up.bias"])
        z = z + hidden @ p[b + "down.weight"].T + p[b + "down.bias"]
        attentions.append(attention)
        after.append(z)
    return attentions, after, head(p, z)


def head(p, z):
    """Scores from the tokens after a block: the class token, normalised, through a linear layer."""
    return norm(z, p["norm.weight"], p["norm.bias"])[0] @ p["head.weight"].T + p["head.bias"]


def attend(p, b, z, heads, given, layer):
    T, C = z.shape
    d = C // heads
    qkv = z @ p[b + "attn.in_proj_weight"].T + p[b + "attn.in_proj_bias"]
    made, attention = np.zeros((T, C)), np.zeros((heads, T, T))
    for h in range(heads):
        q, k, v = (qkv[:, n * C + h * d : n * C + (h + 1) * d] for n in range(3))
        e = np.exp(q @ k.T / math.sqrt(d))
        attention[h] = e / e.sum(-1, keepdims=True)
        if given is not None and layer in given:
            attention[h] = given[layer][h]
        made[:, h * d : (h + 1) * d] = attention[h] @ v
    return attention, made @ p[b + "attn.out_proj.weight"].T + p[b + "attn.out_proj.bias"]


def norm(z, weight, bias, eps=1e-5):
    centred = z - z.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def slopes(score, A, step=1e-5):
    """The derivative of each number that score(A) returns with respect to each entry of A, by central differences."""
    out = np.zeros((*np.shape(score(A)), *A.shape))
    for place in np.ndindex(*A.shape):
        more, less = A.copy(), A.copy()
        more[place] += step
        less[place] -= step
        out[(..., *place)] = (score(more) - score(less)) / (2 * step)
    return out


def rollout(layers, prefix, read, heads=np.mean):
    """(heads, T, T) for each layer -> (positions,); arXiv:2005.00928, section 3, with the whole product.

    `read` are the tokens that the score reads.
    """
    T = layers[0].shape[-1]
    product = np.eye(T)
    for A in layers:
        mixed = np.zeros((T, T))
        for i in range(T):
            for j in range(T):
                mixed[i, j] = 0.5 * heads([A[h, i, j] for h in range(len(A))]) + (0.5 if i == j else 0.0)
            mixed[i] /= mixed[i].sum()
        product = mixed @ product
    return product[read].mean(0)[prefix:]


def transformer_attribution(layers, gradients, prefix, read):
    """(heads, T, T) for each layer -> (positions,); arXiv:2103.15679, eqs. 5 and 6, with the whole of R."""
    T = layers[0].shape[-1]
    R = np.eye(T)
    for A, g in zip(layers, gradients, strict=True):
        mean = sum(np.maximum(A[h] * g[h], 0) for h in range(len(A))) / len(A)
        R = R + mean @ R
    R = R - np.eye(T)
    return R[read].mean(0)[prefix:]


def legrad(gradients, prefix):
    """(heads, T, T) for each layer, of that layer's own score -> (positions,); arXiv:2404.03214, section 3."""
    out = np.zeros(gradients[0].shape[-1])
    for g in gradients:
        heads, T, _ = g.shape
        for j in range(T):
            out[j] += sum(max(g[h, i, j], 0.0) for h in range(heads) for i in range(T)) / (heads * T) / len(gradients)
    return out[prefix:]
