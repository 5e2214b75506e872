"""What of a batch goes into the model, and what into the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.argument_types import Allowed
from torchpeek.engine import Arguments, ModelCall
from torchpeek.errors import InputError, closest, type_shown
from torchpeek.interrupts import interruptible
from torchpeek.models import Model, model_call_for, module_of

Entry: TypeAlias = int | str
Entries: TypeAlias = Annotated[
    Entry | Sequence[Entry] | Callable[[Any], Any],
    Allowed("the position or name of an entry of a batch, several of these, or a function of the batch"),
]
"""Part of a batch: the position or name of an entry, several of these, or a function of the batch."""


def calls_and_targets(
    model: Model, batches: Iterator[Any], arguments: Entries | None, target: Entries | None
) -> Iterator[tuple[ModelCall, tuple[Any, ...]]]:
    """For each batch, the call of the model, and what the loss takes beside the output.

    Raises:
        InputError: When a batch is no input of the model, and `arguments` does not say what is.
    """
    for batch in batches:
        with interruptible(), torch.enable_grad():  # the functions are the caller's
            model_inputs, targets = _parts(module_of(model), batch, arguments, target)
        yield model_call_for(model, model_inputs, any_tensor=True), targets


def _parts(
    module: nn.Module, batch: Any, arguments: Entries | None, target: Entries | None
) -> tuple[Any, tuple[Any, ...]]:
    rest: tuple[Any, ...] = ()
    if arguments is None:
        model_inputs, rest = _by_default(module, batch)
    elif callable(arguments):
        model_inputs = _as_arguments(arguments(batch))
    else:
        chosen = _entries(batch, arguments, "arguments")
        names = list(chosen)
        if isinstance(arguments, (int, str)):
            model_inputs = _positional(module, chosen[names[0]])
        else:
            model_inputs = Arguments(
                tuple(value for name, value in chosen.items() if isinstance(name, int)),
                {name: value for name, value in chosen.items() if isinstance(name, str)},
            )
        rest = tuple(value for name, value in _all_entries(batch, "arguments").items() if name not in chosen)
    if target is None:
        return model_inputs, rest
    return model_inputs, (target(batch),) if callable(target) else tuple(_entries(batch, target, "target").values())


def _by_default(module: nn.Module, batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """The whole batch, or the first of a pair."""
    if not isinstance(batch, (tuple, list)):
        if isinstance(batch, Mapping):
            _check_names(module, batch)
        return batch, ()
    if len(batch) == 1:
        return _positional(module, batch[0]), ()
    if len(batch) != 2:
        raise InputError(
            f"a batch is {type_shown(batch)} of {len(batch)} entries ({_listed(batch)}); allowed: inputs, a pair "
            "(inputs, target), or any batch with arguments=, which names what the model is called with. Next: "
            f"arguments=0, or arguments=(0, 1) for two inputs; the loss takes the other entries. {_FUNCTION}"
        )
    if isinstance(batch[0], Tensor) and (names := _needs_several(module, 2)):
        raise InputError(
            f"{type(module).__name__} takes {names}, and the batch is a pair ({_listed(batch)}), which is taken as "
            f"(inputs, target). Next: arguments=(0, 1) calls the model with both. {_FUNCTION}"
        )
    return _positional(module, batch[0]), (batch[1],)


_FUNCTION = "arguments= and target= also take a function of the batch"


def _needs_several(module: nn.Module, count: int) -> str:
    """The names of `count` arguments of a model that cannot be called with one alone; otherwise an empty string."""
    signature = _signature(module)
    if signature is None or _binds(signature, 1) or not _binds(signature, count):
        return ""
    return " and ".join(map(repr, list(signature.parameters)[:count]))


def _signature(module: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(module.forward)
    except (TypeError, ValueError):
        return None


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _positional(module: nn.Module, entry: Any) -> Any:
    """An entry that holds all arguments of a model, as in ((a, b), target), as these; any other as it is."""
    if isinstance(entry, (tuple, list)) and _needs_several(module, len(entry)):
        return Arguments(tuple(entry))
    return entry


def _check_names(module: nn.Module, batch: Mapping[Any, Any]) -> None:
    """Raise InputError where a batch has entries that the model does not take by name."""
    signature = _signature(module)
    names = () if signature is None else signature.parameters
    unknown = [name for name in batch if name not in names]
    known = [name for name in batch if name in names]
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in dict(names).values())
    if unknown and known and not takes_any:
        raise InputError(
            f"{type(module).__name__} takes no {', '.join(map(repr, unknown))}, which is in the batch. Next: "
            f"arguments={known!r} calls the model with these entries; the loss takes the others. {_FUNCTION}"
        )


def _as_arguments(inputs: Any) -> Any:
    """What a function of the batch returned; a tuple or list holds the positional arguments."""
    return Arguments(tuple(inputs)) if isinstance(inputs, (tuple, list)) else inputs


def _all_entries(batch: Any, argument: str) -> Mapping[Entry, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, (tuple, list)):
        return dict(enumerate(batch))
    raise InputError(
        f"{argument} names entries of a batch, and a batch is {type_shown(batch)}; allowed: a tuple, a list or a "
        f"dict. Next: {argument} can be a function of the batch"
    )


def _entries(batch: Any, which: Entry | Sequence[Entry], argument: str) -> dict[Entry, Any]:
    """The named entries of a batch."""
    entries = _all_entries(batch, argument)
    names = [which] if isinstance(which, (int, str)) else list(which)
    if not names or not all(isinstance(name, (int, str)) and not isinstance(name, bool) for name in names):
        raise InputError(
            f"{argument} is {which!r}; allowed: the position or name of an entry of the batch, several of these, or a "
            "function of the batch"
        )
    found: dict[Entry, Any] = {}
    for name in names:
        place = name + len(entries) if isinstance(name, int) and name < 0 else name
        if place not in entries:
            hint = closest(place, list(map(str, entries))) if isinstance(place, str) else ""
            raise InputError(
                f"{argument} names {name!r}, which the batch does not have{hint}; there are: "
                f"{', '.join(map(repr, entries))}"
            )
        found[place] = entries[place]
    return found


def _listed(batch: Sequence[Any]) -> str:
    return ", ".join(str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in batch)
