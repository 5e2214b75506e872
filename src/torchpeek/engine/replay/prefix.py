"""What ran before a layer returned: the outermost finished calls of one pass, and their outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from torchpeek.hooks import Forward, containers, replaceable


@dataclass(eq=False)
class RecordedCall:
    """One call of a module: it finished before the layer returned, or it contains the layer and must run again."""

    module: nn.Module
    output: Any = None
    finished: bool = False


class PrefixRecording:
    """The outermost calls of one pass over `count` samples that finished before the layer returned.

    Usage: `with replaced(recording.recording_forwards(model))` around the pass, with `recording.stop` as the last hook
    of the layer, and `recording.complete()` after the pass.

    Args:
        count: The number of samples, N.
        overwritten: The numbers of the calls whose outputs a later operation overwrites, so that a copy is stored. None
            means that this is not known yet, and stores a copy of every output.
    """

    def __init__(self, count: int, overwritten: frozenset[int] | None = None) -> None:
        self.count = count
        self.calls: list[RecordedCall] = []
        self.overwritten: frozenset[int] = frozenset()  # as this pass showed it
        self.confirmed = False  # whether a replay from this recording has returned what the pass returned
        self._to_copy = overwritten
        self._versions: dict[int, list[tuple[Tensor, int | None]]] = {}  # call -> its tensors, and their versions
        self._recording = True

    def recording_forwards(self, model: nn.Module) -> Iterable[tuple[nn.Module, Forward]]:
        """For `replaced`: each module below the model, with a `forward` that records the call."""
        return [(module, partial(self._record, module, module.forward)) for module in replaceable(model)]

    def stop(self, *hook_arguments: Any) -> None:
        """The layer's hook: the layer has returned, and later calls are not recorded."""
        self._recording = False

    def complete(self) -> PrefixRecording | None:
        """This recording, after the pass; None where an output was overwritten that was stored without a copy."""
        changed = {
            number
            for number, tensors in self._versions.items()
            if any(version is None or version_of(tensor) != version for tensor, version in tensors)
        }
        self._versions.clear()
        self.overwritten = frozenset(changed)
        return self if self._to_copy is None or changed <= self._to_copy else None

    def _record(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if not self._recording:
            return forward(*args, **kwargs)
        number = len(self.calls)
        call = RecordedCall(module)
        self.calls.append(call)
        output = forward(*args, **kwargs)
        if self._recording:
            for inner in range(number + 1, len(self.calls)):
                self._versions.pop(inner, None)
            del self.calls[number + 1 :]  # the calls inside this one are part of it
            self._versions[number] = [(tensor, version_of(tensor)) for _, tensor in containers.leaves(output)]
            copy = self._to_copy is None or number in self._to_copy
            call.output = containers.mapped(output, lambda _, each: each.detach().clone() if copy else each.detach())
            call.finished = True
        return output


def version_of(tensor: Tensor) -> int | None:
    """How often the tensor has been written into; None for inference tensors, where torch does not count."""
    return None if tensor.is_inference() else tensor._version
