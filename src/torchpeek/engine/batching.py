"""Many passes of something changed, in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from torchpeek.errors import InputError, OptionError
from torchpeek.interrupts import let_interrupts_through
from torchpeek.progress import progress

Precision: TypeAlias = Literal["bfloat16"] | None
"""In which the passes run: as the model is, or under autocast. The scores are float32 either way."""

Change: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `change(tensor (b, ...), rows (b,), trials (b,))`: entry i is sample rows[i] in its trial trials[i].

`rows` and `trials` are on the CPU, wherever the tensor is: good for indexing, and `.to(tensor)` for arithmetic.
"""

Made = TypeVar("Made")

# What a pass holds at once, as multiples of what changes from sample to sample: widths and grids as networks have them.
_MULTIPLE = 16
# What the passes of one chunk may hold at once, and how many samples they are at most: on the CPU more is not faster.
_BYTES = {"cpu": 256 * 2**20}
_MOST = {"cpu": 16}
_MOST_OF_SUFFIX = {"cpu": 128}  # a suffix is short, and what each replay costs besides tells
_BYTES_ELSEWHERE = 2 * 2**30
_MOST_ELSEWHERE = 256


def chunk_size(sample: Tensor, *, suffix: bool = False) -> int:
    """How many samples to pass at once, for samples (1, ...) of this size and where they are.

    They go through the whole model, or, for a `suffix`, through what comes after a layer that returns this.
    """
    each = max(1, sample.numel() * sample.element_size() * _MULTIPLE)
    kind = sample.device.type
    most = (_MOST_OF_SUFFIX if suffix else _MOST).get(kind, _MOST_ELSEWHERE)
    return max(1, min(_BYTES.get(kind, _BYTES_ELSEWHERE) // each, most))


def score_chunks(
    score: Callable[[Tensor, Tensor], Tensor], clean: Tensor, trials: int, live: Tensor | None, batch: int, what: str
) -> Tensor:
    """(N, trials, K): `score(rows (b,), trials (b,))`, which is (b, K), of every sample and trial.

    Where `live` (N, trials) is False nothing is run, and the `clean` scores (N, K) stand.
    """
    scores = clean.unsqueeze(1).repeat(1, trials, 1)  # (N, trials, K)
    for rows, numbers, found in chunks(score, len(clean), trials, batch, what, live=live):
        scores[rows.to(scores.device), numbers.to(scores.device)] = found.to(scores)
    return scores


def chunks(
    make: Callable[[Tensor, Tensor], Made],
    count: int,
    trials: int,
    batch: int,
    what: str,
    *,
    live: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Made]]:
    """`(rows, trials, make(rows, trials))` for every sample and trial, `batch` at a time.

    Where memory does not suffice, half as many are tried from there on.
    """
    if live is None:
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(trials)).view(-1, 2)
    else:
        pairs = live.cpu().nonzero()
    # A chunk of one sample needs no copies of what all its passes share; chunks of a few trials would be too small.
    alone = len(pairs) >= batch * count
    start = 0
    with progress(what, len(pairs)) as advance:
        while start < len(pairs):
            let_interrupts_through()
            chunk = pairs[start : start + batch]
            if alone:
                chunk = chunk[chunk[:, 0] == chunk[0, 0]]
            rows, numbers = chunk.unbind(1)
            try:
                made = make(rows, numbers)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                batch = len(chunk) // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield rows, numbers, made
            del made  # before the next is made
            start += len(chunk)
            advance(len(chunk))


def as_dtype(precision: str | None, inputs: Tensor) -> torch.dtype | None:
    """What the passes are autocast to; None for as they are. Raises OptionError for what there is not."""
    if precision is None:
        return None
    if precision != "bfloat16":
        raise OptionError(f"option precision is {precision!r}; allowed: 'bfloat16', or None, which is as the model is")
    if inputs.dtype == torch.float64:
        raise OptionError("precision='bfloat16' is for models in float32: autocast leaves float64 as it is")
    return torch.bfloat16


def check_counts(trials: int, batch: int | None) -> None:
    """Raise InputError unless both are at least 1."""
    if trials < 1 or (batch is not None and batch < 1):
        raise InputError(f"trials is {trials} and batch {batch}; both are at least 1, or batch None for what fits")


def check_changed(made: object, shape: tuple[int, ...]) -> None:
    """Raise InputError unless what a change returned is a tensor of this shape."""
    if not isinstance(made, Tensor) or tuple(made.shape) != shape:
        got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise InputError(f"the change returned {got}; allowed: a tensor of shape {shape}, as it was given")
