"""FurtherPass: what one more pass is made with, which asks the question of a clean pass about other inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchpeek.engine.batching import sample_rows
from torchpeek.engine.capture import CaptureRequest
from torchpeek.engine.fixed_batch import batches
from torchpeek.engine.forward_pass import ForwardPass, with_observed_layers
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.targets.question import Bound
from torchpeek.engine.views import PictureView
from torchpeek.errors import InputError
from torchpeek.hooks import layer_at


@dataclass(frozen=True, eq=False)
class FurtherPass:
    """The call of one more pass, what is captured in it, and its question.

    Args:
        call: What the model is called with.
        request: What is captured.
        target: The question of the clean pass, about the samples that the inputs are versions of.
    """

    call: ModelCall
    request: CaptureRequest
    target: Bound

    def filled_up(self, size: int) -> FurtherPass:
        """The same pass over a batch of `size`: the last of its inputs is repeated."""
        [(entries, _)] = batches(size, torch.arange(len(self.call)))
        labels = self.target.question.labels
        question = self.target.question.select(entries.to(labels.device), slice(None))
        return replace(self, call=self.call.select(entries), target=replace(self.target, question=question))


def further_pass(
    clean: ForwardPass,
    view: PictureView | None,
    inputs: Tensor,
    layers: list[str] | None,
    rows: Tensor | None,
    *,
    gradients: bool | None,
) -> FurtherPass:
    """What `Trace.again` makes its pass with.

    Args:
        clean: The clean pass.
        view: Which part of the picture `inputs` are; None for the whole picture.
        inputs: (n, C, *grid).
        layers: The layers to capture; None captures those of the clean pass.
        rows: (n,): which of the N samples each input is a version of; may be left out where n = N.
        gradients: Whether to keep gradients; None does so where the clean pass has them.

    Raises:
        InputError: When `rows` and `inputs` do not fit together, or the inputs of a view have another size.
    """
    clean_inputs = clean.inputs if view is None else view.taken(clean.inputs)
    rows = _checked_rows(rows, len(inputs), len(clean_inputs))
    same_size = inputs.shape[1:] == clean_inputs.shape[1:]
    names = list(clean.captures) if layers is None else layers
    gradients = _has_gradients(clean) if gradients is None else gradients
    request = CaptureRequest(
        {name: layer_at(clean.model, name) for name in names},
        gradients=gradients and (bool(names) or clean.attentions is not None),
        prefix=bool(clean.prefixes),
        attention=clean.attentions is not None,
        layouts={
            name: each.layout if same_size else each.layout.for_other_sizes() for name, each in clean.captures.items()
        },
    )
    question = clean.question.select(rows.to(clean.question.labels.device), slice(None))
    target = Bound(question, tuple(clean.call.observed))
    if view is not None and not same_size:
        raise InputError(f"a view has inputs {tuple(clean_inputs.shape[1:])}; got {tuple(inputs.shape[1:])}")
    picture = inputs if view is None else view.placed(sample_rows(clean.inputs, rows), inputs)
    call = clean.call.select(rows, picture).copied()
    if not same_size:  # the observed layers have other layouts
        call = with_observed_layers(clean.model, call, target)
    return FurtherPass(call, request, target)


def _checked_rows(rows: Tensor | None, input_count: int, count: int) -> Tensor:
    """(n,): which of the `count` samples each input is a version of."""
    if rows is None and input_count != count:
        raise InputError(f"{input_count} inputs for a trace of {count}; rows= says what each is a version of")
    rows = torch.arange(count) if rows is None else rows
    if len(rows) != input_count or bool(((rows < 0) | (rows >= count)).any()):
        raise InputError(f"rows has {len(rows)} entries for {input_count} inputs; one for each, 0 to {count - 1}")
    return rows


def _has_gradients(clean: ForwardPass) -> bool:
    """Whether the pass kept the graph at all that it captured."""
    handles = [each.handle for each in clean.captures.values()]
    handles += [each.handle for each in clean.attentions or ()]
    return bool(handles) and all(each is not None for each in handles)
