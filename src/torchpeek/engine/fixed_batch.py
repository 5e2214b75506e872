"""Models that take batches of one size only: find that size, and fill up smaller batches to it.

Such a size is in a buffer, in a `view(4, -1)`, or in a program that torch.export made without a dynamic batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.preserve import preserved
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

    Where `compute(None)` raises an exception of the model, the size of `call` is tried: if the model takes that and no
    other, it runs once more with it, and the size is remembered.

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
    try:
        return compute(None)
    except (TorchpeekError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        size = _found_size(model, call, error)
        if size is None:
            raise
    return compute(size)


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


def _found_size(model: nn.Module, call: ModelCall, error: Exception) -> int | None:
    """The batch size of `call`, if the model takes that and does not take another; otherwise None."""
    count = len(call)
    other = call.one_sample(1 if count > 1 else 2)
    with preserved(model):
        if (whole := _runs(model, call)) is None:
            return None
        # One sample may be broadcast to the rows of a buffer, which is no result for a batch of one.
        smaller = _runs(model, other)
        if smaller is not None and _row_counts(smaller, _batched(whole, count)) <= {len(other)}:
            return None
        repeated = _runs(model, call.one_sample(count)) if count > 1 else whole
    if repeated is None or not _same_first_sample(whole, repeated, count):
        raise InputError(_not_of_samples(call)) from error
    notify(
        f"{type(model).__name__} takes batches of {count} only, so every pass has {count} samples: a batch with fewer "
        "is filled up with copies of its last sample, whose results are not used"
    )
    return _SIZES.put(model, (*call.kind, count), count)


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


def _runs(model: nn.Module, call: ModelCall) -> Any:
    """What the model returns; None where it fails."""
    try:
        return run(model, call.for_one_pass())
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _same_first_sample(whole: Any, repeated: Any, count: int) -> bool:
    """Whether the first sample has the same outputs in both batches."""
    ours, theirs = dict(containers.leaves(whole)), dict(containers.leaves(repeated))
    batched = _batched(whole, count)
    return bool(batched) and all(
        path in theirs and close(theirs[path][:1], ours[path][:1], ours[path].dtype) for path in batched
    )


def _batched(output: Any, count: int) -> list[str]:
    """The paths of the tensors in an output of `count` samples that have a row for each."""
    return [path for path, tensor in containers.leaves(output) if tensor.ndim and len(tensor) == count]


def _row_counts(output: Any, paths: list[str]) -> set[int]:
    """How many rows the tensors at these paths have."""
    return {len(tensor) for path, tensor in containers.leaves(output) if path in paths and tensor.ndim}
