"""The way back: gradients of scores, by batched vector-Jacobian products, and Hessian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from torchpeek.errors import GradUnavailable
from torchpeek.interrupts import let_interrupts_through

Handle: TypeAlias = Tensor | GradientEdge
"""Where a gradient is asked for: a leaf that a graph starts at, or an edge of one that began earlier."""

# One batched product keeps this much of the gradients at once, at most; the classes go through in as many chunks.
_BYTES = 64 * 2**20


def score_gradients(scores: Tensor, handles: Sequence[Handle], size: int) -> list[Tensor | None]:
    """For each handle the gradients (K, *its shape) of the scores (N, K); None where no score depends on it.

    `size` is how many bytes the largest of them takes for one of the K. Samples do not mix in eval mode, so one
    backward pass serves the whole batch: entry k is of the sum over N of score k.
    """
    if not scores.requires_grad:
        return [None] * len(handles)
    select_each = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)  # (K, K)
    return vjp(scores, handles, select_each.unsqueeze(1).expand(-1, len(scores), -1), size)


def vjp(root: Handle, handles: Sequence[Handle], vectors: Tensor, size: int) -> list[Tensor | None]:
    """Vectors (K, *root) -> for each handle (K, *its shape), or None where nothing leads there.

    `size` is as for `score_gradients`. Raises GradUnavailable where a checkpointed part of the model is in the way.
    """
    step = max(1, _BYTES // max(1, size))
    parts = []
    for start in range(0, len(vectors), step):
        # Here, and not in torch's vmap, which an interrupt leaves half entered for the rest of the process.
        let_interrupts_through()
        parts.append(_chunk(root, handles, vectors[start : start + step]))
    return [_joined(each, torch.cat) for each in zip(*parts, strict=True)]


def _chunk(root: Handle, handles: Sequence[Handle], vectors: Tensor) -> tuple[Tensor | None, ...]:
    def back(vector: Tensor, *, batched: bool) -> tuple[Tensor | None, ...]:
        roots: Any = [root]  # tensors and edges, which torch takes, but not its types
        to: Any = handles
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            roots, to, [vector], retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        return found

    if len(vectors) > 1:
        try:
            return back(vectors, batched=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass  # some operations have no batched backward; one at a time is the reference anyway
    try:
        one_by_one = [back(vector, batched=False) for vector in vectors]
    except RuntimeError as error:
        if "heckpoint" not in f"{type(error).__name__} {error}":
            raise
        raise GradUnavailable(
            "the way back meets a checkpointed part of the model, which cannot be run once more for this layer, or "
            "with its attention weights: choose a layer outside of it, or turn checkpointing off for the while"
        ) from error
    return tuple(_joined(each, torch.stack) for each in zip(*one_by_one, strict=True))


def _joined(gradients: Sequence[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    made = [gradient for gradient in gradients if gradient is not None]
    return join(made) if len(made) == len(gradients) else None


def hessian_product(score: Tensor, handle: Handle, vector: Tensor, layer: str) -> Tensor | None:
    """The Hessian of one number with respect to what the layer returned, times `vector`; None if it is not connected.

    Raises GradUnavailable where a part of the model has no second derivative.
    """
    at: Any = handle
    try:
        (gradient,) = torch.autograd.grad(score, at, create_graph=True, allow_unused=True)
        if gradient is None:
            return None
        if not gradient.requires_grad:  # the score is linear in it
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(gradient, at, vector, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "derivative" not in str(error) and "differentiable" not in str(error):
            raise
        raise GradUnavailable(
            f"a part of the model after {layer!r} has no second derivative ({error}). Next: a layer after "
            "that part; of fused attention, attn_implementation='eager' in transformers, or in timm "
            "timm.layers.set_fused_attn(False), before the model is made"
        ) from error
    return torch.zeros_like(vector) if product is None else product.detach()
