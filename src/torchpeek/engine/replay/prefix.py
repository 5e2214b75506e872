"""What a pass leaves behind for replays: what each module returned, until one layer did."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from torchpeek.hooks import containers
from torchpeek.hooks.patched_forward import Forward, replaceable


@dataclass(eq=False)
class RecordedCall:
    """One call of a module, as noted. It is over, or it holds the layer and has to run again."""

    module: nn.Module
    output: Any = None
    over: bool = False


class PrefixRecording:
    """What one pass over `count` samples left behind of the outermost calls that were over before the layer returned.

    Used as `with replaced(notes.forwards(model))` around a pass, with `notes.closing` as the layer's last hook, and
    `notes.checked()` at last. `copied` says of which calls, by number, the outputs are overwritten later on, so that a
    copy has to be taken; None says that this is not known, and takes one of each.
    """

    def __init__(self, count: int, copied: frozenset[int] | None = None) -> None:
        self.count = count
        self.calls: list[RecordedCall] = []
        self.overwritten: frozenset[int] = frozenset()
        self.confirmed = False  # that replays of what is in them give what the pass gave
        self._copied = copied
        self._seen: dict[int, list[tuple[Tensor, int | None]]] = {}  # by call: tensors as returned, and their versions
        self._open = True
        self._thread = threading.get_ident()

    def forwards(self, model: nn.Module) -> Iterable[tuple[nn.Module, Forward]]:
        return [(module, partial(self._noted, module, module.forward)) for module in replaceable(model)]

    def closing(self, *returned: Any) -> None:
        """The layer's hook: it has returned, and what happens from now on is not noted."""
        if threading.get_ident() == self._thread:
            self._open = False

    def checked(self) -> PrefixRecording | None:
        """These notes after the pass, or None where one that was not copied has been written into since."""
        changed = {
            number
            for number, tensors in self._seen.items()
            if any(version is None or version_of(tensor) != version for tensor, version in tensors)
        }
        self._seen.clear()
        self.overwritten = frozenset(changed)
        return self if self._copied is None or changed <= self._copied else None

    def _noted(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if not self._open or threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        number = len(self.calls)
        call = RecordedCall(module)
        self.calls.append(call)
        output = forward(*args, **kwargs)
        if self._open:
            for part in range(number + 1, len(self.calls)):
                self._seen.pop(part, None)
            del self.calls[number + 1 :]  # what it called is part of it
            self._seen[number] = [(tensor, version_of(tensor)) for _, tensor in containers.leaves(output)]
            copy = self._copied is None or number in self._copied
            call.output = containers.mapped(output, lambda _, each: each.detach().clone() if copy else each.detach())
            call.over = True
        return output


def version_of(tensor: Tensor) -> int | None:
    """How often it has been written into; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
