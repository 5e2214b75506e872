"""Every format of tensor that torch has: its shape in words, its memory, its values, and others in the same format.

A tensor is dense, sparse, nested, quantised, in the layout of oneDNN (mkldnn), or without values: meta and fake tensors
have a shape alone. Some dtypes, such as float8, are for storage and have hardly any arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchpeek.errors import InputError

Sizes: TypeAlias = tuple[int | str, ...]
"""The sizes of a tensor; "*" for an axis of a nested tensor whose length varies."""

RAGGED = "*"
"""The size of an axis whose length varies from part to part of a nested tensor."""

_MOST_DENSE_BYTES = 1 << 33  # of a sparse tensor that is made dense to read its values

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_BLOCKS = (torch.sparse_bsr, torch.sparse_bsc)

# The dtypes without arithmetic -> one that has it, and holds all or nearly all of their values.
_COMPUTABLE = {
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
    torch.complex32: torch.complex64,
}

# The same dtypes -> one of the same size that every function of torch can copy and pickle.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_FLOAT8 = frozenset(value for name, value in vars(torch).items() if name.startswith("float8_"))
_FLOAT4 = frozenset(value for name, value in vars(torch).items() if name.startswith("float4_"))
_WITHOUT_ARITHMETIC = _FLOAT8 | _FLOAT4


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the tensor surely needs no special care, in one call: for what runs in every layer."""
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
        and tensor.dtype not in _WITHOUT_ARITHMETIC
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is dense and has values, as most tensors."""
    return is_dense(tensor) and not tensor.is_quantized and has_values(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor is neither sparse nor nested nor in a layout of its own. It may be quantised or meta."""
    return tensor.layout is torch.strided and not tensor.is_nested


def is_dense_float(tensor: Tensor) -> bool:
    """Whether the tensor is dense, and of real floating-point numbers."""
    return tensor.is_floating_point() and is_dense(tensor)


def is_jagged(tensor: Tensor) -> bool:
    """Whether the tensor is nested in the newer one of the two layouts of nested tensors."""
    return tensor.layout == torch.jagged


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor has values: meta and fake tensors have a shape alone."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def shape_sizes(tensor: Tensor) -> Sizes:
    """The sizes of the tensor; "*" for each axis of a nested one whose length varies."""
    if not tensor.is_nested or is_jagged(tensor):  # a symbolic length varies
        return tuple(size if type(size) is int else RAGGED for size in tensor.shape)
    by_part = tensor._nested_tensor_size()  # (parts, axes)
    if not len(by_part):
        return (0, *[RAGGED] * (tensor.dim() - 1))
    same = (by_part == by_part[0]).all(0).tolist()
    return (len(by_part), *(size if each else RAGGED for size, each in zip(by_part[0].tolist(), same, strict=True)))


def shape_text(tensor: Tensor) -> str:
    """The shape as text: (2, 3), or nested (2, *, 3)."""
    return sizes_text(shape_sizes(tensor), nested=True) if tensor.is_nested else sizes_text(tensor.shape)


def sizes_text(sizes: Sizes, *, nested: bool = False) -> str:
    """The shape of a tensor of these sizes as text, as `shape_text`."""
    return f"nested ({', '.join(map(str, sizes))})" if nested else str(tuple(sizes))


def type_text(tensor: Tensor) -> str:
    """The dtype as text, and the layout and the device where they are not the usual ones: float32, sparse_coo."""
    text = dtype_text(tensor.dtype)
    if tensor.layout not in (torch.strided, torch.jagged):
        text += f", {str(tensor.layout).removeprefix('torch.').removeprefix('_')}"
    if isinstance(tensor, FakeTensor):
        return f"{text}, fake"
    return f"{text}, meta" if tensor.is_meta else text


def dtype_text(dtype: torch.dtype) -> str:
    """The name of a dtype without the package: float32."""
    return str(dtype).removeprefix("torch.")


def element_count(tensor: Tensor) -> int:
    """The number of elements; of a nested tensor those of all its parts."""
    if not tensor.is_nested:
        return tensor.numel()
    return sum(part.numel() for part in tensor.detach().unbind())


