"""Methods that need attention weights: how the tokens attend to each other, layer by layer.

Throughout, A is the attention (N, heads, T, T) of one layer, whose row i has the weights of the tokens in token i, and
g the gradients (N, K, heads, T, T) of the K scores. Skip connections and values are not in A. For a model that mixes
its heads after the softmax (talking heads), A is the output of the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from torchpeek.cam.method import cam_method
from torchpeek.engine.attention.recorder import Attention
from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import OptionError

Heads: TypeAlias = Literal["mean", "min", "max"]


class Tokens(Protocol):
    """Which of the T tokens form the grid: `prefix` other tokens, then the grid, then `suffix` other tokens."""

    @property
    def prefix(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def suffix(self) -> int: ...


class AttentionTrace(Protocol):
    """The part of a trace that these methods read."""

    @property
    def attentions(self) -> Sequence[Attention]:
        """The attention of each layer, in the order of the forward pass."""

    @property
    def attention_gradients(self) -> Sequence[Tensor]:
        """For each layer the gradients of the scores, (N, K, heads, T, T)."""

    @property
    def layerwise_attention_gradients(self) -> Iterable[Tensor]:
        """For each layer the gradients of the scores that its own block's tokens would have, (N, K, heads, T, T)."""

    @property
    def tokens(self) -> Tokens:
        """Which tokens form the grid."""

    @property
    def readout_weights(self) -> Tensor:
        """(N, K, T): the weight with which each score reads each token after the last block; each row sums to 1."""


@cam_method("rollout", needs="attention", layers="all", paper="arXiv:2005.00928")
def rollout(trace: AttentionTrace, *, heads: Heads = "mean") -> Tensor:
    """How much of each position reaches the tokens that the score reads, if only attention mixed tokens (section 3).

    The product of A/2 + I/2 over the layers, later layers on the left. A is fused over the heads, and each row is
    scaled to sum to 1. The map is the row of the class token; if the score reads several tokens, or those of the grid,
    it is the mean over their rows. It depends on the score in no other way.

    Args:
        heads: How A is fused over the heads: "mean", "min" or "max".
    """
    if heads not in get_args(Heads):
        raise OptionError(f"option heads is {heads!r}; allowed: {', '.join(map(repr, get_args(Heads)))}")
    layers = [mixed(each.weights, heads).unsqueeze(1) for each in trace.attentions]  # (N, 1, T, T)
    readout = trace.readout_weights.to(layers[0])
    if bool((readout == readout[:, :1]).all()):
        readout = readout[:, :1]  # it is the same for every score
    return on_grid(row_of_product(readout, layers), trace.tokens)


@cam_method(
    "legrad",
    needs="attention",
    layers="all",
    passes="1 forward through the head and 1 backward through one block for each block",
    paper="arXiv:2404.03214",
)
def legrad(trace: AttentionTrace) -> Tensor:
    """Positive gradients of each layer's own score with respect to its attention, averaged (section 3).

    The score s^l is what the head would return for the tokens after block l. The mean is over the heads, the query
    tokens and all layers; the authors' code takes the last two layers by default. Their scaling to [0, 1] is left to
    `.unit()`. A head that pools by attention is a part of the score, so its own attention is not read.
    """
    layers = [g.clamp(min=0).mean(dim=(2, 3)) for g in trace.layerwise_attention_gradients]  # each (N, K, T)
    return on_grid(torch.stack(layers).mean(dim=0), trace.tokens)


@cam_method(
    "transformer-attribution",
    needs="attention",
    layers="all",
    passes="1 backward through all layers",
    paper="arXiv:2103.15679",
)
def transformer_attribution(trace: AttentionTrace) -> Tensor:
    """Positive parts of gradient times attention, rolled out over the layers (eqs. 5 and 6).

    R starts as I, and every layer adds E(A g)+ R to it, where E is the mean over the heads. The map is the row of R - I
    of the class token; if the score reads several tokens, or those of the grid, it is the mean over their rows. This is
    the rule of the authors' second paper for self-attention. Their first paper (arXiv:2012.09838) has the relevance of
    LRP in place of A, which is not computed here.
    """
    layers = [
        positive_product(each.weights, g) for each, g in zip(trace.attentions, trace.attention_gradients, strict=True)
    ]
    start = row = trace.readout_weights.to(layers[0])  # (N, K, T)
    for layer in reversed(layers):
        row = row + times(row, layer)  # row (I + layer)
    return on_grid(row - start, trace.tokens)


def mixed(weights: Tensor, heads: Heads) -> Tensor:
    """Return the mean of the fused attention and the identity, rows that sum to 1: (N, heads, T, T) -> (N, T, T)."""
    weights = at_least_float32(weights)
    fused = weights.mean(1) if heads == "mean" else weights.amin(1) if heads == "min" else weights.amax(1)
    half = 0.5 * fused + 0.5 * torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    return half / half.sum(-1, keepdim=True)


def positive_product(weights: Tensor, gradient: Tensor) -> Tensor:
    """Return the heads' mean of the positive products: (N, heads, T, T), (N, K, heads, T, T) -> (N, K, T, T)."""
    return (at_least_float32(weights).unsqueeze(1) * gradient).clamp(min=0).mean(dim=2)


def row_of_product(row: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Return row times last layer times ... times first layer: (..., T) and matrices (..., T, T) -> (..., T).

    The row is multiplied from the left, one matrix after the other. The product of the matrices would cost T times as
    much.
    """
    for layer in reversed(layers):
        row = times(row, layer)
    return row


def times(row: Tensor, layer: Tensor) -> Tensor:
    """Return (..., T) times (..., T, T)."""
    return (row.unsqueeze(-2) @ layer).squeeze(-2)


def on_grid(row: Tensor, tokens: Tokens) -> Tensor:
    """Select the grid's tokens and reshape them, (..., T) -> (..., *grid)."""
    of_grid = row.narrow(-1, tokens.prefix, math.prod(tokens.grid))
    return of_grid.reshape(*row.shape[:-1], *tokens.grid)
