"""edit(): replace the inputs or outputs of layers, or the gradients that flow back through them, inside a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.argument_types import Allowed
from torchpeek.errors import GradUnavailable, InputError, notify
from torchpeek.hooks import containers
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.editing.changed_value import Inputs, changed_gradient, changed_value, inputs_changer
from torchpeek.hooks.editing.pass_calls import CallCounts, PassCalls
from torchpeek.hooks.editing.recomputation import EditHook, Surroundings, in_reentrant_checkpoint, surroundings
from torchpeek.hooks.gradient_tap import GradientTap, tap_gradient
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import current_thread, eagerly
from torchpeek.hooks.select import Selection, select, why_not_fired
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.hooks.with_block import opened_by_with
from torchpeek.keywords import checked_keywords
from torchpeek.undo import Block, Undo, undone

Edits: TypeAlias = Annotated[Mapping[Any, Callable[..., Any]], Allowed("a dict from a layer selection to a function")]
"""Layer selection -> a function of the current value that returns the value to use instead."""


@checked_keywords
@opened_by_with("with tp.edit(model, ...):")
def edit(
    model: nn.Module, *, outputs: Edits | None = None, inputs: Edits | None = None, gradients: Edits | None = None
) -> Iterator[None]:
    """Run `model` with changed activations or gradients inside the block; afterwards it is as before.

    Each argument is a dict from layer selections to functions. What a function returns is used instead of its argument,
    and must be in the same type of container. `tp.edits` has ready-made functions: zero, scale, patch, at.

    Nested blocks change inputs and outputs in the order in which they were opened, so a recording that is opened inside
    an edit sees the changed values. Gradients flow the other way, and must flow back inside the block.

    If another model has some of the layers, too, its calls are not edited, unless it runs inside a pass of `model`.

    A selection that ends with a number in brackets edits that call of each pass of `model` alone: "act[0]" is the
    first. A Notice says so if the model ran but an edited layer, or call, did not.

    A checkpointed part of the model runs again in the backward pass. It is edited again there as it was in the forward
    pass, also after the block, and by no block that was opened in between. So the functions run once more.

    Args:
        model: The model.
        outputs: The functions get what the layer returned.
        inputs: The functions get the positional input of the layer, a tuple if there are several, or a dict if all
            inputs are given by keyword. A function that needs two arguments, `f(args, kwargs)`, gets the positional
            input and the dict of the keyword inputs, and returns both, `(args, kwargs)`. It may add or leave out
            keywords.
        gradients: The functions get a copy of the gradient with respect to the output, for each tensor of the output.

    Yields:
        None.

    Raises:
        LayerNotFound: When a selection matches no layer.
        InputError: When an argument is not such a dict, a call is counted from the end, or a function returns None,
            something else than a tensor for a tensor, another type of container, or a gradient of another shape, dtype
            or device. Also when a function calls the layer that it edits.
        GradUnavailable: When gradients are edited, but no gradient can flow back through the layer. Also when the
            backward pass comes after the block, and the layer ran inside an autograd function, other than a
            checkpoint, that is likely to run it again.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> with tp.edit(model, outputs={"0": lambda output: -output}):
        ...     model(torch.tensor([-1.0, 2.0]))
        tensor([1., 0.])
    """
    checked_model(model)
    of_outputs, of_inputs, of_gradients = (_by_layer(model, edits) for edits in (outputs, inputs, gradients))
    edited = _Edit(model, of_outputs, of_inputs, of_gradients)
    with _edited(edited):
        yield
    edited.notify_of_no_effect()


_Hook: TypeAlias = tuple[nn.Module, EditHook]
_EditsByLayer: TypeAlias = list[tuple[SelectedLayer, Callable[..., Any]]]

_numbers = count()


class _Edit:
    """The hooks of one edit. A second run of a checkpoint registers them again.

    The hooks refer to it weakly, so that no reference cycle keeps the model alive.
    """

    def __init__(
        self, model: nn.Module, of_outputs: _EditsByLayer, of_inputs: _EditsByLayer, of_gradients: _EditsByLayer
    ) -> None:
        self.number = next(_numbers)
        self.is_open = False
        self.opened_in: Surroundings | None = None
        self.model_calls = ModelCalls(model)
        self._model = model
        self._layers = [layer for layer, _ in (*of_outputs, *of_inputs, *of_gradients)]
        self._gradient_layers = [layer.name for layer, _ in of_gradients]
        self._calls = PassCalls(self.model_calls)
        self._changes = _Changes()
        self._threads: set[int] = set()  # the threads in which a second run has registered the hooks again
        changers = [(layer, inputs_changer(layer.name, change)) for layer, change in of_inputs]
        self.called = self._hooks(changers, self._changes.change_inputs)
        self.returned = self._hooks(of_outputs, self._changes.change_output)
        self.returned.append((model, EditHook(self, self.model_calls, "", self._calls.complete_pass)))
        self.gradient_hooks = self._hooks(of_gradients, self._changes.change_gradient)
        self.ended: list[_Hook] = []
        if any(layer.call is not None for layer in self._layers):  # only then are the calls of a pass counted
            self.called.insert(0, (model, EditHook(self, self.model_calls, "", self._calls.begin_pass)))
            self.ended.append((model, EditHook(self, self.model_calls, "", self._calls.end_pass)))

    def _hooks(self, edits: _EditsByLayer, hook: Callable[..., Any]) -> list[_Hook]:
        return [
            (
                layer.module,
                EditHook(self, self.model_calls, layer.name, self._calls.at(layer, partial(hook, layer.name, change))),
            )
            for layer, change in edits
        ]

    def call_counts(self) -> CallCounts:
        """The calls that this thread has counted so far."""
        return self._calls.counts()

    def again(self, call_counts: CallCounts) -> Block[None]:
        """Edit inputs and outputs in this thread, in a second run whose first run began with these calls counted."""
        return _edited_again(self, call_counts)

    def open(self, undo: Undo) -> None:
        """Begin the edit."""
        undo.push(self.close)
        undo.enter(eagerly(self._model.modules(), "edited"))
        returned = self.returned + self.gradient_hooks
        undo.enter(attached(returned, called=self.called, ended=self.ended, calls=self.model_calls))
        self.is_open, self.opened_in = True, surroundings()

    def open_again(self, undo: Undo, call_counts: CallCounts) -> None:
        """Begin the edit in a second run."""
        thread = current_thread()
        undo.enter(self._calls.counted_from(call_counts))
        if self.is_open or thread in self._threads:
            return
        # A bound method, because `attached` restricts a plain function to this thread.
        called, returned, ended = (
            [(module, hook.__call__) for module, hook in hooks] for hooks in (self.called, self.returned, self.ended)
        )
        undo.push(self._threads.discard, thread)
        self._threads.add(thread)
        undo.enter(eagerly(self._model.modules()))
        undo.enter(attached(returned, called=called, ended=ended))

    def close(self) -> None:
        """End the edit, and take its hooks off the tensors of the graph."""
        self.is_open, self.opened_in = False, None
        self._changes.remove_gradient_taps()

    def notify_of_no_effect(self) -> None:
        """Give a Notice for each layer that did not run though the model did, or of which no gradient was edited."""
        for layer in self._layers:
            if layer.name in self._changes.fired:
                continue
            if excluded := self.model_calls.why_excluded(layer):
                notify(f"an edit did nothing: {excluded}")
            elif self._calls.completed:
                reason = why_not_fired(self._model, layer, self._calls.most(layer))
                notify(f"an edit did nothing: {reason}")
        for name in self._gradient_layers:
            if name in self._changes.fired and name not in self._changes.gradients_arrived:
                notify(
                    f"an edit did nothing: no gradient flowed back through layer {name!r} inside the block. Next: run "
                    "the backward pass inside the block"
                )


@undone
def _edited(undo: Undo, edit: _Edit) -> None:
    edit.open(undo)


@undone
def _edited_again(undo: Undo, edit: _Edit, call_counts: CallCounts) -> None:
    edit.open_again(undo, call_counts)


class _Changes:
    """What the hooks of one edit do, and what they have done."""

    def __init__(self) -> None:
        self.fired: set[str] = set()  # the layers and calls that ran
        self.gradients_arrived: set[str] = set()  # the layers and calls of which a gradient was edited
        self._gradient_taps: list[GradientTap] = []

    def remove_gradient_taps(self) -> None:
        """Take the hooks off the tensors of the graph."""
        for tap in self._gradient_taps:
            tap.remove()
        self._gradient_taps.clear()

    def change_inputs(
        self,
        name: str,
        changed: Callable[[tuple[Any, ...], dict[str, Any]], Inputs],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
    ) -> Inputs:
        """The pre-hook for inputs."""
        self.fired.add(name)
        return changed(args, kwargs or {})

    def change_output(self, name: str, change: Callable[[Any], Any], module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook for outputs."""
        self.fired.add(name)
        return changed_value(name, change, output)

    def change_gradient(
        self, name: str, change: Callable[[Any], Any], module: nn.Module, args: Any, output: Any
    ) -> Any:
        """The forward hook for gradients: it registers the hooks on the tensors of the output."""
        self.fired.add(name)
        if not torch.is_grad_enabled():
            if in_reentrant_checkpoint():
                return output  # the second run makes the graph through which the gradient flows
            raise GradUnavailable(
                f"layer {name!r} ran under torch.no_grad() or inference_mode(), so no gradient can flow back through "
                "it; run the model with gradients enabled"
            )
        tap_count, arrived = 0, self.gradients_arrived

        def tapped(path: str, tensor: Tensor) -> Tensor:
            nonlocal tap_count
            if not tensor.requires_grad:
                return tensor
            tap_count += 1

            def hook(gradient: Tensor | None) -> Tensor | None:
                if gradient is None:  # from an operation without a derivative, such as a quantised one
                    return None
                arrived.add(name)
                return changed_gradient(f"layer {name!r}", change, gradient)

            tap, view = tap_gradient(tensor, hook, hook_base=True)
            self._gradient_taps.append(tap)
            return view

        tapped_output = containers.mapped(output, tapped, once_each=True)
        if not tap_count:
            raise GradUnavailable(
                f"no output of layer {name!r} needs a gradient, because the model is frozen up to this layer; call "
                "requires_grad_() on its input"
            )
        return tapped_output


def _by_layer(model: nn.Module, edits: Edits | None) -> _EditsByLayer:
    rows = [
        (layer, change)
        for selection, change in (edits or {}).items()
        for layer in select(model, _as_selection(selection)).values()
    ]
    for layer, _ in rows:
        if layer.counts_from_end:
            raise InputError(
                f"{layer.name!r} is counted from the end, and while a pass runs nobody knows which call is the last. "
                f"Count from the start: {layer.path + '[0]'!r} is the first; torchpeek layers shows how many there are"
            )
    return rows


def _as_selection(key: Any) -> Selection:
    return list(key) if isinstance(key, tuple) else key  # a list cannot be the key of a dict
