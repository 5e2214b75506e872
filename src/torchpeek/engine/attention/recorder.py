"""Attention weights, seen where a model makes them and made where it does not, in one pass."""

from __future__ import annotations

import math
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.attention.function_mode import AttentionMode, active
from torchpeek.errors import MethodNotApplicable
from torchpeek.hooks import attached, containers
from torchpeek.interrupts import uninterrupted


@dataclass(frozen=True, eq=False)
class BlockOutput:
    """What a block returned: copies of its tensors, and where the graph behind its tokens begins."""

    value: Any  # as the block returned it, a tensor or a container, without a graph
    path: str  # of the tokens in `value`; "" where it is the tensor itself
    edge: GradientEdge | None


@dataclass(frozen=True, eq=False)
class Attention:
    """How the tokens attended to each other in one call.

    `weights` are what the softmax returned: a model that mixes the heads afterwards (talking heads), or drops some,
    multiplies the values with something else. `handle` is where their gradient is asked for, and may have heads and
    samples in one axis, (N*heads, T, T); None where the pass kept no graph.
    """

    layer: str  # the innermost module that was running
    block: str  # the outermost module that holds this attention of the tokens and no other, and returns the tokens
    weights: Tensor  # (N, heads, T, T), rows are queries; each row sums to 1, or to 0 where all of it is masked
    handle: Tensor | GradientEdge | None
    after: BlockOutput | None  # what the block returned; None where the pass kept no graph


