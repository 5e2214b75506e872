"""Gradients of the scores with respect to attention weights, and which tokens the scores read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from torchpeek.engine.attention.recorder import Attention, BlockOutput
from torchpeek.engine.gradients import score_gradients, vjp
from torchpeek.engine.layout import Layout
from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import GradUnavailable, NotConnected
from torchpeek.hooks import containers


def attention_gradients(scores: Tensor, attentions: Sequence[Attention]) -> list[Tensor]:
    """For each attention the gradients (N, K, heads, T, T) of the scores (N, K), by one batched VJP, >= float32.

    Samples do not mix in eval mode, so one backward pass serves the batch. Raises GradUnavailable where the pass kept
    no graph, NotConnected where no score depends on one of them.
    """
    handles = [_gradient_handle(each) for each in attentions]
    found = score_gradients(scores, handles, sum(each.weights.nbytes for each in attentions))
    made = [
        _split_heads(gradient, each) for gradient, each in zip(found, attentions, strict=True) if gradient is not None
    ]
    if len(made) < len(attentions):
        pairs = zip(attentions, found, strict=True)
        raise NotConnected(_not_connected_text([each.layer for each, gradient in pairs if gradient is None]))
    return made


def layerwise_attention_gradients(score: Callable[[Any], Tensor], attentions: Sequence[Attention]) -> Iterator[Tensor]:
    """For each attention the gradients (N, K, heads, T, T) of its own block's scores s^l; arXiv:2404.03214, section 3.

    `score` is what comes after the last block: from what a block returned (its tokens with a graph) to scores (N, K).
    One layer at a time, each by a batched VJP through its own block only. Raises GradUnavailable and NotConnected.
    """
    for each in attentions:
        handle, after = _gradient_handle(each), each.after
        if after is None or after.edge is None:
            raise GradUnavailable(
                f"the output of {each.block!r} is not in the graph: it runs under torch.no_grad() or inference_mode(). "
                "Choose a method that needs no gradients"
            )
        # From a copy: what comes after the block may have written into what it returned.
        leaf = containers.at(after.value, after.path).detach().clone().requires_grad_()
        with torch.enable_grad():
            scores = score(containers.mapped(after.value, partial(_leaf_or_copy, after.path, leaf)))  # (N, K)
        (vectors,) = score_gradients(scores, [leaf], leaf.nbytes)  # (K, N, T, C)
        gradient = None if vectors is None else vjp(after.edge, [handle], vectors, each.weights.nbytes)[0]
        if gradient is None:
            raise NotConnected(_not_connected_text([each.layer]))
        yield _split_heads(gradient, each)


def readout_weights(scores: Tensor, after: BlockOutput, tokens: Layout) -> Tensor:
    """(N, K, T): with what weight each score reads the tokens after the last block; `Trace.readout_weights` says how.

    Args:
        scores: (N, K), with their graph.
        after: What the last block returned; its edge is in that graph.
        tokens: The layout of the block's tokens.
    """
    size = math.prod(tokens.grid)
    of_grid = torch.zeros(size + tokens.others, device=scores.device)
    of_grid[tokens.prefix : tokens.prefix + size] = 1
    if not tokens.others:
        return (of_grid / size).expand(*scores.shape, -1)
    assert after.edge is not None
    (gradient,) = score_gradients(scores, [after.edge], containers.at(after.value, after.path).nbytes)
    depends = torch.zeros(*scores.shape, len(of_grid), device=of_grid.device)
    if gradient is not None:
        samples_first = gradient.movedim(1 + tokens.batch_axis, 0)  # (N, K, T, C), or (N, K, C, T)
        depends = (samples_first != 0).any(2 if tokens.kind == "channel-tokens" else 3).float()
    first = torch.zeros_like(of_grid)
    first[slice(1) if tokens.prefix else slice(size)] = 1
    outside = torch.where(depends.any(2, keepdim=True), depends, first)
    weights = torch.where((depends * of_grid).any(2, keepdim=True), of_grid, outside)
    return weights / weights.sum(2, keepdim=True)


def _leaf_or_copy(tokens: str, leaf: Tensor, path: str, tensor: Tensor) -> Tensor:
    return leaf.clone() if path == tokens else tensor.clone()


def _gradient_handle(attention: Attention) -> Tensor | GradientEdge:
    if attention.handle is None:
        raise GradUnavailable("this trace was made with gradients=False; make it again without that")
    return attention.handle


def _split_heads(gradient: Tensor, attention: Attention) -> Tensor:
    """(K, N, heads, T, T) or (K, N*heads, T, T) -> (N, K, heads, T, T)."""
    return at_least_float32(gradient.reshape(len(gradient), *attention.weights.shape).movedim(0, 1))


def _not_connected_text(layers: list[str]) -> str:
    named = ", ".join(map(repr, layers))
    return (
        f"the score does not depend on the attention in {named}: no gradient flows back to it. Either the model does "
        "not use it for this score, or it detaches it, or runs a part under torch.no_grad() or inference_mode(). "
        "Choose a method that needs no gradients"
    )
