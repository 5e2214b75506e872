"""Attention weights as the calling thread makes them: handed out, and made where a fused kernel would not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Bound at import: whoever replaces these in torch's module hides them from us and from torch alike.
_FUSED_ATTENTION = F.scaled_dot_product_attention


_MULTI_HEAD_ATTENTION = F.multi_head_attention_forward


_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)


class AttentionMode(TorchFunctionMode):
    """Attention as the calling thread runs it: weights made and handed out where it is fused, handed out elsewhere."""

    def __init__(self, on_attention: Callable[..., Tensor], on_other: Callable[[str], None]) -> None:
        super().__init__()
        self._on_attention = on_attention
        self._on_other = on_other
        self._batch: int | None = None  # of the nn.MultiheadAttention that is running

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _MULTI_HEAD_ATTENTION:
            return self._multi_head(args, kwargs)
        if func == _FUSED_ATTENTION:
            return self._fused(*args, **kwargs)
        made = func(*args, **kwargs)
        if func in _SOFTMAX and "out" not in kwargs:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return self._softmax(made, axis)
        return made

    def _softmax(self, made: Tensor, axis: object) -> Tensor:
        if made.ndim < 3 or axis not in (-1, made.ndim - 1) or made.layout != torch.strided or made.is_nested:
            return made
        queries, keys = made.shape[-2:]
        if queries != keys or keys < 2:
            if made.ndim > 3:
                self._on_other("pooled" if queries > keys > 1 else "cross")
            return made
        if made.ndim > 4:
            self._on_other("groups")
            return made
        return self._on_attention(made, len(made) if made.ndim == 4 else self._batch, own=False)

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
        usual = partial(
            _FUSED_ATTENTION, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if query.is_nested or query.ndim < 3 or (is_causal and attn_mask is not None):
            return usual()
        if query.shape[-2] != key.shape[-2] or query.ndim > 4 or query.shape[-2] < 2:
            queries, keys = query.shape[-2], key.shape[-2]
            other = "pooled" if queries > keys > 1 else "cross" if queries != keys or queries < 2 else "groups"
            self._on_other(other)
            return usual()
        kind = query.device.type
        if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:  # which casts what this function is given
            query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
        if enable_gqa:
            key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], dim=-3) for each in (key, value))
        with torch.autocast(kind, enabled=False):
            weights = _weights(query, key, attn_mask, is_causal, scale)
            batch = len(weights) if weights.ndim == 4 else None
            weights = self._on_attention(weights, batch, own=True)
            made = F.dropout(weights, dropout_p) @ value.to(weights.dtype)  # the model's own p, also in eval mode
            made = made.to(value.dtype)
        # In memory as the fused kernels have it, (N, T, heads, C): a model may rely on that for a view.
        return made.transpose(1, 2).contiguous().transpose(1, 2) if made.ndim == 4 else made

    def _multi_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """torch's own function, which hides its inside from a mode, run so that it does not."""
        query: Tensor = args[0]
        before, self._batch = self._batch, query.shape[1] if query.ndim == 3 else 1
        # A copy with other globals: without its question whether somebody overrides it, it runs on, and its inside is
        # asked the same. Nothing that another thread could see is changed.
        own = {**_MULTI_HEAD_ATTENTION.__globals__, "has_torch_function": lambda tensors: False}
        inside = FunctionType(
            _MULTI_HEAD_ATTENTION.__code__, own, _MULTI_HEAD_ATTENTION.__name__, _MULTI_HEAD_ATTENTION.__defaults__
        )
        inside.__kwdefaults__ = _MULTI_HEAD_ATTENTION.__kwdefaults__
        try:
            with self:
                return inside(*args, **kwargs)
        finally:
            self._batch = before


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """softmax(q k^T scale + mask), (..., T, T), as scaled_dot_product_attention documents it; >= float32.

    A mask of bools says who takes part. A query that may attend to nothing gets zeros.
    """
    if query.dtype in (torch.float16, torch.bfloat16):  # the fused kernels, too, sum up in float32
        query, key = query.float(), key.float()
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(dim=-1)
    added = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    nothing = (added == -math.inf).all(dim=-1, keepdim=True)
    return added.masked_fill(nothing, 0).softmax(dim=-1).masked_fill(nothing, 0)


@contextmanager
def active(mode: TorchFunctionMode) -> Iterator[None]:
    """In this mode; on exit the thread's modes are those of the start, also if an interrupt came amid torch's own."""
    before = _active_modes()
    torch._C._push_on_torch_function_stack(mode)
    try:
        yield
    finally:
        for _ in _active_modes():
            torch._C._pop_torch_function_stack()
        for mode in before:
            torch._C._push_on_torch_function_stack(mode)


def _active_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(place) for place in range(torch._C._len_torch_function_stack())]
