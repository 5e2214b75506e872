"""Models that take batches of one size only: find that size, and fill up smaller batches to it.

Such a size is in a buffer, in a `view(4, -1)`, or in a program that torch.export made without a dynamic batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import Refusal, attempted, may_refuse
from torchpeek.engine.forward import run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets.question import RowCountMismatch
from torchpeek.errors import InputError, TorchpeekError, notify
from torchpeek.hooks import containers

Result = TypeVar("Result")

WITHOUT_BATCH_AXIS = (
    "A model that takes one sample without a batch axis can be given inside a module that takes (1, ...) and calls it "
    "with x[0]"
)
"""The end of an error text where axis 0 of the input is not that of the samples."""

# By kind of input and number of samples: that number, where the model takes no other.
_SIZES: ModelCache[Any, int] = ModelCache()


class BatchTooLarge(InputError):
    """A batch is larger than the only `size` that the model takes."""

    def __init__(self, model: nn.Module, size: int, count: int) -> None:
        super().__init__(f"{type(model).__name__} takes batches of {size} only; got {count} inputs")
        self.size = size


def fixed_batch_size(model: nn.Module, call: ModelCall) -> int | None:
    """The number of samples of the call, where it has been found that the model takes no other; otherwise None."""
    return _SIZES.get(model, (*call.kind, len(call)))


def with_fixed_batch(model: nn.Module, call: ModelCall, compute: Callable[[int | None], Result]) -> Result:
    """What `compute(size)` returns, where `size` is the only batch size that the model takes, or None for any.

    Where `compute(None)` fails because of the size of its batches, it runs once more with batches of the size of
    `call`, and that size is remembered. An exception that has another cause goes through (`attempts.py: attempted`).

    Args:
        model: The model.
        call: A call that the model takes.
        compute: Runs the model with batches of other sizes, filled up to `size`.

    Raises:
        InputError: When the model takes only the whole of `call`, but does not compute each sample by itself.
    """
    size = fixed_batch_size(model, call)
    if size is not None:
        return compute(size)
    count = len(call)

    def in_batches_of_the_call() -> tuple[bool, list[Result]]:
        takes_no_other = _takes_no_other(model, call)
        try:
            return takes_no_other, [compute(count)]
        except BatchTooLarge:
            return takes_no_other, []

    of_any_size = attempted(partial(compute, None), in_batches_of_the_call, possible=_may_be_of_the_size)
    if not isinstance(of_any_size, Refusal):
        return of_any_size
    takes_no_other, results = of_any_size.unchanged
    if takes_no_other:
        notify(
            f"{type(model).__name__} takes batches of {count} only, so every pass has {count} samples: a batch with "
            "fewer is filled up with copies of its last sample, whose results are not used"
        )
    _SIZES.put(model, (*call.kind, count), count)
    return results[0] if results else compute(count)  # which raises BatchTooLarge again


def _may_be_of_the_size(error: Exception) -> bool:
    """Whether another batch size may be the cause of an exception. torchpeek's own errors say what is wrong."""
    return may_refuse(error) and (isinstance(error, RowCountMismatch) or not isinstance(error, TorchpeekError))


def batches(size: int | None, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The indices of `rows` (n,) in batches of `size`, the last of them filled up, and how many of each are its own.

    Args:
        size: The batch size; None for one batch of all rows.
        rows: (n,): the samples.

    Yields:
        (size,): indices into `rows`, the last one repeated; and the number without the repetitions.
    """
    size = size or len(rows)
    for start in range(0, len(rows), size):
        indices = torch.arange(start, start + size)
        yield indices.clamp(max=len(rows) - 1), min(size, len(rows) - start)


def _takes_no_other(model: nn.Module, call: ModelCall) -> bool:
    """Whether the model does not take one sample, or two in place of one, as well as the call.

    Raises:
        InputError: When it takes the call, but not copies of one sample, or does not compute each sample by itself.
    """
    count = len(call)
    other_count = 1 if count > 1 else 2

    def output(of: ModelCall) -> Any:
        return run(model, of.for_one_pass())

    with preserved(model):
        whole = output(call)
        other = attempted(partial(output, call.one_sample(other_count)), partial(output, call))
        if not isinstance(other, Refusal) and _has_rows(whole, count, other, other_count):
            return False
        repeated = attempted(partial(output, call.one_sample(count)), partial(output, call)) if count > 1 else whole
    if isinstance(repeated, Refusal) or not _same_first_sample(whole, repeated, count):
        raise InputError(_not_of_samples(call))
    return True


def _not_of_samples(call: ModelCall) -> str:
    """Why a model that takes the whole call and not one sample of it does not compute each sample by itself."""
    count, named = len(call), ", ".join(sorted(repr(path.partition(".")[2]) for path in call.sample_paths))
    shared = (
        f"; or one of the arguments {named}, which have {count} entries too, is the same for all samples"
        if named
        else ""
    )
    advice = f", or name such arguments in tp.Arguments(..., shared=[{named}])" if named else ""
    return (
        f"axis 0 of the input {call.user_shape} does not seem to be that of the samples: the model takes all {count} "
        "entries and not one of them, and what it returns for one of them depends on the others. Perhaps axis 0 is of "
        f"frames or steps{shared}; or the samples influence each other. Next: give inputs (N, C, *grid){advice}. "
        f"{WITHOUT_BATCH_AXIS}"
    )


def _has_rows(whole: Any, count: int, other: Any, other_count: int) -> bool:
    """Whether the output for another batch has a row for each of its samples, where that for `count` samples has them.

    A model with a `view(4, -1)` may run with other batches, and return four rows for them.
    """
    batched, others = _batched(whole, count), dict(containers.leaves(other))
    return not batched or any(path in others and len(others[path]) == other_count for path in batched)


def _batched(output: Any, count: int) -> dict[str, Tensor]:
    """Path -> each tensor of an output that has a row for each of `count` samples."""
    return {path: tensor for path, tensor in containers.leaves(output) if tensor.ndim and len(tensor) == count}


def _same_first_sample(whole: Any, repeated: Any, count: int) -> bool:
    """Whether the first sample has the same outputs in both batches."""
    ours, theirs = _batched(whole, count), dict(containers.leaves(repeated))
    return bool(ours) and all(
        path in theirs and close(theirs[path][:1], tensor[:1], tensor.dtype) for path, tensor in ours.items()
    )
