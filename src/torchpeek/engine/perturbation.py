"""Scores and gradients of changed inputs, by whole passes in chunks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchpeek.engine.batching import (
    Change,
    as_dtype,
    check_changed,
    check_counts,
    chunk_size,
    sample_rows,
    score_chunks,
)
from torchpeek.engine.fixed_batch import batches, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass, batch_statistics_layer
from torchpeek.engine.gradients import NOT_CONNECTED_TO_INPUT
from torchpeek.engine.memory_format import fastest_format, in_memory_format
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets.question import scores_of
from torchpeek.engine.views import PictureView
from torchpeek.errors import NotConnected

# How many bytes the gradients at the layers may take in one chunk of changed inputs.
_GRADIENT_BYTES = 256 * 2**20


def rescore(
    forward_pass: ForwardPass,
    change: Change,
    trials: int,
    *,
    live: Tensor | None = None,
    batch: int | None = None,
    precision: str | None = None,
    view: PictureView | None = None,
) -> Tensor:
    """(N, trials, K): scores with the inputs changed. The arguments are those of `Trace.rescore`.

    With a `view`, the inputs are that part of the picture.
    """
    check_counts(trials, batch)
    model, picture = forward_pass.model, forward_pass.inputs
    inputs = picture if view is None else view.taken(picture)
    batch = 1 if batch_statistics_layer(model) else batch or chunk_size(picture[:1])
    dtype = as_dtype(precision, inputs)
    autocast = forward_pass.autocast_context(dtype)

    def score(rows: Tensor, trial_numbers: Tensor) -> Tensor:
        changed = change(sample_rows(inputs, rows).clone(), rows, trial_numbers)
        check_changed(changed, (len(rows), *inputs.shape[1:]))
        changed = changed if view is None else view.placed(sample_rows(picture, rows), changed)
        with autocast:
            memory_format = fastest_format(model, forward_pass.call, half=dtype is not None)
        in_batches = partial(score_in_batches, changed, rows, memory_format)
        return with_fixed_batch(model, forward_pass.call, in_batches)

    def score_in_batches(changed: Tensor, rows: Tensor, memory_format: torch.memory_format, size: int | None) -> Tensor:
        parts = []
        for entries, count in batches(size, rows):
            call = forward_pass.call.select(rows[entries], changed if size is None else changed[entries])
            with autocast:
                output = run(model, in_memory_format(call, memory_format))
            parts.append(scores_of(forward_pass.question, output, rows[entries])[:count])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    with preserved(model):
        return score_chunks(score, forward_pass.scores, trials, live, batch, "changed inputs")


def input_gradients(
    forward_pass: ForwardPass, inputs: Tensor, rows: Tensor, columns: Tensor, view: PictureView | None = None
) -> tuple[Tensor, Tensor]:
    """Scores (n,) of changed inputs (n, ...), and the gradient (n, ...) of each with respect to its input.

    Args:
        inputs: (n, C, *grid).
        rows: (n,): inputs[i] is a version of sample rows[i].
        columns: (n,): its score is score columns[i] of the K.
        view: The part of the picture that the inputs are; None for the whole picture.

    Raises:
        NotConnected: When no gradient flows back to the input.
    """
    model = forward_pass.model

    def of_batch(entries: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        own = rows[entries]
        leaf = inputs.detach()[entries.to(inputs.device)].requires_grad_()  # indices make a copy
        whole = leaf.clone() if view is None else view.placed(sample_rows(forward_pass.inputs, own), leaf)
        call = forward_pass.call.select(own, whole.detach()).for_one_pass(whole)
        scores = scores_of(forward_pass.question, run(model, call), own)  # (n, K)
        selected = scores.gather(1, columns[entries].to(scores.device).unsqueeze(1)).squeeze(1)[:count]  # (n,)
        gradient = None
        if selected.requires_grad:
            (gradient,) = torch.autograd.grad(selected.sum(), leaf, allow_unused=True)
        return selected.detach(), None if gradient is None else gradient[:count]

    def of_batches(size: int | None) -> list[tuple[Tensor, Tensor | None]]:
        return [of_batch(*batch) for batch in batches(size, rows)]

    with preserved(model), forward_pass.autocast_context(), torch.enable_grad():
        parts = with_fixed_batch(model, forward_pass.call, of_batches)
    gradients = [gradient for _, gradient in parts if gradient is not None]
    if len(gradients) < len(parts):
        raise NotConnected(NOT_CONNECTED_TO_INPUT)
    return torch.cat([scores for scores, _ in parts]), torch.cat(gradients)


def gradient_batch_size(forward_pass: ForwardPass) -> int:
    """How many changed inputs one pass takes where the gradients of all K scores at the layers are kept."""
    if batch_statistics_layer(forward_pass.model):
        return 1
    captures = forward_pass.captures.values()
    largest = max((capture.activation[:1].nbytes for capture in captures), default=1)
    fitting = _GRADIENT_BYTES // max(1, largest * forward_pass.question.labels.shape[1])
    return max(1, min(chunk_size(forward_pass.inputs[:1]) // 2, fitting))
