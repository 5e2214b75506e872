"""AttentionRecorder: record the attention weights of one pass, also where the model computes them in a fused call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.attention.function_mode import AttentionMode, OtherAttention
from torchpeek.engine.gradients import Handle, start_graph
from torchpeek.errors import MethodNotApplicable
from torchpeek.hooks import active, attached, call_name, containers, grad_mode
from torchpeek.interrupts import uninterrupted
from torchpeek.undo import Block, Undo


@dataclass(frozen=True, eq=False)
class BlockOutput:
    """What a block returned.

    Args:
        value: A tensor or a container, with copies of the tensors and without a graph.
        path: The path of the tokens in `value`; "" where it is the tensor itself.
        edge: Where the graph behind the tokens begins; None where they are not in the graph.
    """

    value: Any
    path: str
    edge: GradientEdge | None


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of all tokens to each other in one call.

    Args:
        layer: The innermost module that was running.
        block: The outermost module that has this attention between the tokens and no other, and returns the tokens.
        weights: (N, heads, T, T), what the softmax returned; rows are queries. A row sums to 1, or to 0 where all of it
            is masked. A model that mixes the heads afterwards (talking heads), or drops some of the weights, multiplies
            the values by something else.
        handle: Where the gradient of the weights is read. Samples and heads may share one axis, (N*heads, T, T). None
            where the pass kept no graph.
        block_output: What the block returned; None where the pass kept no graph.
    """

    layer: str
    block: str
    weights: Tensor
    handle: Tensor | GradientEdge | None
    block_output: BlockOutput | None


