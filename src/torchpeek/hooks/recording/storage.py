"""Store a recorded tensor: a leaf that takes its place in the container, and the bound on memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import GradUnavailable, StaleCapture, notify
from torchpeek.hooks.backward_pass import with_earlier_parts
from torchpeek.tensor_formats import components, has_values, is_plain, storages, type_text


class Leaf:
    """Stands in a container in the place of a tensor."""

    __slots__ = ()

    accumulates = False  # True for a leaf that every call adds to, and that is therefore never cleared

    def read(self) -> Any:
        """The value that the user gets."""
        return None


def _is_batched(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


class StoredTensor(Leaf):
    """A tensor as it was when it was recorded: a copy, or a reference that detects later writes."""

    __slots__ = ("__weakref__", "_version", "original_device", "tensor")

    def __init__(self, tensor: Tensor, copy: bool) -> None:
        if tensor.requires_grad:
            tensor = tensor.detach()
        if copy:
            tensor = _copy(tensor)
        version: int | None
        try:
            version = tensor._version
        except RuntimeError:  # inference tensors do not count the writes into them
            if not copy:
                tensor = _copy(tensor)
            version = None if tensor.is_inference() else tensor._version
        self.tensor = tensor
        self._version = version
        self.original_device: torch.device | None = None  # set when the tensor is moved to a file

    def read(self) -> Tensor:
        """The tensor, detached.

        Raises StaleCapture if a later operation has written into it, GradUnavailable if it is invalid by now.
        """
        if self._version is not None and self.tensor._version != self._version:
            raise StaleCapture(
                f"a later operation wrote into the recorded tensor (version {self._version} -> "
                f"{self.tensor._version}); record(..., snapshot='clone') stores a copy"
            )
        tensor = self.tensor if self.original_device is None else self.tensor.to(self.original_device)
        if _is_batched(tensor):
            raise GradUnavailable(
                "the gradient arrived in a batched backward pass (is_grads_batched=True, vmap, or jacrev), whose "
                "tensors are invalid outside it. Next: run autograd.grad once for each gradient of the batch"
            )
        return tensor.detach()  # a new alias each time, so that changing its attributes leaves the recording as it is

    def __reduce__(self) -> tuple[Callable[..., Leaf], tuple[Any, ...]]:
        # A copy or a pickle has its own memory, and no more of it than the tensor.
        try:
            tensor = self.read()
        except (StaleCapture, GradUnavailable) as error:
            return UnreadableTensor, (error,)
        make, parts = components(tensor)
        return _stored_again, (make, *map(_with_own_memory, parts))

    def storages(self) -> dict[int, int]:
        """The address of each storage that it keeps alive -> its size in bytes. A view keeps all of it alive."""
        return storages(self.tensor)

    def to_file(self) -> bool:
        """Move the tensor to a temporary file, from which `read` loads it. Returns False where that is not possible."""
        make, parts = components(self.tensor)
        if not all(is_plain(part) or part.is_quantized for part in parts):
            return False
        if self.tensor.is_mkldnn:
            return False
        try:
            original_device, tensor = self.tensor.device, make(*map(_file_copy, parts))
        except NotImplementedError:  # some quantisations
            return False
        self.tensor = tensor
        self._version, self.original_device = self.tensor._version, original_device
        return True


def _copy(tensor: Tensor) -> Tensor:
    try:
        return tensor.clone()
    except RuntimeError:
        if not tensor.is_quantized:
            raise
        return tensor  # torch has no copy of this quantisation, and a reference detects writes


def _stored_again(make: Callable[..., Tensor], *parts: Tensor) -> StoredTensor:
    return StoredTensor(make(*parts), False)


def _with_own_memory(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is a view of more memory."""
    if not has_values(tensor) or not (is_plain(tensor) or tensor.is_quantized):
        return tensor
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class UnreadableTensor(Leaf):
    """In a copy of a recording: a tensor that could not be read any more when it was copied.

    Args:
        error: Why: it was written into, or is invalid.
    """

    __slots__ = ("error",)

    def __init__(self, error: StaleCapture | GradUnavailable) -> None:
        self.error = error

    def read(self) -> Any:
        """Raises the error that the original raises."""
        raise type(self.error)(*self.error.args)

    def __repr__(self) -> str:
        return "overwritten" if isinstance(self.error, StaleCapture) else "invalid"