class AttentionRecorder:
    """Inside the block the model makes its attention weights, and they are kept; with `gradients`, in the graph.

    `with recorder: run(model, inputs)`, then `recorder.attentions(N)`. Seen are scaled_dot_product_attention,
    nn.MultiheadAttention and a softmax over the last axis of what is square, in the thread that entered, eagerly run.
    The fast paths of torch's transformer layers are off meanwhile. The graph starts at the first attention weights:
    nothing before them is recorded, and gradients are on from there until the block ends. Use it once.
    """

    def __init__(self, gradients: bool, model: nn.Module) -> None:
        self._gradients = gradients
        self._model = model
        self._attention_calls: list[_AttentionCall] = []
        self._others = Counter[str]()
        self._calls: list[_ModuleCall] = []  # under way, the innermost last
        self._thread = threading.get_ident()
        self._exits = ExitStack()

    def __enter__(self) -> AttentionRecorder:
        self._thread = threading.get_ident()
        with ExitStack() as opened:
            opened.enter_context(uninterrupted())
            opened.callback(torch.set_grad_enabled, torch.is_grad_enabled())
            hooked = [(name, module) for name, module in self._model.named_modules() if _can_have_hooks(module)]
            opened.enter_context(
                attached(
                    called=[(module, partial(self._module_called, name)) for name, module in hooked],
                    ended=[(module, self._module_returned) for _, module in hooked],
                )
            )
            opened.enter_context(active(AttentionMode(self._record, self._count_other)))
            self._exits = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._calls.clear()
        self._exits.close()

    def attentions(self, sample_count: int) -> list[Attention]:
        """The attention of all tokens to each other, in the order of the pass, for a batch of `count` samples.

        Raises MethodNotApplicable where there is none, or where it is not all that moves information between tokens:
        attention inside windows, in several branches, or among fewer tokens later on. Left out is attention among more
        tokens in earlier stages, between channels, and from other queries (a class token of its own, a pooling head).
        Where a model has samples and heads in one axis, (N*heads, T, T), samples are taken to come first, as torch and
        transformers have it.
        """
        of_tokens = [seen for seen in self._attention_calls if seen.batch == sample_count and seen.block is not None]
        windows = sum(seen.batch not in (sample_count, None) for seen in self._attention_calls) + self._others["groups"]
        if not windows and (
            unclear := [seen for seen in self._attention_calls if seen.among_tokens and seen.block is None]
        ):
            raise MethodNotApplicable(
                f"attention in {unclear[0].layer!r} of {self._model_name} is made of several softmaxes, so that none of "
                f"them is what the tokens attend with. {_INSTEAD}"
            )
        if windows or not of_tokens or self._others["pooled"]:
            raise MethodNotApplicable(self._refusal(len(of_tokens), windows))
        size = Counter(seen.size for seen in of_tokens).most_common(1)[0][0]
        chosen = [seen for seen in of_tokens if seen.size == size]
        if others := [seen for seen in of_tokens[of_tokens.index(chosen[0]) :] if seen.size != size]:
            raise MethodNotApplicable(
                f"most attention of {self._model_name} is among {size} tokens, but that in {others[-1].layer!r}, not before "
                f"it, among {others[-1].size}: the tokens are merged on the way or run in several branches, of which "
                f"attention says nothing. {_INSTEAD}"
            )
        return [
            Attention(
                seen.layer, seen.block or "", seen.weights.view(sample_count, -1, size, size), seen.handle, seen.after
            )
            for seen in chosen
        ]

    @property
    def _model_name(self) -> str:
        return type(self._model).__name__

    def _refusal(self, of_tokens: int, windows: int) -> str:
        channels = len(self._attention_calls) + self._others["groups"] - of_tokens - windows
        kinds = {
            "among all tokens": of_tokens,
            "inside windows or groups of tokens": windows,
            "between channels, or something else that is no token of a layer's output": channels,
            "of many tokens to fewer, such as pooled ones": self._others["pooled"],
            "from other queries than the tokens (cross-attention)": self._others["cross"],
        }
        if any(kinds.values()):
            listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
            return (
                f"attention methods need a model whose tokens all attend to each other; {self._model_name} has other "
                f"attention. By calls: {listed}. {_INSTEAD}"
            )
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in self._model.modules())
        return (
            f"no attention was seen in {self._model_name}; seen are scaled_dot_product_attention, nn.MultiheadAttention and "
            "a softmax over the last axis of (N, heads, T, T), also inside them"
            + (", but not in scripted parts, which this model has" if scripted else "")
            + ". A fused kernel of another kind (flash_attn, xformers, flex_attention), a compiled function and "
            "DataParallel hide it: choose another implementation (in transformers attn_implementation='sdpa'), or a "
            "method that needs no attention (torchpeek methods lists them)"
        )

    def _record(self, weights: Tensor, batch: int | None, *, own: bool) -> Tensor:
        """Keep square weights, and return those to go on with. `own`: nobody else will write into them."""
        kept = weights.detach() if own else weights.detach().clone()
        handle: Tensor | GradientEdge | None = None
        if self._gradients and weights.requires_grad:
            handle = get_gradient_edge(weights)
        elif self._gradients:
            torch.set_grad_enabled(True)  # for what comes after; the end of the block ends it
            handle = leaf = kept.detach().requires_grad_()
            weights = leaf.clone()  # not the leaf itself: what comes next may write into it
        seen = _AttentionCall(self._calls[-1].name if self._calls else "", kept, handle, batch)
        self._attention_calls.append(seen)
        for call in self._calls:
            call.seen.append(seen)
        return weights

    def _count_other(self, kind: str) -> None:
        self._others[kind] += 1

    def _module_called(self, name: str, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if threading.get_ident() == self._thread:
            self._calls.append(_ModuleCall(name, module, []))

    def _module_returned(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread or not any(call.module is module for call in self._calls):
            return
        while (call := self._calls.pop()).module is not module:
            pass  # ended by an error that the model caught
        sizes = Counter(seen.size for seen in call.seen)
        for seen in call.seen:
            alone = sizes[seen.size] == 1
            if (seen.among_tokens and not alone) or (place := _token_tensor(output, seen)) is None:
                continue
            seen.among_tokens = True
            path, seen.batch = place
            if alone and (call.name or seen.block is None):  # after the model itself nothing comes
                seen.block = call.name
                seen.after = _block_output(output, path) if self._gradients else None


_INSTEAD = "Choose a method that needs no attention (torchpeek methods lists them)"


@dataclass(eq=False)
class _AttentionCall:
    layer: str
    weights: Tensor  # (N, heads, T, T) or (N*heads, T, T)
    handle: Tensor | GradientEdge | None
    batch: int | None  # of samples; None where it is not known yet
    among_tokens: bool = False  # whether a module around it returned as many tokens
    block: str | None = None
    after: BlockOutput | None = None

    @property
    def size(self) -> int:
        return self.weights.shape[-1]


@dataclass(frozen=True, eq=False)
class _ModuleCall:
    """A call of a module that is under way, and the attention in it so far."""

    name: str
    module: nn.Module
    seen: list[_AttentionCall]


def _can_have_hooks(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule)


def _block_output(output: Any, path: str) -> BlockOutput:
    tokens = containers.at(output, path)
    edge = get_gradient_edge(tokens) if tokens.requires_grad else None
    return BlockOutput(containers.mapped(output, lambda _, tensor: tensor.detach().clone()), path, edge)


def _token_tensor(output: Any, seen: _AttentionCall) -> tuple[str, int] | None:
    """Path of the tensor in a module's output whose positions are those that attended, and its samples, or None."""
    for path, tensor in containers.leaves(output):
        if tensor.is_floating_point() and (batch := _sample_count(tensor.shape, seen)) is not None:
            return path, batch
    return None


def _sample_count(shape: torch.Size, seen: _AttentionCall) -> int | None:
    """N, if the shape is (N, T, C), (T, N, C), or (N, *grid, C) or (N, C, *grid) with T positions; else None."""
    if len(shape) < 3 or 0 in shape:
        return None

    def fits(count: int) -> bool:
        return count == seen.batch if seen.batch is not None else len(seen.weights) % count == 0

    # Not (N, C, T): where channels attend to each other in one head, (N, T, C) would look like it.
    along = [math.prod(shape[1:-1]), *([math.prod(shape[2:])] if len(shape) > 3 else [])]
    if seen.size in along and fits(shape[0]):
        return shape[0]
    return shape[1] if len(shape) == 3 and shape[0] == seen.size and fits(shape[1]) else None
