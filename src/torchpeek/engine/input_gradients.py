"""Gradients of all scores with respect to changed inputs, plain or guided, in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.batching import Change, check_changed, check_counts, chunk_size, chunks, sample_rows
from torchpeek.engine.fixed_batch import batches, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass, batch_statistics_layer
from torchpeek.engine.gradients import score_gradients
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import preserved
from torchpeek.engine.rectifiers import rectifiers_between
from torchpeek.engine.views import PictureView
from torchpeek.errors import NotConnected
from torchpeek.hooks import edited_gradients

Reduce: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `reduce(gradients (b, k, C, *grid), rows (b,), trials (b,))` for k of the K scores; returns (b, k, ...)."""

# The memory for the gradients of as many scores as are reduced at once.
_BYTES = 128 * 2**20
# The memory of one backward pass from the scores to the input, as a multiple of the input.
_MEMORY_MULTIPLE = 16


def input_gradient_chunks(
    forward_pass: ForwardPass,
    change: Change,
    trials: int,
    reduce: Reduce,
    *,
    guided: bool = False,
    view: PictureView | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Compute the gradients of all K scores with respect to changed inputs, and reduce them chunk by chunk.

    Args:
        forward_pass: The clean pass.
        change: Called as `change(inputs (b, C, *grid), rows (b,), trials (b,))`, as for `Trace.rescore`.
        trials: How many changed versions there are of each sample.
        reduce: Called with the gradients, at least float32; what it returns is kept in their place.
        guided: Whether negative gradients are set to zero where they arrive at a ReLU (arXiv:1412.6806).
        view: The part of the picture that the inputs are; None for the whole picture.

    Yields:
        (rows (b,), trials (b,), reduced (b, K, ...)).

    Raises:
        InputError: When `trials` is below 1, or `change` returns another shape.
        NotConnected: When a score does not depend on the input.
        MethodNotApplicable: When `guided`, and there is no ReLU.
    """
    check_counts(trials, None)
    model, picture = forward_pass.model, forward_pass.inputs
    inputs = picture if view is None else view.taken(picture)

    def reduced(rows: Tensor, trial_numbers: Tensor) -> Tensor:
        changed = change(sample_rows(inputs, rows).clone(), rows, trial_numbers)
        check_changed(changed, (len(rows), *inputs.shape[1:]))

        def of_batches(size: int | None) -> list[Tensor]:
            return [
                of_batch(changed[entries.to(changed.device)], rows[entries], trial_numbers[entries])[:count]
                for entries, count in batches(size, rows)
            ]

        return torch.cat(with_fixed_batch(model, forward_pass.call, of_batches))

    def of_batch(changed: Tensor, rows: Tensor, trial_numbers: Tensor) -> Tensor:
        leaf = changed.detach().clone()
        with preserved(model):
            with forward_pass.autocast_context(), torch.enable_grad():
                leaf.requires_grad_()
                whole = leaf.clone() if view is None else view.placed(sample_rows(picture, rows), leaf)
                call = forward_pass.call.select(rows, whole.detach()).for_one_pass(whole)
                scores = forward_pass.question(run(model, call), rows)  # (b, K)
            nodes = rectifiers_between(_connected(scores), leaf) if guided else []
            parts = []
            with edited_gradients(nodes, lambda gradient: gradient.clamp(min=0)) if guided else nullcontext():
                for columns in torch.split(torch.arange(scores.shape[1]), max(1, _BYTES // max(1, leaf.nbytes))):
                    with torch.enable_grad():
                        of_columns = scores[:, columns[0] : columns[-1] + 1]
                    [gradient] = score_gradients(of_columns, [leaf], leaf.nbytes * _MEMORY_MULTIPLE)
                    if gradient is None:
                        raise NotConnected(_NOT_CONNECTED)
                    with torch.no_grad():
                        parts.append(reduce(at_least_float32(gradient).movedim(0, 1), rows, trial_numbers))
        return torch.cat(parts, dim=1)

    batch = 1 if batch_statistics_layer(model) else max(1, chunk_size(picture[:1]) // 2)
    yield from chunks(reduced, len(inputs), trials, batch, "changed inputs")


_NOT_CONNECTED = (
    "the score does not depend on the input: no gradient flows back to it. The model detaches it, or runs a part under "
    "torch.no_grad() or inference_mode(). Choose a method that needs no gradients, such as occlusion or rise"
)


def _connected(scores: Tensor) -> Tensor:
    if not scores.requires_grad:
        raise NotConnected(_NOT_CONNECTED)
    return scores
