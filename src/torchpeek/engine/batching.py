"""Run many passes of changed inputs or activations, in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from torchpeek.engine.attempts import Refusal, attempted, stop_iteration_restored
from torchpeek.engine.fixed_batch import BatchTooLarge
from torchpeek.errors import InputError, OptionError, type_shown
from torchpeek.interrupts import let_interrupts_through
from torchpeek.progress import progress

Precision: TypeAlias = Literal["bfloat16"] | None
"""The precision of the passes: autocast to bfloat16, or None for the model's own. The scores are float32 either way."""

Change: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `change(tensor (b, ...), rows (b,), trials (b,))`: entry i is for sample rows[i] in its trial trials[i].

`rows` and `trials` are on the CPU, whatever the device of the tensor. They can index any tensor; for arithmetic, move
them with `.to(tensor)`.
"""

Result = TypeVar("Result")

# An estimate of the memory of a pass, as a multiple of the tensor that changes: typical widths and grids of networks.
_MEMORY_MULTIPLE = 16
# Limits on one chunk, in bytes and in samples, by device type. On the CPU larger chunks are not faster.
_MAX_BYTES = {"cpu": 256 * 2**20}
_MAX_SAMPLES = {"cpu": 16}
_MAX_SAMPLES_OF_SUFFIX = {"cpu": 128}  # a suffix is short, so the fixed cost of each replay matters
_MAX_BYTES_ELSEWHERE = 2 * 2**30
_MAX_SAMPLES_ELSEWHERE = 256


def sample_rows(tensor: Tensor, rows: Tensor, axis: int = 0) -> Tensor:
    """The samples `rows` (b,) of a tensor, along `axis`. An expanded view where all rows are the same, else a copy."""
    first = int(rows[0])
    if bool((rows == first).all()):
        return tensor.narrow(axis, first, 1).expand([len(rows) if each == axis else -1 for each in range(tensor.ndim)])
    return tensor.index_select(axis, rows.to(tensor.device))


def chunk_size(sample: Tensor, *, suffix: bool = False) -> int:
    """The number of samples in a chunk, by the size of a sample and its device.

    Args:
        sample: (1, ...): an input, or, for a `suffix`, an activation.
        suffix: Whether the passes are replays of the suffix only.
    """
    sample_bytes = max(1, sample.numel() * sample.element_size() * _MEMORY_MULTIPLE)
    device = sample.device.type
    max_samples = (_MAX_SAMPLES_OF_SUFFIX if suffix else _MAX_SAMPLES).get(device, _MAX_SAMPLES_ELSEWHERE)
    return max(1, min(_MAX_BYTES.get(device, _MAX_BYTES_ELSEWHERE) // sample_bytes, max_samples))


def score_chunks(
    score: Callable[[Tensor, Tensor], Tensor], clean: Tensor, trials: int, live: Tensor | None, batch: int, what: str
) -> Tensor:
    """Compute the scores of every sample and trial, in chunks.

    Args:
        score: Called as `score(rows (b,), trials (b,))`; returns (b, K).
        clean: (N, K): the scores of the clean pass.
        trials: The number of trials.
        live: (N, trials), bool. Where it is False, nothing runs and the clean scores are used. None for all True.
        batch: The number of samples in a chunk.
        what: The name of the progress bar.

    Returns:
        (N, trials, K).
    """
    scores = clean.unsqueeze(1).repeat(1, trials, 1)  # (N, trials, K)
    with stop_iteration_restored():
        for rows, trial_indices, chunk_scores in chunks(score, len(clean), trials, batch, what, live=live):
            scores[rows.to(scores.device), trial_indices.to(scores.device)] = chunk_scores.to(scores)
    return scores


def chunks(
    function: Callable[[Tensor, Tensor], Result],
    count: int,
    trials: int,
    batch: int,
    what: str,
    *,
    live: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Result]]:
    """Call `function(rows, trials)` for every sample and trial, in chunks.

    When a chunk does not fit into memory, this chunk and all later ones have half the size. When it is larger than the
    only batch that the model takes, they have that size.

    Args:
        function: Called with the samples (b,) and the trials (b,) of a chunk.
        count: The number of samples.
        trials: The number of trials.
        batch: The number of samples in a chunk.
        what: The name of the progress bar.
        live: (N, trials), bool: the samples and trials to call it for; None for all.

    Yields:
        rows, trials and what the function returned.
    """
    if live is None:
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(trials)).view(-1, 2)
    else:
        pairs = live.cpu().nonzero()
    # The passes of one sample share what does not change, without a copy for each. So a chunk has the trials of one
    # sample only, unless these are too few to fill it.
    one_sample_only = len(pairs) >= batch * count
    start = 0
    with progress(what, len(pairs)) as advance:
        while start < len(pairs):
            let_interrupts_through()
            chunk = pairs[start : start + batch]
            if one_sample_only:
                chunk = chunk[chunk[:, 0] == chunk[0, 0]]
            rows, trial_indices = chunk.unbind(1)
            try:
                result = in_memory(partial(function, rows, trial_indices), len(chunk))
            except BatchTooLarge as error:
                batch = error.size
                continue
            if isinstance(result, Refusal):
                batch = len(chunk) // 2
                continue
            yield rows, trial_indices, result
            del result  # before the next chunk needs the memory
            start += len(chunk)
            advance(len(chunk))


def in_memory(function: Callable[[], Result], batch: int) -> Result | Refusal[None]:
    """What the function returns, or a Refusal where its batch of more than one does not fit into memory."""

    def possible(error: Exception) -> bool:
        return batch > 1 and isinstance(error, torch.OutOfMemoryError)

    return attempted(function, torch.cuda.empty_cache, possible=possible)


def as_dtype(precision: str | None, inputs: Tensor) -> torch.dtype | None:
    """The dtype that the passes are autocast to; None for no autocast. Raises OptionError for an unknown precision."""
    if precision is None:
        return None
    if precision != "bfloat16":
        raise OptionError(f"option precision is {precision!r}; allowed: 'bfloat16', or None for the model's own")
    if inputs.dtype == torch.float64:
        raise OptionError(
            "precision='bfloat16' is for models in float32: autocast leaves float64 as it is. Leave precision out"
        )
    return torch.bfloat16


def check_counts(trials: int, batch: int | None) -> None:
    """Raise InputError unless both are at least 1."""
    if trials < 1 or (batch is not None and batch < 1):
        raise InputError(
            f"trials is {trials} and batch {batch}; both are at least 1, or batch is None for a size that fits"
        )


def check_changed(changed: object, shape: tuple[int, ...]) -> None:
    """Raise InputError unless what a change returned is a tensor of this shape."""
    if not isinstance(changed, Tensor) or tuple(changed.shape) != shape:
        got = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type_shown(changed)
        raise InputError(f"the change returned {got}; allowed: a tensor of shape {shape}, the shape of its argument")
