"""Copy a model so that the parameters of the copy may be changed, and check that the copy leaves the model alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from torchpeek.engine.fixed_batch import batches, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.numerics import close
from torchpeek.engine.preserve import preserved
from torchpeek.engine.saved_modules import SavedModules, all_modules
from torchpeek.errors import InputError, listed_names, notify, type_shown
from torchpeek.hooks import active_in_dispatch, containers
from torchpeek.signal_gate import is_of_handler


class NotIndependent(InputError):
    """A model cannot be copied, or its copy still computes with the model itself."""


def copied_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of the model that shares no parameter with it.

    Args:
        model: The model.

    Returns:
        The copy. Its forward may still refer to the model: `check_independent` finds that out.

    Raises:
        NotIndependent: When the model cannot be copied, or the copy has a parameter in the memory of the model's.
    """
    name = type(model).__name__
    try:
        with torch.inference_mode(False):
            copied = copy.deepcopy(model)
    except (MemoryError, RecursionError, TimeoutError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_of_handler(error):
            raise
        raise NotIndependent(f"{name} cannot be copied: {error}") from error
    if not isinstance(copied, nn.Module):
        raise NotIndependent(f"copy.deepcopy of {name} returns {type_shown(copied)}; allowed: an nn.Module")
    owned = _by_memory({**dict(model.named_parameters()), **dict(model.named_buffers())})
    shared = [each for each, parameter in copied.named_parameters() if _memory(parameter) & owned.keys()]
    if shared:
        raise NotIndependent(
            f"a copy of {name} has the very parameters of the model: {listed_names(shared)}. Next: let __deepcopy__ of "
            "the modules that own them copy their parameters"
        )
    return copied


def check_independent(copied: nn.Module, forward_pass: ForwardPass) -> None:
    """Check that a copy of the pass's model computes with its own parameters, and leaves the model as it is.

    `copy.deepcopy` copies bound methods, but no functions. A function that holds the model, or a part of it, still
    holds the original in the copy. The function may be a `forward` that was assigned to a module, or a hook.

    1. The copy runs once, on all samples, because a part of it may run for some of them only. No operation may read a
       parameter of the model, and none may write into a buffer of the model.
    2. If the model is in training mode, the copy runs once more. The model was in eval mode in the first run, and is in
       its own modes now. If the outputs differ, the copy runs a part of the model, such as a dropout.

    Args:
        copied: What `copied_model(forward_pass.model)` returned.
        forward_pass: The clean pass of the model.

    Raises:
        NotIndependent: When the copy uses the model.

    A Notice names parameters whose change in the copy has no effect. No backward pass runs, so what a backward hook of
    the copy does is not checked.
    """
    model = forward_pass.model
    watched = _ModelUse(model, copied)
    output = _output(copied, forward_pass, evaluating=True, watched=watched)
    if watched.originals:
        raise NotIndependent(_text(model, f"reads the model's own {listed_names(watched.originals)}"))
    if watched.written:
        raise NotIndependent(_text(model, f"writes into the model's own {listed_names(watched.written)}"))
    if any(module.training for module in model.modules()):
        again = _output(copied, forward_pass, evaluating=False)
        if not _are_close(output, again):
            raise NotIndependent(_text(model, "depends on whether the model is in training mode"))
    _notify_unchanged(copied, watched)


def _notify_unchanged(copied: nn.Module, watched: _ModelUse) -> None:
    """Give a Notice of parameters whose change in the copy has no effect."""
    if watched.foreign:
        sizes = dict.fromkeys(str(tuple(each.shape)) for each in watched.foreign)
        notify(
            f"{type(copied).__name__} computes with parameters of the shapes {', '.join(sizes)} that are not among its "
            "parameters(), such as those of a layer in a plain list; they stay as they are. Next: register the layer, "
            "for instance in an nn.ModuleList"
        )
    unread = [name for name, parameter in copied.named_parameters() if not watched.has_read(parameter)]
    if unread:
        notify(
            f"{type(copied).__name__} runs without reading its parameters {listed_names(unread)}: it does not use them "
            "for this input, or computes with a stored copy of them. A change of these parameters changes nothing"
        )


def _text(model: nn.Module, what: str) -> str:
    return (
        f"a copy of {type(model).__name__} {what}. A function that was assigned as a module's forward, or registered "
        "as a hook, and that holds the model or a part of it still holds the original in a copy. Next: define forward "
        "in the module's class, assign a bound method (types.MethodType), or let a hook use the module that it is "
        "called with"
    )


def _output(
    copied: nn.Module, forward_pass: ForwardPass, *, evaluating: bool, watched: _ModelUse | None = None
) -> Mapping[str, Tensor]:
    """The tensors that the copy returns. The model is in eval mode, or as it was found."""
    rows = torch.arange(len(forward_pass.inputs))

    def output(size: int | None) -> Mapping[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for entries, _ in batches(size, rows):
            call = forward_pass.call.select(entries)
            returned = run(copied, call.for_one_pass())
            tensors |= {f"{len(tensors)} {path}": tensor for path, tensor in containers.leaves(returned)}
        return tensors

    with (
        preserved(forward_pass.model, evaluating=evaluating),
        preserved(copied),
        forward_pass.autocast_context(),
        nullcontext() if watched is None else active_in_dispatch(watched),
    ):
        torch.clear_autocast_cache()  # a weight that autocast has cast before would be read unseen
        tensors = with_fixed_batch(copied, forward_pass.call, output)
        if watched is not None:
            watched.find_written()
        return tensors


class _ModelUse(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no type hints
    """Finds out which parameters the operations read, and which buffers of the model they write into.

    Args:
        model: The model.
        copied: Its copy.
    """

    def __init__(self, model: nn.Module, copied: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no type hints
        self.supports_higher_order_operators = True  # such as torch.cond, which a mode refuses otherwise
        self._copied = _by_memory(dict(copied.named_parameters()))
        self._originals = _by_memory(dict(model.named_parameters()))
        own_buffers = set(map(id, copied.buffers()))
        # A tensor of inference mode counts no writes.
        self._buffers = [
            (name, buffer, buffer._version)
            for name, buffer in (*model.named_buffers(), *_hidden_buffers(model))
            if id(buffer) not in own_buffers and not buffer.is_inference()
        ]
        self._read: set[int] = set()
        self.written: list[str] = []
        self.foreign: list[Tensor] = []
        """Parameters that neither the model nor the copy has."""

    @property
    def originals(self) -> list[str]:
        """The names of the model's parameters that were read."""
        return list(dict.fromkeys(name for memory, name in self._originals.items() if memory in self._read))

    def has_read(self, parameter: Tensor) -> bool:
        """Whether an operation took the parameter, or a view of it."""
        return not self._read.isdisjoint(_memory(parameter))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                known = {each for each in _memory(value) if each in self._copied or each in self._originals}
                self._read |= known
                if not known and isinstance(value, nn.Parameter):
                    self.foreign.append(value)
        return func(*args, **(kwargs or {}))

    def find_written(self) -> None:
        """Find the buffers that were written into so far, by their versions."""
        self.written = [name for name, buffer, version in self._buffers if buffer._version != version]


def _hidden_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers of modules in attributes of the model that are not registered, such as those in a plain list."""
    hidden = SavedModules(all_modules(model)).hidden
    return [(f"{type(m).__name__}.{name}", each) for m in hidden for name, each in m.named_buffers(recurse=False)]


def _memory(tensor: Tensor) -> set[int]:
    """Identifies the memory of a tensor: the address of its storage, and its id, because some have no storage."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # such as a sparse tensor
        address = 0
    return {id(tensor)} | ({address} if address else set())


def _by_memory(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    return {each: name for name, tensor in tensors.items() for each in _memory(tensor)}


def _are_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.shape == other[path].shape and close(tensor, other[path], tensor.dtype) for path, tensor in one.items()
    )
