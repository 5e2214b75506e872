"""Scores with the layer's output changed: by replay of what comes after the layer, else by whole passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.batching import (
    Change,
    check_changed,
    check_counts,
    chunk_size,
    sample_rows,
    score_chunks,
)
from torchpeek.engine.capture import CaptureRequest
from torchpeek.engine.fixed_batch import batches, fixed_batch_size, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass, batch_statistics_layer, run_clean_pass
from torchpeek.engine.layout_inference.input_dependence import changed_picture
from torchpeek.engine.observed import counted_from_end
from torchpeek.engine.preserve import preserved
from torchpeek.engine.replay.prefix import PrefixRecording
from torchpeek.engine.replay.suffix import Replay, ReplayMismatch, Suffix, replayed, returning
from torchpeek.engine.replay.validation import overwritten_outputs, refusal, refuse_replay, validated_replay
from torchpeek.engine.targets.output_parts import output_tensors
from torchpeek.engine.targets.question import Bound, RowCountMismatch, output_part, scores_of
from torchpeek.errors import AmbiguousCall, notify
from torchpeek.hooks import attached, call_name, layer_at, replaced


def ablate(
    forward_pass: ForwardPass,
    layer: str,
    change: Change,
    trials: int,
    *,
    live: Tensor | None = None,
    batch: int | None = None,
) -> Tensor:
    """(N, trials, K): scores with the output of `layer` changed. The other arguments are those of `Trace.ablate`.

    What comes before the layer ran once, in the clean pass. Where a replay would not return what whole passes return,
    whole passes run, with a notice.
    """
    check_counts(trials, batch)
    model, call = forward_pass.model, forward_pass.call
    selected, capture = forward_pass.layers[layer], forward_pass.captures[layer]
    layout, returned = capture.layout, capture.returned.detach()
    activation = layout.to_grid(returned)
    label = f"changes of {layer}"

    def changed_output(rows: Tensor, trial_numbers: Tensor) -> Tensor:
        changed = change(sample_rows(activation, rows).clone(), rows, trial_numbers)
        check_changed(changed, (len(rows), *activation.shape[1:]))
        return layout.from_grid(changed.to(activation.dtype), sample_rows(returned, rows))

    def by_whole_pass(rows: Tensor, trial_numbers: Tensor) -> Tensor:
        return with_fixed_batch(model, call, partial(in_whole_passes, changed_output(rows, trial_numbers), rows))

    def in_whole_passes(changed: Tensor, rows: Tensor, size: int | None) -> Tensor:
        parts = [
            score_changed(changed[entries.to(changed.device)], rows[entries])[:count]
            for entries, count in batches(size, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def score_changed(changed: Tensor, rows: Tensor) -> Tensor:
        calls = 0

        def count_call(*hook_arguments: Any) -> None:
            nonlocal calls
            calls += 1

        change_output = selected.hooked(returning(changed, layout))
        with attached([change_output, (selected.module, count_call)]):
            output = run(model, call.select(rows).for_one_pass())
        if calls != selected.total:
            raise AmbiguousCall(
                f"a pass of {len(rows)} samples calls {selected.path!r} {calls} times, but the trace of {len(call)} "
                f"called it {selected.total} times, so {selected.name!r} is not the same call in both. Next: choose a "
                "layer that is called as often whatever the batch, or a method that does not change the layer's output"
            )
        return scores_of(forward_pass.question, output, rows)

    batch = 1 if batch_statistics_layer(model) else batch
    with preserved(model), forward_pass.autocast_context():
        try:
            largest = batch or chunk_size(activation[:1], suffix=True)
            size, replay = _replay_in_memory(forward_pass, layer, largest, trials)

            def by_replay(rows: Tensor, trial_numbers: Tensor) -> Tensor:
                changed = changed_output(rows, trial_numbers)
                return replayed(
                    lambda: scores_of(forward_pass.question, replay.output(changed, rows), rows),
                    partial(in_whole_passes, changed, rows, len(call)),
                )

            return score_chunks(by_replay, forward_pass.scores, trials, live, size, label)
        except ReplayMismatch as error:
            reason = str(error)
        except RowCountMismatch:
            reason = "is not possible: the model returns another number of rows than it has samples"
        notify(f"whole passes for each change of {layer!r}, as a replay of what comes after it {reason}")
        most = batch or chunk_size(call.picture[:1])
        scores = score_chunks(by_whole_pass, forward_pass.scores, trials, live, most, label)
        refuse_replay(model, selected, call, reason)  # only now: the model itself did not fail
    return scores


def dependent_classes(forward_pass: ForwardPass, layer: str) -> frozenset[int]:
    """The classes whose score depends on the grid of `layer`: one pass with other values there, of all classes at once.

    The question reads its scores from a tensor (N, classes, ...) of the output.
    """
    model, call, question = forward_pass.model, forward_pass.call, forward_pass.question
    capture, selected = forward_pass.captures[layer], forward_pass.layers[layer]
    changed = capture.layout.from_grid(changed_picture(capture.activation.detach()), capture.returned.detach())
    change = attached([selected.hooked(returning(changed, capture.layout))])
    with preserved(model), forward_pass.autocast_context(), change:
        output = run(model, call.for_one_pass())
    before, after = (output_tensors(each).get(output_part(question)) for each in (forward_pass.output, output))
    if before is None or after is None or before.shape != after.shape:
        return frozenset(question.labels.flatten().tolist())  # nothing is known of such an output
    differs = (before != after).movedim(1, 0).flatten(1).any(1)  # (classes,)
    return frozenset(differs.nonzero().flatten().tolist())


def scores_after_layer(forward_pass: ForwardPass, layer: str) -> Callable[[Any], Tensor]:
    """A function from what `layer` returns, with a graph, to the scores (N, K).

    Of a layer that is called several times, such as one block for all depths, it is the last call. Use it while the
    model is `preserved` and in the pass's autocast context. What comes after the layer is replayed, or, where that
    would differ, whole passes run.
    """
    question, rows = forward_pass.question, torch.arange(len(forward_pass.call))
    target = Bound(question, tuple(forward_pass.call.observed))
    layer = layer and call_name(layer, -1)  # "" is the model itself, which has no calls
    request = CaptureRequest({layer: layer_at(forward_pass.model, layer)}, gradients=False, prefix=True)
    recorded = run_clean_pass(forward_pass.model, forward_pass.call, request, target, forward_pass.origin)
    selected, layout, replay = recorded.layers[layer], recorded.captures[layer].layout, None
    with suppress(ReplayMismatch):
        _, replay = _replay_in_memory(recorded, layer, len(rows), 1)

    def scores(output: Any) -> Tensor:
        nonlocal replay
        if replay is not None:
            of_replay, by_whole_pass = replay.output, partial(in_whole_pass, output)
            with suppress(ReplayMismatch):
                return replayed(lambda: question(of_replay(layout.taken(output), rows), rows), by_whole_pass)
            replay = None
        return in_whole_pass(output)

    def in_whole_pass(output: Any) -> Tensor:
        def return_output(module: Any, args: Any, own: Any) -> Any:
            torch.set_grad_enabled(True)  # what comes before needs no graph
            return output

        with torch.no_grad(), attached([selected.hooked(return_output)]):
            return question(run(forward_pass.model, forward_pass.call.for_one_pass()), rows)

    return scores


def _replay_in_memory(forward_pass: ForwardPass, layer: str, size: int, trials: int) -> tuple[int, Replay]:
    """The largest batch size that fits into memory, up to `size`, and a replay that is validated for it.

    Raises:
        ReplayMismatch: When a replay is wrong.
    """
    model, call, capture = forward_pass.model, forward_pass.call, forward_pass.captures[layer]
    selected = forward_pass.layers[layer]
    if reason := refusal(model, selected, call):
        raise ReplayMismatch(reason)
    if only := fixed_batch_size(model, call):
        raise ReplayMismatch(f"is not possible: the model takes batches of {only} only")
    prefix = _prefix(forward_pass, layer)
    call = replace(call, observed=counted_from_end(forward_pass.output))
    suffix = Suffix(model, selected, capture.layout, call, prefix, capture.returned.detach())
    while True:
        batch = min(size, trials * len(call))
        replay = attempted(
            partial(validated_replay, suffix, forward_pass.question, batch),
            suffix.whole_pass,
            possible=lambda error: isinstance(error, torch.OutOfMemoryError),
        )
        if not isinstance(replay, Refusal):
            break
        if batch == 1:  # a whole pass of two or three samples is part of it
            raise ReplayMismatch("does not fit into memory")
        size = batch // 2
    if not prefix.confirmed:
        replay.confirm(forward_pass.output, forward_pass.question)
        prefix.confirmed = True
    return size, replay


def _prefix(forward_pass: ForwardPass, layer: str) -> PrefixRecording:
    """The recording of what ran before the layer: from the clean pass, or else from one more. Raises ReplayMismatch."""
    if layer not in forward_pass.prefixes:
        forward_pass.prefixes[layer] = _record_prefix(forward_pass, layer)
    return forward_pass.prefixes[layer]


def _record_prefix(forward_pass: ForwardPass, layer: str) -> PrefixRecording:
    model, call, selected = forward_pass.model, forward_pass.call, forward_pass.layers[layer]
    with preserved(model):
        # A second time, with copies of everything, where a pass overwrites an output that earlier passes left alone.
        for overwritten in (overwritten_outputs(model, selected, call), None):
            recording = PrefixRecording(len(call), overwritten)
            hooks = [selected.hooked(recording.stop)]
            with forward_pass.autocast_context(), replaced(recording.recording_forwards(model)), attached(hooks):
                run(model, call.for_one_pass())
            if (complete := recording.complete()) is not None:
                return complete
    raise ReplayMismatch("is not possible: the model overwrites what it returned")
