"""Backward passes: gradients of scores by batched vector-Jacobian products, and Hessian-vector products."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.attempts import Refusal, attempted, is_of_torch, may_refuse
from torchpeek.errors import GradUnavailable
from torchpeek.hooks import grad_mode
from torchpeek.interrupts import let_interrupts_through
from torchpeek.undo import Undo, undone

Handle: TypeAlias = Tensor | GradientEdge
"""Where a gradient is read: the leaf that a graph starts at, or an edge of a graph that began earlier."""

# The memory for the gradients of one batched product. The scores are divided into chunks that fit.
_BYTES = 64 * 2**20


NO_GRAPH = "this trace was made with gradients=False. Next: make it again with gradients=True"
NOT_CONNECTED_TO_INPUT = (
    "the score does not depend on the input: no gradient flows back to it. The model detaches it, or runs a part under "
    "torch.no_grad() or inference_mode(). Choose a method that needs no gradients, such as occlusion or rise"
)


def start_graph(tensor: Tensor, copy: Tensor) -> tuple[Handle, Tensor]:
    """Where the gradient of `tensor` is read, and the tensor that the model continues with.

    A tensor that requires a gradient is in a graph already, and the handle is its edge. Otherwise the graph starts
    here: `copy`, a copy of the tensor that nobody writes into, becomes the leaf, and a clone of it goes on. Gradients
    are then on for the operations that follow, until the surrounding `preserved` ends. Inside a block of the model's
    own under `torch.inference_mode()` that mode is off for the rest of the block.
    """
    if tensor.requires_grad:
        return get_gradient_edge(tensor), tensor
    _leave_inference_mode()
    torch.set_grad_enabled(True)
    leaf = copy.detach()
    leaf = (leaf.clone() if leaf.is_inference() else leaf).requires_grad_()
    return leaf, leaf.clone()  # not the leaf itself: the next operation may write into it


# The guards that have left inference mode in the pass that this thread runs; the outermost pass has a list.
_LOCAL = threading.local()


@undone
def inference_mode_restored(undo: Undo) -> None:
    """Inside the block, `start_graph` may leave inference mode. On exit the thread's inference mode is as it was.

    1. A guard of torch restores, when it ends, the state of the thread that it found when it began.
    2. The model's own guard ends inside the pass, before the guard of `start_graph` that began inside of it. It
       restores the state outside of the model's block, as it should.
    3. The guard of `start_graph` ends last, and would restore inference mode. So `grad_mode` around the whole pass,
       which began before all of them, ends after it and restores the state from before the pass.

    Whether gradients are on stays as the pass leaves it.
    """
    guards: list[torch.inference_mode] = []
    undo.push_local(setattr, _LOCAL, "guards", getattr(_LOCAL, "guards", None))
    mode = undo.enter(grad_mode(torch.is_grad_enabled()))
    undo.push_local(_end_guards, guards)
    undo.push_local(mode.keep)
    _LOCAL.guards = guards


def _end_guards(guards: list[torch.inference_mode]) -> None:
    while guards:
        guards[-1].__exit__(None, None, None)
        guards.pop()


def _leave_inference_mode() -> None:
    guards = getattr(_LOCAL, "guards", None)
    if guards is not None and torch.is_inference_mode_enabled():
        guard = torch.inference_mode(False)
        guard.__enter__()
        guards.append(guard)


def score_gradients(
    scores: Tensor, handles: Sequence[Handle], size: int, *, create_graph: bool = False
) -> list[Tensor | None]:
    """Compute the gradients of the scores.

    Samples do not depend on each other in eval mode, so one backward pass serves the whole batch: entry k is the
    gradient of the sum over N of score k.

    Args:
        scores: (N, K), with their graph.
        handles: Where the gradients are read.
        size: The number of bytes of the gradients of one of the K scores.
        create_graph: Whether the gradients have a graph of their own.

    Returns:
        For each handle (K, *its shape); None where no score depends on it.

    Raises:
        GradUnavailable: When the gradient would have to flow through a checkpointed part of the model.
    """
    if not scores.requires_grad:
        return [None] * len(handles)
    one_hot = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)  # (K, K)
    return vjp(scores, handles, one_hot.unsqueeze(1).expand(-1, len(scores), -1), size, create_graph=create_graph)


def vjp(
    root: Handle, handles: Sequence[Handle], vectors: Tensor, size: int, *, create_graph: bool = False
) -> list[Tensor | None]:
    """Compute the products of K vectors with the Jacobian of `root`.

    Args:
        root: What is differentiated.
        handles: Where the products are read.
        vectors: (K, *shape of root).
        size: The number of bytes of the products of one vector.
        create_graph: Whether the products have a graph of their own.

    Returns:
        For each handle (K, *its shape); None where `root` does not depend on it.

    Raises:
        GradUnavailable: When the gradient would have to flow through a checkpointed part of the model, or the model has
            overwritten values that it needs.
    """
    step = max(1, _BYTES // max(1, size))
    parts = []
    for start in range(0, len(vectors), step):
        # Interrupts are let through here, not in torch's vmap: one that arrives inside vmap leaves it half entered for
        # the rest of the process.
        let_interrupts_through()
        parts.append(_vjp_chunk(root, handles, vectors[start : start + step], create_graph))
    return [_join(of_handle, torch.cat) for of_handle in zip(*parts, strict=True)]


def _vjp_chunk(
    root: Handle, handles: Sequence[Handle], vectors: Tensor, create_graph: bool
) -> tuple[Tensor | None, ...]:
    def backward(vector: Tensor, *, batched: bool) -> tuple[Tensor | None, ...]:
        # torch accepts edges here, but its type annotations do not.
        outputs: Any = [root]
        inputs: Any = handles
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            outputs,
            inputs,
            [vector],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )
        return gradients

    def one_by_one() -> tuple[Tensor | None, ...]:
        results = [backward(vector, batched=False) for vector in vectors]
        return tuple(_join(of_handle, torch.stack) for of_handle in zip(*results, strict=True))

    try:
        if len(vectors) == 1:
            return one_by_one()
        # Some operation may have no batched backward; one vector at a time gives the same.
        together = attempted(partial(backward, vectors, batched=True), one_by_one, possible=_may_refuse_vmap)
        return together.unchanged if isinstance(together, Refusal) else together
    except RuntimeError as error:
        if not is_of_torch(error):
            raise
        if "modified by an inplace operation" in str(error):
            raise GradUnavailable(
                "the model overwrites values that the backward pass needs, so it cannot be trained either. Choose a "
                "method that needs no gradients, or one of a late layer. If another thread trains the model meanwhile, "
                f"its optimizer is the cause: explain a copy, copy.deepcopy(model) ({error})"
            ) from error
        if "heckpoint" not in f"{type(error).__name__} {error}":
            raise
        raise GradUnavailable(
            "the gradient would have to flow through a checkpointed part of the model, which cannot run once more for "
            "this layer, or with its attention weights recorded. Choose a layer outside the part, or turn "
            "checkpointing off"
        ) from error


def _may_refuse_vmap(error: Exception) -> bool:
    return may_refuse(error) and isinstance(error, RuntimeError)


def _join(gradients: Sequence[Tensor | None], function: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """Join the gradients by `function`; None where one of them is None."""
    tensors = [gradient for gradient in gradients if gradient is not None]
    return function(tensors) if len(tensors) == len(gradients) else None


def hessian_product(score: Tensor, handle: Handle, vector: Tensor, layer: str) -> Tensor | None:
    """Compute the Hessian of a score with respect to a layer's output, times a vector.

    Args:
        score: A scalar, with its graph.
        handle: Where the gradient of the layer's output is read.
        vector: (*shape of the layer's output).
        layer: The layer's name, for the error text.

    Returns:
        (*shape of the layer's output); None where the score does not depend on the layer.

    Raises:
        GradUnavailable: When a part of the model has no second derivative.
    """
    inputs: Any = handle
    try:
        (gradient,) = torch.autograd.grad(score, inputs, create_graph=True, allow_unused=True)
        if gradient is None:
            return None
        if not gradient.requires_grad:  # the score is linear in the layer's output
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(gradient, inputs, vector, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not is_of_torch(error) or not any(word in str(error) for word in ("derivative", "differentiable")):
            raise
        raise GradUnavailable(
            f"a part of the model after {layer!r} has no second derivative ({error}). Choose a layer after that "
            "part. For fused attention, make the model with attn_implementation='eager' in transformers, or call "
            "timm.layers.set_fused_attn(False) in timm before the model is made"
        ) from error
    return torch.zeros_like(vector) if product is None else product.detach()
