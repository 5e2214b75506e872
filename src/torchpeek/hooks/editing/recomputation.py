"""Apply an edit again where a checkpointed part of the model runs once more in the backward pass.

A checkpoint stores no activations. Its part of the model runs once more in the backward pass, often after the block of
the edit. That second run must be edited exactly as the first one was:

1. In the first run, an edited layer is called by a checkpoint whose Python frame is on the stack, or whose hooks for
   saved tensors are in force. `takes_part` finds it there.
2. It puts a `SecondRun` in the place of the function that this checkpoint will run again. The SecondRun holds the edits
   of the first run, with the calls of the layers that were counted before it.
3. In the backward pass the SecondRun registers the hooks of those edits whose block is closed, runs the function, and
   removes them.
4. The frame of the SecondRun is on the stack then. So an edit sees whether a second run is one of its own. An edit that
   was opened between the two runs leaves it alone.
5. The function of a checkpoint may open an edit itself. It does so again in the second run, where the new edit applies.
   So an edit leaves those checkpoints alone that ran when it was opened.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
import torch.utils.checkpoint
from torch import nn
from torch.autograd.function import BackwardCFunction

from torchpeek.errors import GradUnavailable
from torchpeek.hooks.backward_pass import graph_task
from torchpeek.hooks.frames import first_argument, frames_from, variable
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import current_thread
from torchpeek.hooks.temporary_hooks import UncopiedHook

# The pair of hooks for saved tensors that is in force; None where there is none. Torch 2.6 cannot tell.
_saved_tensors_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: (None, None)
)
_forward_gradients_enabled: Callable[[], bool] = torch._C._is_fwd_grad_enabled  # not so in an autograd function
_inference_mode: Callable[[], bool] = torch.is_inference_mode_enabled


class RepeatableEdit(Protocol):
    """What a second run needs of an edit."""

    number: int
    """Edits have ascending numbers in the sequence in which they were opened."""

    is_open: bool

    opened_in: Surroundings | None
    """What ran around the `with` statement; None where it is closed."""

    def call_counts(self) -> Any:
        """The calls that this thread has counted so far."""

    def again(self, call_counts: Any) -> AbstractContextManager[None]:
        """Edit the layers in this thread inside the block, and count their calls from `call_counts`."""


class SecondRun:
    """What a checkpoint runs in the backward pass: its function, edited as in the first run.

    Args:
        function: The function of the checkpoint.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.edits: dict[RepeatableEdit, Any] = {}  # edit -> the calls that were counted before the first run

    def add(self, edit: RepeatableEdit) -> None:
        """Declare that the edit took part in the first run."""
        if edit not in self.edits:
            self.edits[edit] = edit.call_counts()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for edit in sorted(self.edits, key=lambda edit: edit.number):
                stack.enter_context(edit.again(self.edits[edit]))
            return self._function(*args, **kwargs)


class EditHook(UncopiedHook):
    """A hook of an edit. It leaves a call alone that is another model's, or the second run of an unedited one.

    Args:
        edit: The edit. The hook refers to it weakly: it is alive while its block is open, and in its second runs.
        calls: The calls of the edited model.
        layer: The name of the layer, for an error text.
        hook: What runs at the other calls.
    """

    __slots__ = ("_calls", "_edit", "_hook", "_layer")

    def __init__(self, edit: RepeatableEdit, calls: ModelCalls, layer: str, hook: Callable[..., Any]) -> None:
        self._edit = weakref.ref(edit)
        self._calls = calls
        self._layer = layer
        self._hook = hook

    def __call__(self, *args: Any) -> Any:
        # This runs at every call of the layer, so what excludes a checkpoint is tested first, and without a function.
        if (
            (_forward_gradients_enabled() or _inference_mode())  # else an autograd function calls the layer
            and _saved_tensors_hooks(False) is None
            and graph_task() == -1
        ):
            applies = self._is_of_model(args[0])
        else:
            edit = self._edit()
            applies = edit is not None and takes_part(edit, self._layer, partial(self._is_of_model, args[0]))
        return self._hook(*args) if applies else None

    def _is_of_model(self, module: nn.Module) -> bool:
        return bool(self._calls.depth.get(current_thread())) or self._calls.include(module)