class StoredValue(Leaf):
    """A value that a function of the user computed from a tensor."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def read(self) -> Any:
        """The value."""
        return self.value


class GradientSlot(Leaf):
    """Waits for a gradient and stores it.

    Hooks hold the slot by a weak reference. So neither does the graph keep the slot alive, nor the slot the graph.
    """

    __slots__ = ("__weakref__", "arrival_count", "leaf", "store")

    def __init__(self, store: Callable[[Tensor], Leaf]) -> None:
        self.store = store
        self.leaf: Leaf | None = None
        self.arrival_count = 0

    def __reduce__(self) -> tuple[Callable[..., GradientSlot], tuple[Any, ...]]:
        return _slot_with, (self.leaf,)  # what stores a gradient belongs to the recording, and may not be copied

    def arrive(self, gradient: Tensor) -> None:
        """Store this gradient in the place of the one of an earlier backward pass."""
        self.leaf = self.store(gradient)
        self.arrival_count += 1

    def clear(self) -> None:
        """Remove the gradient, unless the leaf accumulates."""
        if self.leaf is not None and not self.leaf.accumulates:
            self.leaf = None

    def read(self) -> Any:
        """The gradient, or None if none has arrived."""
        return None if self.leaf is None else self.leaf.read()


def _slot_with(leaf: Leaf | None) -> GradientSlot:
    slot = GradientSlot(partial(StoredTensor, copy=True))
    slot.leaf = leaf
    return slot


class SlotHook(weakref.ref[GradientSlot]):
    """A gradient hook that puts the gradient into a slot, as long as the slot is there."""

    __slots__ = ()

    def __call__(self, gradient: Tensor | None) -> None:  # type: ignore[override]  # references take no arguments
        """Store the gradient. An operation without a derivative, such as a quantised one, gives None."""
        slot = _referent(self)
        if slot is not None and gradient is not None:
            slot.leaf = slot.store(gradient)
            slot.arrival_count += 1


_referent = weakref.ref.__call__


def whole_gradient_hook(slot: GradientSlot) -> Callable[[Tensor], None]:
    """A gradient hook that puts the sum of the parts that arrive in one backward pass into `slot`."""
    reference = weakref.ref(slot)

    def hook(gradient: Tensor | None) -> None:
        target = reference()
        if target is not None and gradient is not None:
            target.arrive(with_earlier_parts(target, gradient))

    return hook


class MemoryBudget:
    """Bounds the memory of a recording: a tensor that exceeds the bound is moved to a temporary file."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._stored: list[weakref.ref[StoredTensor]] = []
        self._storage_sizes: dict[int, int] = {}  # address -> bytes
        self._total = 0

    def admit(self, leaf: Leaf) -> None:
        """Count the storages of a new leaf, each once; move the leaf to a file if it exceeds the bound."""
        if not isinstance(leaf, StoredTensor):
            return
        sizes = leaf.storages()
        if self._total + self._added_by(sizes) > self._max_bytes:
            self._recount()  # some storages may have been freed since, such as those of replaced gradients
            if (added := self._added_by(sizes)) and self._total + added > self._max_bytes:
                if leaf.to_file():
                    return
                notify(
                    f"a tensor of {type_text(leaf.tensor)} exceeds max_bytes and stays in memory, because tensors of "
                    "that layout cannot be in files. Next: keep=tp.keep.Stored(reduce=torch.Tensor.to_dense)"
                )
        self._stored.append(weakref.ref(leaf))
        self._total += self._added_by(sizes)
        self._storage_sizes |= sizes

    def _added_by(self, sizes: dict[int, int]) -> int:
        return sum(size for start, size in sizes.items() if start not in self._storage_sizes)

    def _recount(self) -> None:
        self._stored = [reference for reference in self._stored if reference() is not None]
        alive = [stored for reference in self._stored if (stored := reference()) is not None]
        self._storage_sizes = {start: size for stored in alive for start, size in stored.storages().items()}
        self._total = sum(self._storage_sizes.values())


def _file_copy(tensor: Tensor) -> Tensor:
    """A copy whose memory is an unnamed temporary file, which the system deletes with the tensor."""
    size = max(1, tensor.numel() * tensor.element_size())
    with tempfile.NamedTemporaryFile(prefix="torchpeek-") as file:
        file.truncate(size)
        storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=size)
    copy: Any = _empty_as(tensor)
    strides = torch.empty(tensor.shape, device="meta").stride()
    copied: Tensor = copy.set_(storage, 0, tensor.shape, strides).copy_(tensor)
    return copied


def _empty_as(tensor: Tensor) -> Tensor:
    """A tensor on the CPU with the dtype and the quantisation of `tensor`, whose memory is to be set."""
    if not tensor.is_quantized:
        return torch.empty(0, dtype=tensor.dtype)
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch._empty_affine_quantized(
            [0], scale=tensor.q_scale(), zero_point=tensor.q_zero_point(), dtype=tensor.dtype
        )
    return torch._empty_per_channel_affine_quantized(
        tensor.shape,
        scales=tensor.q_per_channel_scales(),
        zero_points=tensor.q_per_channel_zero_points(),
        axis=tensor.q_per_channel_axis(),
        dtype=tensor.dtype,
    )
