"""The values, versions and places in memory of tensors: saved before a forward pass, and restored after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from torchpeek.tensor_formats import is_plain


class SavedTensor:
    """A tensor, its value, its place in memory, and its version."""

    __slots__ = ("_alias", "_requires_grad", "_tensor", "_value", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version, self._requires_grad = tensor, _version(tensor), tensor.requires_grad
        self._alias = tensor.detach()  # of the same memory, also where forward gives the tensor other memory
        self._value = self._alias.clone()

    def restore(self) -> None:
        _restore(self._tensor, self._alias, self._value, self._version)
        _restore_requires_grad(self._tensor, self._requires_grad)


def _restore(tensor: Tensor, alias: Tensor, value: Tensor, version: int) -> None:
    """Give a tensor the memory that `alias` has, the saved value, and the saved version."""
    if not _has_same_memory(tensor, alias):
        with _inference_mode_for(tensor):
            tensor.data = alias
    if needs_restoring(tensor, value):
        restore_value(tensor, value)
    if _version(tensor) != version:
        _set_version(tensor, version)


def _restore_requires_grad(tensor: Tensor, requires_grad: bool) -> None:
    if tensor.requires_grad is not requires_grad and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)


def _inference_mode_for(tensor: Tensor) -> AbstractContextManager[Any]:
    """The mode in which a tensor can be written. Outside of it, where `preserved` has left it, there is no guard of
    torch: one that an exception from outside leaves in a reference cycle changes the mode when it is freed."""
    return torch.inference_mode() if tensor.is_inference() else nullcontext()


def _has_same_memory(tensor: Tensor, alias: Tensor) -> bool:
    """Whether two tensors are the same part of the same memory. Tensors that are not dense count as such."""
    try:
        return tensor.is_set_to(alias) or not is_plain(tensor)
    except (RuntimeError, NotImplementedError):  # such as a sparse tensor
        return True


class SavedSmallTensors:
    """Small tensors of one dtype on the CPU. Their values are in one tensor, and one comparison shows any change."""

    __slots__ = ("_addresses", "_aliases", "_flat", "_requires_grad", "_shapes", "_tensors", "_versions")

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._shapes = [each.shape for each in tensors]
        self._requires_grad = [each.requires_grad for each in tensors]
        self._versions = [each._version for each in tensors]
        self._aliases = [each.detach() for each in tensors]
        self._addresses = addresses(tensors)
        self._flat = _flattened(tensors)

    def restore(self) -> None:
        if [each.requires_grad for each in self._tensors] != self._requires_grad:
            for tensor, requires_grad in zip(self._tensors, self._requires_grad, strict=True):
                _restore_requires_grad(tensor, requires_grad)
        if self._is_unchanged():
            return
        values = torch.split_with_sizes(self._flat, [shape.numel() for shape in self._shapes])
        shaped = [value.view(shape) for value, shape in zip(values, self._shapes, strict=True)]
        for each in zip(self._tensors, self._aliases, shaped, self._versions, strict=True):
            _restore(*each)

    def _is_unchanged(self) -> bool:
        tensors = self._tensors
        if [each.shape for each in tensors] != self._shapes or {each.dtype for each in tensors} != {self._flat.dtype}:
            return False
        if versions(tensors) != self._versions or addresses(tensors) != self._addresses:
            return False
        try:
            return not needs_restoring(_flattened(tensors), self._flat)
        except RuntimeError:  # one of them is another kind of tensor now; each is looked at by itself
            return False


def _flattened(tensors: list[Tensor]) -> Tensor:
    """All elements of the tensors, one after the other, in memory of their own."""
    flatten: Any = torch._C._nn.flatten_dense_tensors
    with torch.no_grad():
        if len(tensors) == 1:  # that function would return a view
            return tensors[0].flatten().clone()
        return flatten(tensors)  # type: ignore[no-any-return]


_FEW = 4096  # elements: copying them takes less time than a call of torch
_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool})


def saved_tensors(tensors: Iterable[Tensor]) -> list[SavedTensor | SavedSmallTensors]:
    """Save tensors, the small ones together. Those of lazy modules without values are left out."""
    small: dict[torch.dtype, list[Tensor]] = {}
    saved: list[SavedTensor | SavedSmallTensors] = []
    for tensor in tensors:
        if (
            type(tensor) is Tensor
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and tensor.dtype in _DTYPES
            and tensor.numel() <= _FEW
            and not tensor.is_inference()
        ):
            small.setdefault(tensor.dtype, []).append(tensor)
        elif not is_lazy(tensor):
            saved.append(SavedTensor(tensor))
    return [*saved, *map(SavedSmallTensors, small.values())]


def _version(tensor: Tensor) -> int:
    """How often operations in place have written into the tensor; 0 for a tensor that does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """The version of each tensor; 0 for one that counts none."""
    try:
        return [each._version for each in tensors]
    except RuntimeError:  # one of them is an inference tensor
        return list(map(_version, tensors))


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the values of tensors are: another place after an assignment to `.data`, which is no new version."""
    try:
        return [each.data_ptr() for each in tensors]
    except (RuntimeError, ValueError):  # one of them is sparse, has no memory, or is not initialised
        return [0] * len(tensors)


def _version_setter() -> Callable[[Tensor, int], None]:
    setter: Any = torch._C._autograd._unsafe_set_version_counter
    probe = torch.zeros(1)
    try:
        setter((probe,), (0,))
    except TypeError:  # torch 2.6
        return setter  # type: ignore[no-any-return]
    return lambda tensor, version: setter((tensor,), (version,))


_set_version = _version_setter()


def needs_restoring(tensor: Tensor, value: Tensor) -> bool:
    """Whether the tensor may differ from the saved value. Except on the CPU, a copy is cheaper than a check."""
    if tensor.is_meta:
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return True
    if tensor.shape != value.shape or tensor.dtype != value.dtype:
        return True
    # Compared bit by bit, because NaN is not equal to itself.
    return not torch.equal(tensor, value) and not torch.equal(_bits(tensor), _bits(value))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def restore_value(tensor: Tensor, value: Tensor) -> None:
    """Write the saved value into the tensor."""
    with _inference_mode_for(tensor):
        if tensor.dtype != value.dtype:
            tensor.data = value
            return
        if tensor.layout == torch.sparse_coo:  # a copy into its `.data` would replace the elements of that alone
            _restore_sparse(tensor, value)
            return
        try:
            # Through .data, so that a graph of the user's that holds the buffer does not count this as a change.
            tensor.data.copy_(value)
        except (RuntimeError, NotImplementedError):  # resized, sparse, or with elements that overlap in memory
            if tensor.layout != torch.strided or tensor.is_nested or tensor.shape != value.shape:
                tensor.data = value
            else:
                _write_overlapping(tensor.data, value)


def _restore_sparse(tensor: Tensor, value: Tensor) -> None:
    """Write a value into a sparse COO tensor, in its memory where it has as many elements as before."""
    if tensor.shape != value.shape or tensor._nnz() != value._nnz():
        tensor.data = value
        return
    tensor._indices().copy_(value._indices())
    tensor._values().copy_(value._values())
    tensor._coalesced_(value.is_coalesced())


def _write_overlapping(tensor: Tensor, value: Tensor) -> None:
    """Write a value into a tensor of which several elements are at one place in memory, as `expand` makes it."""
    if not tensor.numel():
        return
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    places = torch.arange(extent, device=tensor.device).as_strided(tensor.shape, tensor.stride())
    tensor.as_strided((extent,), (1,))[places.flatten()] = value.flatten()
