"""Record or replace the gradients of plain tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torchpeek.argument_types import Allowed
from torchpeek.errors import GradUnavailable, InputError, type_shown
from torchpeek.hooks.backward_pass import current_backward_pass, unshared, with_earlier_parts
from torchpeek.hooks.editing.changed_value import changed_gradient
from torchpeek.hooks.gradient_tap import GradientHook, TensorHooks
from torchpeek.hooks.recording.storage import GradientSlot, StoredTensor, whole_gradient_hook
from torchpeek.hooks.recording.summary import shapes
from torchpeek.hooks.with_block import opened_by_with
from torchpeek.html import html_table, notebook_html
from torchpeek.keywords import checked_keywords
from torchpeek.text_table import text_table
from torchpeek.undo import Block, Undo, undone


@checked_keywords
@opened_by_with("with tp.record_gradients(...) as gradients:")
def record_gradients(**tensors: Tensor) -> Iterator[Mapping[str, Tensor | None]]:
    """Record the gradients that flow back to these tensors inside the block.

    `.grad` is not touched, and no tensor retains its gradient. A second backward pass replaces the gradients of the
    first. Within one pass the parts of a gradient are added up, also those from checkpoints with `use_reentrant=True`.

    Args:
        **tensors: Tensors that require gradients, leaf or not, each under a name of your choice.

    Yields:
        A mapping from each name to the gradient, of the shape of the tensor; None where no gradient has arrived.

    Raises:
        InputError: When an argument is not a tensor.
        GradUnavailable: When a tensor does not require gradients.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with tp.record_gradients(x=x) as gradients:
        ...     (3 * x).sum().backward()
        >>> gradients["x"]
        tensor([3., 3.])
    """
    for name, tensor in tensors.items():
        _check_differentiable(tensor, name)
    # Of a leaf a copy, because torch may make the gradient that arrives `.grad`, to which later gradients are added.
    slots = {name: GradientSlot(partial(StoredTensor, copy=tensor.is_leaf)) for name, tensor in tensors.items()}
    with _hooked(tensors, slots):
        yield _GradientMapping(slots)


@undone
def _hooked(undo: Undo, tensors: Mapping[str, Tensor], slots: Mapping[str, GradientSlot]) -> None:
    """Inside the block, the gradients of the tensors arrive in the slots."""
    hooks = TensorHooks()
    undo.push(hooks.remove)
    for name, tensor in tensors.items():
        hooks.add(tensor, whole_gradient_hook(slots[name]))


@checked_keywords
def edit_gradient(
    tensor: Annotated[Tensor, Allowed("a tensor, because only tensors have gradients")],
    function: Annotated[Callable[[Tensor], Tensor], Allowed("a function from a gradient to a gradient")],
) -> RemovableHandle:
    """Replace the gradient of a tensor from now on, or inside a `with` block.

    A gradient arrives in parts if the tensor is used in a checkpoint with `use_reentrant=True` and elsewhere. Then the
    function is called for each part, with the sum of the parts so far. What flows on is in sum what the function
    returned for the whole gradient.

    Args:
        tensor: A tensor that requires gradients, leaf or not.
        function: Called with a copy of the gradient, into which it may write. What it returns, of the same shape, dtype
            and device, flows on instead of the gradient.

    Returns:
        A handle, as `Tensor.register_hook` returns. `handle.remove()` ends the edit, and so does the end of a `with`
        block of the handle.

    Raises:
        InputError: When `tensor` is not a tensor, or `function` cannot be called. Also when the function returns
            something else than such a tensor; the backward pass raises this.
        GradUnavailable: When the tensor does not require gradients.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with tp.edit_gradient(x, lambda gradient: 10 * gradient):
        ...     (3 * x).sum().backward()
        >>> x.grad
        tensor([30., 30.])
    """
    _check_differentiable(tensor, "tensor")
    # The keys under which the backward pass stores the sum of the parts, and what has flowed on in its place.
    parts, flowed = object(), object()

    def hook(gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # from an operation without a derivative, such as a quantised one
            return None
        changed = changed_gradient("the tensor", function, with_earlier_parts(parts, gradient))
        stored = current_backward_pass().stored
        flowed_before = stored.get(flowed)
        stored[flowed] = unshared(changed)
        return changed if flowed_before is None else changed - flowed_before

    # The hook stays if this function returns, and is taken off if an exception strikes, also at its last instruction.
    # Then the variables of this frame end, `handle` first. Otherwise `returning` ends before the handle does.
    hooks = TensorHooks()
    handle = GradientEdit(hooks)
    returning = _Returning()
    undo_if_lost = weakref.ref(handle, partial(_take_off, hooks))
    _lost_handles[undo_if_lost] = weakref.ref(returning, partial(_lost_handles.pop, undo_if_lost))
    del undo_if_lost
    with _added(hooks, tensor, hook):
        return handle


class GradientEdit(Block["GradientEdit"], RemovableHandle):  # type: ignore[misc]  # torch's `__exit__` returns None
    """The handle of an edited gradient: `remove()` ends the edit, and so does the end of a `with` block.

    Args:
        hooks: The hook that edits the gradient.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with tp.edit_gradient(x, lambda gradient: 10 * gradient) as edited:
        ...     x.sum().backward()
        >>> x.grad
        tensor([10., 10.])
    """

    def __init__(self, hooks: TensorHooks) -> None:
        Block.__init__(self)
        self._hooks = hooks

    def _open(self, undo: Undo) -> GradientEdit:
        undo.push(self._hooks.remove)
        return self

    def remove(self) -> None:
        """End the edit. A second call does nothing.

        Example:
            >>> x = torch.ones(2, requires_grad=True)
            >>> edited = tp.edit_gradient(x, lambda gradient: 10 * gradient)
            >>> edited.remove()
            >>> x.sum().backward()
            >>> x.grad
            tensor([1., 1.])
        """
        with self:
            pass


class _Returning:
    """Lives as long as a call that returns a handle."""


_lost_handles: dict[weakref.ref[GradientEdit], weakref.ref[_Returning]] = {}


def _take_off(hooks: TensorHooks, handle: weakref.ref[GradientEdit]) -> None:
    _lost_handles.pop(handle, None)
    hooks.remove()


@undone
def _added(undo: Undo, hooks: TensorHooks, tensor: Tensor, hook: GradientHook) -> None:
    """Inside the block the hook is added; it is taken off where the block raises."""
    raised = [True]
    undo.push(_remove_if, raised, hooks)
    undo.ending = partial(_note_end, raised)
    hooks.add(tensor, hook)


def _note_end(raised: list[bool], kind: type[BaseException] | None, *others: object) -> None:
    if kind is None:
        raised.clear()


def _remove_if(raised: list[bool], hooks: TensorHooks) -> None:
    if raised:
        hooks.remove()


class _GradientMapping(Mapping[str, "Tensor | None"]):
    def __init__(self, slots: Mapping[str, GradientSlot]) -> None:
        self._slots = MappingProxyType(dict(slots))

    def __getitem__(self, name: str) -> Tensor | None:
        gradient: Tensor | None = self._slots[name].read()
        return gradient

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return text_table(*self._table())

    @notebook_html
    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def _table(self) -> tuple[tuple[str, str], list[tuple[str, str]]]:
        return ("tensor", "gradient"), [(name, shapes(gradient)) for name, gradient in self.items()]


def _check_differentiable(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is {type_shown(tensor)}; allowed: a tensor, because only tensors have gradients")
    if not tensor.requires_grad:
        raise GradUnavailable(
            f"{name} needs no gradient, so none will arrive: it was computed under torch.no_grad(), or from tensors "
            "that need none. Call requires_grad_() on it, or on what it was computed from"
        )