def takes_part(edit: RepeatableEdit, layer: str, is_of_model: Callable[[], bool]) -> bool:
    """Whether the edit applies to the call that runs now: not in a second run of which the first was not edited.

    The checkpoints that run now will apply the edit in their second run.

    Args:
        edit: The edit. It does not matter whether its block is open.
        layer: The name of the layer that is called, for an error text.
        is_of_model: Says whether the edited model makes the call. A second run repeats what it said in the first.
    """
    around, opened_in = _around(sys._getframe(1)), edit.opened_in or _NOTHING
    in_second_run = around.second_run is not opened_in.second_run
    if edit not in around.second_run_edits if in_second_run else not is_of_model():
        return False
    outer = [owner for owner, _ in opened_in.checkpoints]
    for owner, attribute in around.checkpoints:
        if any(owner is each for each in outer):
            continue
        function = getattr(owner, attribute)
        if not isinstance(function, SecondRun):
            function = SecondRun(function)
            setattr(owner, attribute, function)
        function.add(edit)
    for node in around.other_functions:
        node.register_prehook(_refusal(edit, layer, node))
    return True


def in_reentrant_checkpoint() -> bool:
    """Whether a checkpoint with `use_reentrant=True` has called what runs now, and will run it again with gradients."""
    return any(attribute == _REENTRANT for _, attribute in _around(sys._getframe(1)).checkpoints)


def surroundings() -> Surroundings:
    """What runs around the caller."""
    return _around(sys._getframe(1))


class Surroundings(NamedTuple):
    """What runs around a call, as far as it matters to the second runs of checkpoints."""

    checkpoints: list[tuple[Any, str]]  # in their first run: what holds the function for the second run, and where
    other_functions: list[Any]  # nodes of other autograd functions that run in the forward pass
    second_run: FrameType | None = None  # the innermost frame of a checkpoint's second run
    second_run_edits: Collection[RepeatableEdit] = ()  # those of the first run


_NOTHING = Surroundings([], [])


_REENTRANT, _NOT_REENTRANT = "run_function", "recompute_fn"  # the attributes that hold the function


def _around(innermost: FrameType) -> Surroundings:
    checkpoints: list[tuple[Any, str]] = []
    other_functions: list[Any] = []
    for frame in frames_from(innermost):
        code = frame.f_code
        name = code.co_name
        if code is SecondRun.__call__.__code__:
            return Surroundings(checkpoints, other_functions, frame, variable(frame, "self").edits)
        if name in ("forward", "backward"):
            if code.co_argcount and code.co_varnames[0] != "self":
                node = first_argument(frame)
                if isinstance(node, BackwardCFunction):
                    is_checkpoint = callable(getattr(node, _REENTRANT, None))
                    if name == "backward":
                        return Surroundings(checkpoints, other_functions, frame if is_checkpoint else None)
                    if is_checkpoint:
                        checkpoints.append((node, _REENTRANT))
                    else:
                        other_functions.append(node)
        elif code.co_filename == _CHECKPOINT_FILE:
            if name.startswith("unpack_hook"):
                return Surroundings(checkpoints, other_functions, frame)
            if "gen" in code.co_varnames and (generator := variable(frame, "gen")) is not None:
                checkpoints += _checkpoint_of(generator)
    if (pair := _saved_tensors_hooks(False)) is not None:
        checkpoints += _checkpoint_of_hook(pair[0])
    return Surroundings(checkpoints, other_functions)


_CHECKPOINT_FILE = torch.utils.checkpoint.__file__


def _checkpoint_of(generator: Any) -> list[tuple[Any, str]]:
    """The checkpoint whose first run is between the two steps of this generator."""
    frame = None if generator.gi_frame is None else variable(generator.gi_frame, "new_frame")
    return [] if frame is None else [(frame, _NOT_REENTRANT)]


def _checkpoint_of_hook(hook: Any) -> list[tuple[Any, str]]:
    """The checkpoint of which this is the hook for saved tensors, also where hooks of a module began it."""
    code = getattr(hook, "__code__", None)
    if code is None or code.co_filename != _CHECKPOINT_FILE or "frame" not in code.co_freevars:
        return []
    return [(hook.__closure__[code.co_freevars.index("frame")].cell_contents, _NOT_REENTRANT)]


def _refusal(edit: RepeatableEdit, layer: str, node: Any) -> Callable[[Any], None]:
    """A hook of a node, for when its backward is likely to run the layer again: it stores a function or module."""
    reference = weakref.ref(node)  # the node holds the hook

    def before_backward(gradients: Any) -> None:
        if not edit.is_open and any(callable(value) for value in vars(reference()).values()):
            raise GradUnavailable(
                f"the edited layer {layer!r} ran inside {type(reference()).__name__.removesuffix('Backward')}. This "
                "autograd function stores what it called, so its backward is likely to run the layer again, and the "
                "block of the edit is closed. Next: run the backward pass inside the block"
            )

    return before_backward
