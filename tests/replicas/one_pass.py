"""Slow replicas of the methods of one pass: float64 loops written from the papers, no code shared with src/.

Each takes A (C, h, w) and g (C, h, w), one sample's activations and one class's gradients, as nested lists or arrays.
"""

from __future__ import annotations

import numpy as np


def loops(A):
    C, h, w = A.shape
    return range(C), range(h), range(w)


def gradcam(A, g):
    cs, ys, xs = loops(A)
    out = np.zeros(A.shape[1:])
    for c in cs:
        alpha = sum(g[c][i][j] for i in ys for j in xs) / (len(ys) * len(xs))  # eq. 1
        for i in ys:
            for j in xs:
                out[i][j] += alpha * A[c][i][j]  # eq. 2, before the ReLU
    return out


def gradcam_plus_plus(A, g):
    cs, ys, xs = loops(A)
    out = np.zeros(A.shape[1:])
    for c in cs:
        total = sum(A[c][i][j] for i in ys for j in xs)
        weight = 0.0
        for i in ys:
            for j in xs:
                d = g[c][i][j]
                denominator = 2 * d**2 + total * d**3  # eq. 19
                alpha = d**2 / denominator if denominator != 0 else 0.0
                weight += alpha * max(d, 0.0)  # eq. 5
        out += weight * A[c]
    return out


def xgradcam(A, g):
    cs, ys, xs = loops(A)
    out = np.zeros(A.shape[1:])
    for c in cs:
        total = sum(A[c][i][j] for i in ys for j in xs)
        if total != 0:
            out += sum(A[c][i][j] / total * g[c][i][j] for i in ys for j in xs) * A[c]
    return out


def hirescam(A, g):
    cs, ys, xs = loops(A)
    return np.array([[sum(g[c][i][j] * A[c][i][j] for c in cs) for j in xs] for i in ys])


def gradcam_elementwise(A, g):
    cs, ys, xs = loops(A)
    return np.array([[sum(max(g[c][i][j] * A[c][i][j], 0.0) for c in cs) for j in xs] for i in ys])


def layercam(A, g):
    cs, ys, xs = loops(A)
    return np.array([[sum(max(g[c][i][j], 0.0) * A[c][i][j] for c in cs) for j in xs] for i in ys])


def _projected(matrix, shape, towards):
    """O V_1 of O = U S V^T, turned to agree with `towards`."""
    _, _, vt = np.linalg.svd(matrix, full_matrices=False)
    projected = matrix @ vt[0]
    return (projected if projected @ towards.ravel() >= 0 else -projected).reshape(shape)


def eigencam(A, g):
    return _projected(A.reshape(len(A), -1).T, A.shape[1:], A.sum(0))


def eigengradcam(A, g):
    product = A * g
    return _projected(product.reshape(len(A), -1).T, A.shape[1:], product.sum(0))


def segeigencam(A, g):
    """doi:10.3390/app15137562, eqs. 10 to 13, with the SVD of centred channels."""
    cs, ys, xs = loops(A)
    rows = [[abs(g[c][i][j]) * A[c][i][j] for c in cs] for i in ys for j in xs]
    means = [sum(row[c] for row in rows) / len(rows) for c in cs]
    matrix = np.array([[row[c] - means[c] for c in cs] for row in rows])
    projected = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
    return (-projected if abs(projected.min()) > abs(projected.max()) else projected).reshape(A.shape[1:])


REPLICAS = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam-elementwise": gradcam_elementwise,
    "layercam": layercam,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
    "segeigencam": segeigencam,
}