def value_bytes(tensor: Tensor) -> int:
    """The size of the values and indices of the tensor, in bytes; a view counts with its own elements alone."""
    if is_plain(tensor) or tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.is_quantized:
        return tensor.numel() * tensor.element_size()
    return sum(part.numel() * part.element_size() for part in components(tensor.detach())[1])


def why_without_values(tensor: Tensor) -> str:
    """Say that the tensor has no values, and what to do; an empty string where it has."""
    if has_values(tensor):
        return ""
    name, cause = "fake tensor", "FakeTensorMode"
    if not isinstance(tensor, FakeTensor):
        name, cause = "tensor on the meta device", "that device"
    return (
        f"a {name}, which has a shape and no values; allowed: a tensor with values. Next: make the model and "
        f"its inputs outside of {cause}"
    )


def dense(tensor: Tensor, name: str) -> Tensor:
    """The values as a dense tensor of a dtype with arithmetic: dequantised where they are quantised.

    Args:
        tensor: A tensor of any format but a nested one.
        name: What the tensor is, for error texts.

    Returns:
        The tensor itself where it is that already. Gradients flow through, but not through a quantisation.

    Raises:
        InputError: When the tensor is nested, has no values, or is sparse and too large to be made dense.
    """
    if tensor.is_nested:
        raise InputError(
            f"{name} is a tensor of shape {shape_text(tensor)}; allowed: a dense tensor. "
            "Next: take one of the parts in tensor.unbind(), or torch.nested.to_padded_tensor(tensor, 0.0)"
        )
    if problem := why_without_values(tensor):
        raise InputError(f"{name} is {problem}")
    if tensor.dtype in _FLOAT4:
        raise InputError(
            f"{name} is of {tensor.dtype}, two numbers in each byte, with which torch does not compute; allowed: "
            "float8 and wider. Next: unpack it by a function of your own, where a function is taken"
        )
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout is not torch.strided:
        needed = tensor.numel() * tensor.element_size()
        if needed > _MOST_DENSE_BYTES:
            raise InputError(
                f"{name} is a {tensor.layout} tensor of shape {tuple(tensor.shape)}, which takes {needed:,} bytes as a "
                f"dense one; allowed: {_MOST_DENSE_BYTES:,}. Next: take its stored values, tensor.values()"
            )
        tensor = tensor.to_dense()
    return computable(tensor)


