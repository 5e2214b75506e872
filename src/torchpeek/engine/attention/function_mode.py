"""AttentionMode: intercept the attention that the calling thread computes, and compute fused attention step by step."""

from __future__ import annotations

import math
from functools import partial
from types import FunctionType
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

OtherAttention: TypeAlias = Literal["pooled", "cross", "groups"]
"""Attention that is not of all tokens to each other: to fewer tokens, from other queries, or inside groups."""

# Bound at import. Code that replaces these functions in torch's module hides its calls from this mode and from torch.
_FUSED_ATTENTION = F.scaled_dot_product_attention
_MULTI_HEAD_ATTENTION = F.multi_head_attention_forward
_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)


class OnAttention(Protocol):
    """Called with the weights of each attention of tokens to each other."""

    def __call__(self, weights: Tensor, batch: int | None, *, private: bool) -> Tensor:
        """Return the weights to continue with.

        `batch` is the number of samples, None where it is unknown. `private` says that no one else has the tensor.
        """


class OnOther(Protocol):
    """Called for each attention that is not of all tokens to each other."""

    def __call__(self, description: OtherAttention) -> None: ...


class AttentionMode(TorchFunctionMode):
    """Hand the attention weights of the calling thread to `on_attention`, and count other attention by `on_other`.

    A fused call of attention never has its weights in memory. In this mode it is computed in steps instead.
    """

    def __init__(self, on_attention: OnAttention, on_other: OnOther) -> None:
        super().__init__()
        self._on_attention = on_attention
        self._on_other = on_other
        self._batch: int | None = None  # the number of samples of the nn.MultiheadAttention that is running

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _MULTI_HEAD_ATTENTION:
            return self._multi_head(args, kwargs)
        if func == _FUSED_ATTENTION:
            return self._fused(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _SOFTMAX and "out" not in kwargs:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return self._softmax(output, axis)
        return output

    def _softmax(self, output: Tensor, axis: object) -> Tensor:
        if output.ndim < 3 or axis not in (-1, output.ndim - 1) or output.layout != torch.strided or output.is_nested:
            return output
        queries, keys = output.shape[-2:]
        if queries != keys or keys < 2:
            if output.ndim > 3:
                self._on_other("pooled" if queries > keys > 1 else "cross")
            return output
        if output.ndim > 4:
            self._on_other("groups")
            return output
        return self._on_attention(output, len(output) if output.ndim == 4 else self._batch, private=False)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        fused = partial(
            _FUSED_ATTENTION, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if query.is_nested or query.ndim < 3 or (is_causal and attn_mask is not None):
            return fused()
        if query.shape[-2] != key.shape[-2] or query.ndim > 4 or query.shape[-2] < 2:
            queries, keys = query.shape[-2], key.shape[-2]
            other: OtherAttention = "groups"
            if queries != keys or queries < 2:
                other = "pooled" if queries > keys > 1 else "cross"
            self._on_other(other)
            return fused()
        device = query.device.type
        if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
            # Autocast casts the arguments of the fused function, but not those of the steps below.
            query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
        if enable_gqa:
            key, value = (
                tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], dim=-3) for tensor in (key, value)
            )
        with torch.autocast(device, enabled=False):
            weights = _attention_weights(query, key, attn_mask, is_causal, scale)
            batch = len(weights) if weights.ndim == 4 else None
            weights = self._on_attention(weights, batch, private=True)
            # Dropout with the model's own p, also in eval mode, as the fused function applies it.
            output = F.dropout(weights, dropout_p) @ value.to(weights.dtype)
            output = output.to(value.dtype)
        # The fused kernels lay their output out as (N, T, heads, C), and a model may rely on that for a view.
        return output.transpose(1, 2).contiguous().transpose(1, 2) if output.ndim == 4 else output

    def _multi_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run torch's own function so that this mode sees the operations in it.

        Called again in this mode, torch's function would only dispatch to the mode again. So a copy of it runs, with
        globals of its own in which `has_torch_function` is always False. The copy skips that dispatch and goes on, and
        its operations dispatch to the mode. torch's module is not changed, so other threads are not affected.
        """
        query: Tensor = args[0]
        before, self._batch = self._batch, query.shape[1] if query.ndim == 3 else 1
        function_globals = {**_MULTI_HEAD_ATTENTION.__globals__, "has_torch_function": lambda tensors: False}
        function = FunctionType(
            _MULTI_HEAD_ATTENTION.__code__,
            function_globals,
            _MULTI_HEAD_ATTENTION.__name__,
            _MULTI_HEAD_ATTENTION.__defaults__,
        )
        function.__kwdefaults__ = _MULTI_HEAD_ATTENTION.__kwdefaults__
        try:
            with self:
                return function(*args, **kwargs)
        finally:
            self._batch = before


def _attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """softmax(q k^T scale + mask), (..., T, T), as scaled_dot_product_attention documents it; at least float32.

    A mask of bools is True where a query may attend to a key. A query that may attend to none gets zeros.
    """
    if query.dtype in (torch.float16, torch.bfloat16):  # the fused kernels accumulate in float32, too
        query, key = query.float(), key.float()
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits.softmax(dim=-1)
    masked = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    fully_masked = (masked == -math.inf).all(dim=-1, keepdim=True)
    return masked.masked_fill(fully_masked, 0).softmax(dim=-1).masked_fill(fully_masked, 0)
