"""What is left in the place of each tensor that was recorded, and how it is read."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import StaleCapture
from torchpeek.hooks.gradient_tap import GradientHook


class Leaf:
    """Stands where a tensor was."""

    __slots__ = ()

    accumulates = False  # over all calls, so that it is never let go of

    def read(self) -> Any:
        """What the user sees."""
        return None


class StoredTensor(Leaf):
    """One tensor as it was: a copy, or a reference that knows when it has been written into."""

    __slots__ = ("__weakref__", "_version", "original_device", "tensor")

    def __init__(self, tensor: Tensor, copy: bool) -> None:
        if tensor.requires_grad:
            tensor = tensor.detach()
        has_version = not tensor.is_inference()  # what is written into it
        if copy or not has_version:
            tensor = tensor.clone()
            has_version = not tensor.is_inference()
        self.tensor = tensor
        self._version = tensor._version if has_version else None
        self.original_device: torch.device | None = None  # where it was, once it is in a file

    def read(self) -> Tensor:
        if self._version is not None and self.tensor._version != self._version:
            raise StaleCapture(
                f"a later operation wrote into what was recorded (version {self._version} -> {self.tensor._version}); "
                f"record(..., snapshot='clone') keeps a copy"
            )
        tensor = self.tensor if self.original_device is None else self.tensor.to(self.original_device)
        return tensor.detach()  # an alias each time: what is done to it leaves the recording as it is

    def storage(self) -> tuple[int, int]:
        """Where the memory that it keeps alive starts, and its bytes: the whole of it, however little is seen."""
        if self.tensor.layout != torch.strided:
            return id(self.tensor), self.tensor.nbytes
        storage = self.tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()

    def to_file(self) -> None:
        """Move it to a temporary file, from which it is read when it is asked for."""
        original_device = self.tensor.device
        self.tensor = _file_copy(self.tensor)
        self._version, self.original_device = self.tensor._version, original_device


class StoredValue(Leaf):
    """What a function made of a tensor, as it is."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def read(self) -> Any:
        return self.value


class GradientSlot(Leaf):
    """Where a gradient arrives. Hooks hold it weakly, so that no graph keeps it alive, nor it a graph."""

    __slots__ = ("__weakref__", "_store", "arrival_count", "leaf")

    def __init__(self, store: Callable[[Tensor], Leaf]) -> None:
        self._store = store
        self.leaf: Leaf | None = None
        self.arrival_count = 0

    def arrive(self, gradient: Tensor) -> None:
        """Keep this gradient; one of an earlier backward pass is replaced."""
        self.leaf = self._store(gradient)
        self.arrival_count += 1

    def clear(self) -> None:
        """No gradient has arrived."""
        if self.leaf is not None and not self.leaf.accumulates:
            self.leaf = None

    def read(self) -> Any:
        return None if self.leaf is None else self.leaf.read()


def slot_hook(slot: GradientSlot) -> GradientHook:
    """A hook that has the gradient arrive in `slot`."""
    reference = weakref.ref(slot)

    def hook(gradient: Tensor) -> None:
        target = reference()
        if target is not None:
            target.arrive(gradient)

    return hook


class MemoryBudget:
    """Sees to it that what is kept does not take more memory than allowed: the rest goes to temporary files."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._stored: list[weakref.ref[StoredTensor]] = []
        self._storage_sizes: dict[int, int] = {}
        self._total = 0

    def admit(self, leaf: Leaf) -> None:
        """Count the storage of what was just kept, once; move it to a file if it is one too many."""
        if not isinstance(leaf, StoredTensor) or leaf.tensor.layout != torch.strided or leaf.tensor.is_nested:
            return
        start, size = leaf.storage()
        if start not in self._storage_sizes and self._total + size > self._max_bytes:
            self._recount()  # what has been let go of meanwhile, such as gradients that were replaced
            if start not in self._storage_sizes and self._total + size > self._max_bytes:
                leaf.to_file()
                return
        self._stored.append(weakref.ref(leaf))
        if start not in self._storage_sizes:
            self._storage_sizes[start] = size
            self._total += size

    def _recount(self) -> None:
        self._stored = [reference for reference in self._stored if reference() is not None]
        self._storage_sizes = dict(
            stored.storage() for reference in self._stored if (stored := reference()) is not None
        )
        self._total = sum(self._storage_sizes.values())


def _file_copy(tensor: Tensor) -> Tensor:
    """A copy whose memory is a file that has no name any more: it goes when the tensor goes."""
    size = max(1, tensor.numel() * tensor.element_size())
    with tempfile.NamedTemporaryFile(prefix="torchpeek-") as file:
        file.truncate(size)
        storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=size)
    copy = torch.empty(0, dtype=tensor.dtype)
    copy.set_(storage, 0, tensor.shape)  # type: ignore[call-overload]  # torch has no types for it
    return copy.copy_(tensor)
