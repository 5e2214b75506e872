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
from torchpeek.engine.gradients import NO_GRAPH, score_gradients, vjp
from torchpeek.engine.layout import Layout
from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import GradUnavailable, NotConnected
from torchpeek.hooks import containers


def attention_gradients(scores: Tensor, attentions: Sequence[Attention]) -> list[Tensor]:
    """Compute the gradients of the scores with respect to attention weights, by one batched vector-Jacobian product.

    Samples do not depend on each other in eval mode, so one backward pass serves the whole batch.

    Args:
        scores: (N, K), with their graph.
        attentions: The attention weights of the same pass.

    Returns:
        For each attention (N, K, heads, T, T), at least float32.

    Raises:
        GradUnavailable: When the pass kept no graph.
        NotConnected: When no score depends on one of them.
    """
    handles = [_gradient_handle(each) for each in attentions]
    gradients = score_gradients(scores, handles, sum(each.weights.nbytes for each in attentions))
    pairs = list(zip(gradients, attentions, strict=True))
    by_head = [_split_heads(gradient, each) for gradient, each in pairs if gradient is not None]
    if len(by_head) < len(attentions):
        raise NotConnected(_not_connected_text([each.layer for gradient, each in pairs if gradient is None]))
    return by_head


def layerwise_attention_gradients(score: Callable[[Any], Tensor], attentions: Sequence[Attention]) -> Iterator[Tensor]:
    """Compute for each attention the gradients of the scores s^l that its own block's output gets.

    This works on one layer at a time, by a batched vector-Jacobian product through the layer's own block only.

    Args:
        score: What follows the last block: from a block's output, with its tokens in a graph, to scores (N, K).
        attentions: The attention weights of a pass.

    Yields:
        (N, K, heads, T, T), at least float32.

    Raises:
        GradUnavailable: When the pass kept no graph, or a block's output is not in the graph.
        NotConnected: When no score depends on one of them.

    Source: arXiv:2404.03214, section 3.
    """
    for each in attentions:
        handle, block_output = _gradient_handle(each), each.block_output
        if block_output is None or block_output.edge is None:
            raise GradUnavailable(
                f"the output of {each.block!r} is not in the graph: it runs under torch.no_grad() or inference_mode(). "
                "Choose a method that needs no gradients"
            )
        # A copy, because `score` may write into the block's output.
        leaf = containers.at(block_output.value, block_output.path).detach().clone().requires_grad_()
        with torch.enable_grad():
            copied = containers.mapped(block_output.value, partial(_leaf_or_copy, block_output.path, leaf))
            scores = score(copied)  # (N, K)
        (vectors,) = score_gradients(scores, [leaf], leaf.nbytes)  # (K, N, T, C)
        gradient = None if vectors is None else vjp(block_output.edge, [handle], vectors, each.weights.nbytes)[0]
        if gradient is None:
            raise NotConnected(_not_connected_text([each.layer]))
        yield _split_heads(gradient, each)


def readout_weights(scores: Tensor, block_output: BlockOutput, tokens: Layout) -> Tensor:
    """Compute the weight with which each score reads each token after the last block; see `Trace.readout_weights`.

    Args:
        scores: (N, K), with their graph.
        block_output: What the last block returned; its edge is in that graph.
        tokens: The layout of the block's tokens.

    Returns:
        (N, K, T); each row sums to 1.
    """
    size = math.prod(tokens.grid)
    of_grid = torch.zeros(size + tokens.others, device=scores.device)
    of_grid[tokens.prefix : tokens.prefix + size] = 1
    if not tokens.others:
        return (of_grid / size).expand(*scores.shape, -1)
    assert block_output.edge is not None
    token_bytes = containers.at(block_output.value, block_output.path).nbytes
    (gradient,) = score_gradients(scores, [block_output.edge], token_bytes)
    depends = torch.zeros(*scores.shape, len(of_grid), device=of_grid.device)
    if gradient is not None:
        samples_first = gradient.movedim(1 + tokens.batch_axis, 0)  # (N, K, T, C), or (N, K, C, T)
        depends = (samples_first != 0).any(2 if tokens.kind == "channel-tokens" else 3).float()
    first = torch.zeros_like(of_grid)
    first[slice(1) if tokens.prefix else slice(size)] = 1
    outside = torch.where(depends.any(2, keepdim=True), depends, first)
    weights = torch.where((depends * of_grid).any(2, keepdim=True), of_grid, outside)
    return weights / weights.sum(2, keepdim=True)


def _leaf_or_copy(token_path: str, leaf: Tensor, path: str, tensor: Tensor) -> Tensor:
    return leaf.clone() if path == token_path else tensor.clone()


def _gradient_handle(attention: Attention) -> Tensor | GradientEdge:
    if attention.handle is None:
        raise GradUnavailable(NO_GRAPH)
    return attention.handle


def _split_heads(gradient: Tensor, attention: Attention) -> Tensor:
    """(K, N, heads, T, T) or (K, N*heads, T, T) -> (N, K, heads, T, T)."""
    return at_least_float32(gradient.reshape(len(gradient), *attention.weights.shape).movedim(0, 1))


def _not_connected_text(layers: list[str]) -> str:
    listed = ", ".join(map(repr, layers))
    return (
        f"the score does not depend on the attention in {listed}: no gradient flows back to it. Either the model does "
        "not use it for this score, or it detaches it, or runs a part under torch.no_grad() or inference_mode(). "
        "Choose a method that needs no gradients"
    )