def computable(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that has arithmetic: float32 for float8, complex64 for complex32, and so on."""
    if tensor.dtype in _COMPUTABLE:
        return tensor.to(_COMPUTABLE[tensor.dtype])
    return tensor.float() if tensor.dtype in _FLOAT8 else tensor


def with_values(tensor: Tensor, change: Callable[..., Tensor], *others: Tensor | None) -> Tensor:
    """What `change` makes of the values of a tensor, in the format of the tensor.

    A nested tensor is changed part by part. A quantised one is dequantised, changed, and quantised again with the same
    scales. A sparse one is made dense in between.

    Args:
        tensor: A tensor of any format.
        change: Called as `change(values, *others)` with dense tensors; returns one of the shape of the first. The
            values of a part of a nested tensor are (1, *shape of the part).
        others: Further tensors that broadcast to the first, or None, which is handed on. One that is nested has a part
            for each part of the first.

    Raises:
        InputError: When a nested tensor has other parts than the first.
    """
    if is_ordinary(tensor) and (not others or all(each is None or is_ordinary(each) for each in others)):
        return change(tensor, *others)
    if not has_values(tensor):
        return change(tensor, *others)
    if tensor.is_nested:
        parts = tensor.unbind()
        by_part = [_parts_of(other, parts, tensor) for other in others]
        changed = [with_values(part[None], change, *(each[i] for each in by_part))[0] for i, part in enumerate(parts)]
        return _nested_as(changed, tensor)
    readable = [None if other is None else _with_arithmetic(other, "the tensor that goes into it") for other in others]
    return in_format_of(tensor, change(_with_arithmetic(tensor, "the tensor to change"), *readable))


def _with_arithmetic(tensor: Tensor, name: str) -> Tensor:
    """The values as a dense tensor. Of plain tensors only float8 has no arithmetic at all."""
    if is_plain(tensor):
        return tensor.float() if tensor.dtype in _FLOAT8 else tensor
    return dense(tensor, name)


def in_format_of(tensor: Tensor, values: Tensor) -> Tensor:
    """Dense values in the layout and the quantisation of a tensor that is not nested, and in float8 if it is."""
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return torch.quantize_per_tensor(values.float(), tensor.q_scale(), tensor.q_zero_point(), tensor.dtype)
        scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        axis = tensor.q_per_channel_axis()
        return torch.quantize_per_channel(values.float(), scales, zeros, axis, tensor.dtype)
    values = values.to(tensor.dtype) if tensor.dtype in _FLOAT8 else values
    if tensor.layout is torch.sparse_coo:
        return values.to_sparse(tensor.sparse_dim())
    if tensor.layout in _COMPRESSED:
        block = _block_size(tensor)
        return values.to_sparse(layout=tensor.layout, blocksize=block, dense_dim=tensor.dense_dim() or None)
    return values.to_mkldnn() if tensor.is_mkldnn else values


def _block_size(tensor: Tensor) -> tuple[int, int] | None:
    if tensor.layout not in _BLOCKS:
        return None
    first = tensor.values().ndim - 2 - tensor.dense_dim()
    rows, columns = tensor.values().shape[first : first + 2]
    return int(rows), int(columns)


def _parts_of(other: Tensor | None, parts: tuple[Tensor, ...], tensor: Tensor) -> list[Tensor | None]:
    """What of another tensor belongs to each part of a nested tensor."""
    if other is None:
        return [None] * len(parts)
    if not other.is_nested:
        values = dense(other, "the other tensor")
        one_each = values.ndim == tensor.dim() and len(values) == len(parts)
        return [values[i : i + 1] if one_each else values for i in range(len(parts))]
    others = other.unbind()
    if [each.shape for each in others] != [part.shape for part in parts]:
        ours, theirs = ([tuple(part.shape) for part in each] for each in (parts, others))
        raise InputError(
            f"a nested tensor has parts of shapes {theirs}; allowed: {ours}, those of the tensor to change"
        )
    return [each[None] for each in others]


def _nested_as(parts: list[Tensor], tensor: Tensor) -> Tensor:
    """A nested tensor of these parts, with the layout and, where it is jagged, the very offsets of `tensor`."""
    if not is_jagged(tensor):
        return torch.nested.as_nested_tensor(parts, layout=torch.strided)
    axis = tensor._ragged_idx  # type: ignore[attr-defined]  # of torch's own subclass
    if tensor.lengths() is not None:  # type: ignore[attr-defined]  # with gaps between the parts
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    # Tensors with the same offsets have the same symbolic length, and can be added.
    joined = torch.cat(parts, axis - 1)
    offsets = tensor.offsets()  # type: ignore[attr-defined]  # of torch's own subclass
    return torch.nested.nested_tensor_from_jagged(joined, offsets, jagged_dim=axis)


def storages(tensor: Tensor) -> dict[int, int]:
    """The memory of the tensor: the address of each storage that it keeps alive -> its size in bytes."""
    if not has_values(tensor):
        return {}
    try:
        parts = (tensor,) if is_plain(tensor) else components(tensor)[1]
        return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    except (RuntimeError, NotImplementedError):  # a layout of its own, such as that of oneDNN, or a wrapper of tensors
        return {id(tensor): element_count(tensor) * tensor.element_size()}


def components(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The plain tensors of which a tensor is made, and the function that makes it of such tensors.

    The function can be pickled, and the tensors can be copied, pickled and put into files, also where torch cannot do
    so with the tensor. A fake tensor becomes a meta tensor.

    Args:
        tensor: A detached tensor of any format.

    Returns:
        The function, and the tensors in its order. A tensor that this does not know is its only component.
    """
    if isinstance(tensor, FakeTensor):
        return partial(_meta_tensor, tuple(tensor.shape), tensor.dtype), ()
    if is_jagged(tensor):
        lengths = tensor.lengths()  # type: ignore[attr-defined]  # of torch's own subclass
        axis = tensor._ragged_idx  # type: ignore[attr-defined]  # of torch's own subclass
        offsets = tensor.offsets()  # type: ignore[attr-defined]  # of torch's own subclass
        parts = (tensor._values, offsets, *([] if lengths is None else [lengths]))
        return partial(_jagged_tensor, axis), parts
    if is_traceable_wrapper_subclass(tensor):
        return _same, (tensor,)
    if type(tensor) not in (Tensor, nn.Parameter):
        with torch._C.DisableTorchFunctionSubclass():
            attributes = {name: value for name, value in vars(tensor).items() if not name.startswith("_torchpeek")}
            return partial(_subclass_tensor, type(tensor), attributes), (tensor.as_subclass(Tensor),)
    if tensor.is_nested:
        whole = tensor.contiguous()
        return _nested_tensor, (
            whole.values(),
            whole._nested_tensor_size(),
            whole._nested_tensor_strides(),
            whole._nested_tensor_storage_offsets(),
        )
    if tensor.layout is torch.sparse_coo:
        make = partial(_coo_tensor, tuple(tensor.shape), tensor.is_coalesced())
        return make, (tensor._indices(), tensor._values())
    if tensor.layout in _COMPRESSED:
        by_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
        indices = (
            (tensor.crow_indices(), tensor.col_indices()) if by_rows else (tensor.ccol_indices(), tensor.row_indices())
        )
        return partial(_compressed_tensor, tuple(tensor.shape), tensor.layout), (*indices, tensor.values())
    if tensor.is_mkldnn:
        return Tensor.to_mkldnn, (tensor.to_dense(),)
    if (tensor.dtype in _COMPUTABLE or tensor.dtype in _WITHOUT_ARITHMETIC) and not tensor.is_meta:
        resolved = tensor.resolve_conj().resolve_neg()
        return partial(_with_dtype, tensor.dtype), (resolved.view(_BITS[tensor.element_size()]),)
    return _same, (tensor,)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _meta_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _jagged_tensor(axis: int, values: Tensor, offsets: Tensor, lengths: Tensor | None = None) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, offsets, lengths, axis)