class AttentionRecorder(Block["AttentionRecorder"]):
    """Record the attention weights of one pass: `with recorder: run(model, call)`, then `recorder.attentions(N)`.

    Recorded are scaled_dot_product_attention, nn.MultiheadAttention, and a softmax over the last axis of a tensor
    whose last two axes are equal; in the thread that entered the block, and in eager mode. The fast paths of torch's
    transformer layers are off inside the block.

    With `gradients`, the graph starts at the first attention weights: nothing before them is in it, and gradients are
    on from there to the end of the block. A recorder is used once.

    Attention in the layers `excluded`, or in their calls `layer[i]`, does not count: that among the words of a text, or
    in the branch of another input.
    """

    def __init__(self, gradients: bool, model: nn.Module, excluded: Container[str] = ()) -> None:
        super().__init__()
        self._gradients = gradients
        self._model = model
        self._excluded = excluded
        self._attention_calls: list[_AttentionCall] = []
        self._calls_of_layer = Counter[str]()
        self._other_calls = Counter[OtherAttention]()
        self._module_calls: list[_ModuleCall] = []  # those that are running, the innermost last

    def _open(self, undo: Undo) -> AttentionRecorder:
        undo.enter(uninterrupted())
        undo.enter(grad_mode(torch.is_grad_enabled()))  # a hook may turn gradients on for what follows it
        undo.push(self._module_calls.clear)
        hooked = [(name, module) for name, module in self._model.named_modules() if _can_have_hooks(module)]
        undo.enter(
            attached(
                called=[(module, partial(self._module_called, name)) for name, module in hooked],
                ended=[(module, self._module_returned) for _, module in hooked],
            )
        )
        undo.enter(active(AttentionMode(self._record, self._count_other)))
        return self

    def attentions(self, sample_count: int) -> list[Attention]:
        """The attention of all tokens to each other, in the order of the pass, for a batch of `sample_count` samples.

        Three kinds are left out: attention among more tokens in earlier stages, attention between channels, and
        attention from other queries (a class token of its own, a pooling head). Where a model has samples and heads in
        one axis, (N*heads, T, T), the samples are taken to come first, as in torch and transformers.

        Raises:
            MethodNotApplicable: When there is none, or other operations move information between the tokens, too:
                attention inside windows, in several branches, or among fewer tokens later on.
        """
        of_tokens = [call for call in self._attention_calls if call.batch == sample_count and call.block is not None]
        windows = sum(call.batch not in (sample_count, None) for call in self._attention_calls)
        windows += self._other_calls["groups"]
        unclear = [call for call in self._attention_calls if call.among_tokens and call.block is None]
        if not windows and unclear:
            raise MethodNotApplicable(
                f"the attention in {unclear[0].layer!r} of {self._model_name} is made of several softmaxes, so none of "
                f"them gives the weights of the tokens. {_USE_ANOTHER_METHOD}"
            )
        if windows or not of_tokens or self._other_calls["pooled"]:
            raise MethodNotApplicable(self._refusal(len(of_tokens), windows))
        size = Counter(call.size for call in of_tokens).most_common(1)[0][0]
        selected = [call for call in of_tokens if call.size == size]
        if others := [call for call in of_tokens[of_tokens.index(selected[0]) :] if call.size != size]:
            raise MethodNotApplicable(
                f"most attention of {self._model_name} is among {size} tokens, but that in {others[-1].layer!r}, a "
                f"later layer, among {others[-1].size}: the model merges tokens, or runs them in several branches. "
                f"Attention weights do not show how. {_USE_ANOTHER_METHOD}"
            )
        return [
            Attention(
                call.layer,
                call.block or "",
                call.weights.view(sample_count, -1, size, size),
                call.handle,
                call.block_output,
            )
            for call in selected
        ]

    @property
    def _model_name(self) -> str:
        return type(self._model).__name__

    def _refusal(self, of_tokens: int, windows: int) -> str:
        channels = len(self._attention_calls) + self._other_calls["groups"] - of_tokens - windows
        counts = {
            "among all tokens": of_tokens,
            "inside windows or groups of tokens": windows,
            "between channels, or between entries that are not the tokens of a layer's output": channels,
            "of many tokens to fewer, such as pooled ones": self._other_calls["pooled"],
            "from other queries than the tokens (cross-attention)": self._other_calls["cross"],
        }
        if any(counts.values()):
            listed = ", ".join(f"{count} {description}" for description, count in counts.items() if count)
            return (
                f"attention methods need a model whose tokens all attend to each other; {self._model_name} has other "
                f"attention. Its calls: {listed}. {_USE_ANOTHER_METHOD}"
            )
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in self._model.modules())
        return (
            f"no attention was recorded in {self._model_name}. Recorded are scaled_dot_product_attention, "
            "nn.MultiheadAttention and a softmax over the last axis of (N, heads, T, T)"
            + (", but not in scripted parts, which this model has" if scripted else "")
            + ". Other fused kernels (flash_attn, xformers, flex_attention), compiled functions and DataParallel hide "
            "their attention. Choose another implementation (in transformers attn_implementation='sdpa'), or a method "
            "that needs no attention (torchpeek methods lists them)"
        )

    def _record(self, weights: Tensor, batch: int | None, *, private: bool) -> Tensor:
        """Record square weights, and return the weights that the model continues with.

        `private`: no one but the recorder has the tensor, so nothing will write into it.
        """
        innermost = self._module_calls[-1].name if self._module_calls else ""
        number = self._calls_of_layer[innermost]
        self._calls_of_layer[innermost] += 1
        if innermost in self._excluded or call_name(innermost, number) in self._excluded:
            return weights
        recorded = weights.detach() if private else weights.detach().clone()
        handle: Handle | None = None
        if self._gradients:
            handle, weights = start_graph(weights, recorded)
        call = _AttentionCall(innermost, recorded, handle, batch)
        self._attention_calls.append(call)
        for module_call in self._module_calls:
            module_call.attention_calls.append(call)
        return weights

    def _count_other(self, description: OtherAttention) -> None:
        self._other_calls[description] += 1

    def _module_called(self, name: str, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        self._module_calls.append(_ModuleCall(name, module, []))

    def _module_returned(self, module: nn.Module, args: Any, output: Any) -> None:
        """Decide for each attention in the module whether the module returns its tokens, and whether it is its block.

        Modules return from the inside out. So the last module that qualifies as the block is the outermost.
        """
        if not any(call.module is module for call in self._module_calls):
            return
        while (module_call := self._module_calls.pop()).module is not module:
            pass  # it raised an error, which the model caught
        sizes = Counter(call.size for call in module_call.attention_calls)
        for call in module_call.attention_calls:
            alone = sizes[call.size] == 1
            if (call.among_tokens and not alone) or (tokens := _find_tokens(output, call)) is None:
                continue
            call.among_tokens = True
            path, call.batch = tokens
            if alone and (module_call.name or call.block is None):  # the model itself only where there is no other
                call.block = module_call.name
                call.block_output = _block_output(output, path) if self._gradients else None


_USE_ANOTHER_METHOD = "Choose a method that needs no attention (torchpeek methods lists them)"


@dataclass(eq=False)
class _AttentionCall:
    """One recorded attention, completed as the modules around it return."""

    layer: str
    weights: Tensor  # (N, heads, T, T) or (N*heads, T, T)
    handle: Tensor | GradientEdge | None
    batch: int | None  # the number of samples; None until it is known
    among_tokens: bool = False  # whether a module around it returned as many tokens
    block: str | None = None
    block_output: BlockOutput | None = None

    @property
    def size(self) -> int:
        return self.weights.shape[-1]


@dataclass(frozen=True, eq=False)
class _ModuleCall:
    """A call of a module that is running, and the attention in it so far."""

    name: str
    module: nn.Module
    attention_calls: list[_AttentionCall]


def _can_have_hooks(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule)


def _block_output(output: Any, path: str) -> BlockOutput:
    tokens = containers.at(output, path)
    edge = get_gradient_edge(tokens) if tokens.requires_grad else None
    return BlockOutput(containers.mapped(output, lambda _, tensor: tensor.detach().clone()), path, edge)


def _find_tokens(output: Any, call: _AttentionCall) -> tuple[str, int] | None:
    """The path of the tensor in a module's output that has the tokens of this attention, and its number of samples.

    None where the output has no such tensor.
    """
    for path, tensor in containers.leaves(output):
        if tensor.is_floating_point() and (count := _sample_count(tensor.shape, call)) is not None:
            return path, count
    return None


def _sample_count(shape: torch.Size, call: _AttentionCall) -> int | None:
    """N, if the shape is (N, T, C), (T, N, C), (N, *grid, C) or (N, C, *grid) with T positions; else None."""
    if len(shape) < 3 or 0 in shape:
        return None

    def fits(count: int) -> bool:
        return count == call.batch if call.batch is not None else len(call.weights) % count == 0

    # (N, C, T) is left out: where channels attend to each other in one head, (N, T, C) would be taken for it.
    position_counts = [math.prod(shape[1:-1]), *([math.prod(shape[2:])] if len(shape) > 3 else [])]
    if call.size in position_counts and fits(shape[0]):
        return shape[0]
    return shape[1] if len(shape) == 3 and shape[0] == call.size and fits(shape[1]) else None
