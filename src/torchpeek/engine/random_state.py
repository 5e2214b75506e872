"""The random states of torch: left as found where a model draws, and not touched where it does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchpeek.engine.model_cache import ModelCache
from torchpeek.forks import Lock
from torchpeek.hooks import active_in_dispatch
from torchpeek.undo import Undo, undone

# Whether a model draws in a pass of this kind. Models are observed only while other threads run.
_DRAWS: ModelCache[Hashable, bool] = ModelCache(capacity=64)

_OPEN: list[SavedRandomState] = []  # those of all threads that are not restored yet, the earliest first
_GUARD = Lock()


class SavedRandomState:
    """The random states of some devices, for a block in which a model runs.

    All threads share these states. If they are restored, other threads draw the numbers again that they drew meanwhile.
    So they are restored only if the model has drawn:

    1. While this is the only thread, nobody else can have changed a state: it is compared.
    2. While there are others, the first pass of each kind is observed, operation by operation. What it shows holds for
       later passes of the same kind.

    Args:
        devices: The devices, other than the CPU, on which the model may draw.
    """

    __slots__ = ("_alone", "_observed", "_states", "_unobserved", "drew")

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._alone = is_only_thread()
        self.drew = False  # whether a pass was observed to draw
        self._observed = self._unobserved = False  # whether there were passes that were, or were not, observed
        others = sorted((each for each in devices if each.type not in ("cpu", "meta")), key=str)
        self._states = [(device, _state(device)) for device in (torch.device("cpu"), *others)]
        _OPEN.append(self)

    def is_certain(self) -> bool:
        """Whether the next pass need not be observed."""
        if not self.drew and is_only_thread():
            self._unobserved = True
            return True
        return self.drew

    def observed(self, drew: bool) -> None:
        """Store that a pass was observed, and whether it has drawn."""
        self._observed, self.drew = True, drew

    @property
    def devices(self) -> list[torch.device]:
        """The devices, with the CPU as the first."""
        return [device for device, _ in self._states]

    def seed(self, seed: int) -> None:
        """Seed the generators of these devices."""
        for device, _ in self._states:
            if device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:
                torch.get_device_module(device).manual_seed(seed)

    def restore(self) -> None:
        """Restore the states if the model has changed them. May be called again."""
        with _GUARD:
            if self not in _OPEN:
                return
            later = _OPEN[_OPEN.index(self) + 1 :]
            if self._needs_restoring():
                for other in later:  # what they found was changed already
                    other._states = [
                        next((mine for mine in self._states if mine[0] == device), (device, state))
                        for device, state in other._states
                    ]
                if not any(other.drew for other in later):  # otherwise the last of these does it
                    for device, state in self._states:
                        _set_state(device, state)
            _OPEN.remove(self)

    def close(self) -> None:
        """Forget the states. May be called again."""
        with _GUARD:
            if self in _OPEN:
                _OPEN.remove(self)

    def _needs_restoring(self) -> bool:
        uncertain = self._unobserved or not self._observed
        if not self.drew and not (uncertain and (self._alone or is_only_thread())):
            return False
        return any(not torch.equal(_state(device), state) for device, state in self._states)


@undone
def observing_draws(
    undo: Undo, saved: SavedRandomState, models: Sequence[nn.Module], kind: Callable[[], Hashable]
) -> None:
    """A block around a pass of the model, which finds out whether the pass draws random numbers.

    Args:
        undo: What ends the observation.
        saved: The states that the model may change.
        models: The model, and before it others that the pass may run a part of.
        kind: Returns a key. Of passes with the same key, all draw or none does.
    """
    model = models[-1]
    modules = (module for each in models for module in each.modules())
    key = kind(), tuple(module.training for module in modules if hasattr(module, "training"))
    draws = _DRAWS.get(model, key)
    if draws is not None:
        saved.observed(draws)
        return
    observer = _DrawObserver(saved.devices)
    undo.push(lambda: saved.observed(observer.has_drawn()))
    undo.enter(active_in_dispatch(observer))

    def end(kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:  # otherwise it may have drawn later
            _DRAWS.put(model, key, observer.has_drawn())

    undo.ending = end


class _DrawObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no type hints
    """Finds out whether the operations of this thread draw from the random states that all threads share."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no type hints
        self.drew = False
        self._devices = devices
        self._before: list[Tensor] = []  # the states before an operation that may draw, until they are compared

    def has_drawn(self) -> bool:
        """Whether the operations have drawn, also the last one, after which an exception may have struck."""
        if self._before and not self.drew:
            self.drew = not all(map(torch.equal, self._before, map(_state, self._devices)))
        self._before = []
        return self.drew

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.drew or not _may_draw(func, args, kwargs):
            return func(*args, **kwargs)
        self._before = [_state(device) for device in self._devices]
        result = func(*args, **kwargs)
        self.has_drawn()
        return result


def _may_draw(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws from a shared random state, as far as its arguments say."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    arguments = operation._schema.arguments
    # An argument that has its default value is not among those of the call.
    named = {each.name: each.default_value for each in arguments if each.has_default_value()}
    named |= {each.name: value for each, value in zip(arguments, args, strict=False)} | kwargs
    if named.get("generator") is not None or 0.0 in (named.get("dropout_p"), named.get("dropout")):
        return False
    return named.get("train") is not False and named.get("training") is not False


@undone
def seeded_draws(undo: Undo, devices: Iterable[torch.device], seed: int) -> None:
    """Inside the block: the operations of this thread draw numbers that follow from the seed.

    The random states are seeded when the first operation draws, and are as found after the block. What draws nothing
    does not touch them.

    Args:
        undo: What restores the states.
        devices: The devices.
        seed: The seed.
    """
    saved = SavedRandomState(devices)
    undo.push(saved.close)
    undo.push_local(saved.restore)
    undo.enter(active_in_dispatch(_SeedAtFirstDraw(saved, seed)))


class _SeedAtFirstDraw(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no type hints
    def __init__(self, saved: SavedRandomState, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no type hints
        self._saved, self._seed = saved, seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._saved.drew and _may_draw(func, args, kwargs):
            self._saved.drew = True
            self._saved.seed(self._seed)
        return func(*args, **kwargs)


def is_only_thread() -> bool:
    """Whether no other thread runs Python code."""
    return len(sys._current_frames()) == 1


def _state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.default_generator.get_state()
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device.index or 0)
    return state


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.default_generator.set_state(state)
        return
    module = torch.get_device_module(device)
    module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device.index or 0)