def _subclass_tensor(cls: type[Tensor], attributes: dict[str, Any], tensor: Tensor) -> Tensor:
    made = tensor.as_subclass(cls)
    vars(made).update(attributes)
    return made


def _nested_tensor(*parts: Tensor) -> Tensor:
    made: Tensor = torch._nested_view_from_buffer(*parts)
    return made


def _coo_tensor(shape: tuple[int, ...], is_coalesced: bool, indices: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=is_coalesced, check_invariants=False)


def _compressed_tensor(
    shape: tuple[int, ...], layout: torch.layout, compressed: Tensor, plain: Tensor, values: Tensor
) -> Tensor:
    return torch.sparse_compressed_tensor(compressed, plain, values, shape, layout=layout, check_invariants=False)


def _with_dtype(dtype: torch.dtype, bits: Tensor) -> Tensor:
    return bits.view(dtype)


def nested_by_channel(tensor: Tensor, axis: int | None) -> Tensor:
    """The values of a nested tensor by channel: (C, values), without padding.

    Args:
        tensor: A nested tensor.
        axis: The axis of the channels. Where its length varies, or it is None or that of the parts, C is 1.
    """
    parts = tensor.unbind()
    lengths = shape_sizes(tensor)
    place = None if axis is None or not -len(lengths) <= axis < len(lengths) else axis % len(lengths)
    if not place or lengths[place] == RAGGED:
        return torch.cat([part.reshape(1, -1) for part in parts], 1)
    rows = [part.movedim(place - 1, 0) for part in parts]  # (C, ...)
    return torch.cat([row.reshape(len(row), math.prod(row.shape[1:])) for row in rows], 1)


def write_count(tensor: Tensor) -> int:
    """How often an operation has written into the memory of the tensor; -1 for an inference tensor: it has no count."""
    return -1 if tensor.is_inference() else tensor._version
