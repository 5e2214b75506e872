"""On which layers a score depends: a pass whose graph starts at the candidates, and a backward pass for each score."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import Refusal, attempted, is_of_torch, may_refuse, shown_later
from torchpeek.engine.forward import run
from torchpeek.engine.gradients import Handle, start_graph
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.layout_inference.scales import ScaleLayers, scale_layers
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import weighted_sum
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Question, Target, of_samples
from torchpeek.engine.targets.output_parts import output_tensors
from torchpeek.engine.targets.question import (
    bind_target,
    box_totals,
    has_separate_branches,
    output_part,
    reads_entries,
    scale_grids,
)
from torchpeek.hooks import ForwardHook, attached, containers, layer_at


@dataclass(frozen=True)
class Dependence:
    """On which layers the scores of one sample depend.

    Args:
        layers: The layers on whose grids they depend.
        labels: Where `layers` is about all entries of a tensor: the classes that the target asks for.
        layers_of_labels: The layers on which the scores of these classes depend.
        scales: The layers that boxes of several scales are read from; None for any other score.
        separate_branches: Whether each score has its own branch.
        connected: Whether a path leads from one of the layers to the scores.
    """

    layers: frozenset[str] = frozenset()
    labels: frozenset[int] = frozenset()
    layers_of_labels: frozenset[str] = frozenset()
    scales: ScaleLayers | None = None
    separate_branches: bool = False
    connected: bool = True


def score_dependence(
    model: nn.Module,
    sample: ModelCall,
    candidates: list[CandidateLayer],
    target: Target | None,
    *,
    these_scores: bool,
    hooks: Iterable[tuple[nn.Module, ForwardHook]],
    unaffected: Callable[[], Container[str]],
    scores_of_all: Callable[[], object],
) -> Dependence | None:
    """On the grids of which candidates the scores of the sample depend; None where no gradient exists.

    One forward pass, with these hooks, whose graph starts at the first of the candidates, and a backward pass for each
    score. After it, `unaffected` returns the layers that do not depend on the picture. `scores_of_all` computes the
    scores of all samples.
    """
    handles: dict[str, Handle] = {}

    def take_handle(candidate: CandidateLayer, module: nn.Module, args: Any, output: Any) -> Any:
        tensor = dict(containers.leaves(output)).get(candidate.layout.part)
        if tensor is None or candidate.layer in handles:
            return None
        handles[candidate.layer], continued = start_graph(tensor, tensor.detach().clone())
        return None if continued is tensor else containers.with_part(output, candidate.layout.part, continued)

    taking = [layer_at(model, each.layer).hooked(partial(take_handle, each)) for each in candidates]
    with preserved(model):
        with attached(chain(hooks, taking)):
            output = run(model, sample.for_one_pass())
        with torch.enable_grad():
            question, scores, labels = _scores_to_follow(
                output, target, sample, scores_of_all, these_scores=these_scores
            )
            totals = box_totals(question, output)
        if not handles:
            return None
        if not scores.requires_grad:  # no path leads from these layers to the scores, or one without a graph
            return Dependence(separate_branches=has_separate_branches(question), connected=False)

        def backward() -> tuple[list[tuple[Tensor | None, ...]], ScaleLayers | None]:
            inputs: Any = list(handles.values())  # torch accepts gradient edges, but its type hints do not
            gradients = [
                torch.autograd.grad(one, inputs, retain_graph=True, allow_unused=True) for one in scores.unbind()
            ]
            if not totals:
                return gradients, None
            on_picture = [each for each in candidates if each.layer not in unaffected()]
            return gradients, scale_layers(totals, on_picture, handles, scale_grids(question))

        result = attempted(backward, shown_later, possible=_may_have_no_backward)
        if isinstance(result, Refusal):  # the trace says so if it needs gradients
            return None
        gradients, scales = result
    by_score = [
        {
            each.layer
            for each in candidates
            if _has_grid_gradient(dict(zip(handles, of_score, strict=True)).get(each.layer), each.layout)
        }
        for of_score in gradients
    ]
    if labels:
        of_all, of_labels = map(frozenset, by_score)
        return Dependence(of_all, labels, of_labels)
    layers = frozenset.intersection(*map(frozenset, by_score))
    return Dependence(layers, scales=scales, separate_branches=has_separate_branches(question))


def _may_have_no_backward(error: Exception) -> bool:
    return may_refuse(error) and isinstance(error, RuntimeError) and is_of_torch(error)


def _has_grid_gradient(gradient: Tensor | None, layout: Layout) -> bool:
    """Whether a gradient is not zero at some position of the grid."""
    if gradient is None:
        return False
    return bool(layout.to_grid(layout.samples_first(gradient)).any())


def _scores_to_follow(
    output: Any, target: Target | None, sample: ModelCall, scores_of_all: Callable[[], object], *, these_scores: bool
) -> tuple[Question | None, Tensor, frozenset[int]]:
    """The question, (n,): the scores of the first sample, and class labels.

    One score for each box of a detector, otherwise one in all. For a target that reads entries of one tensor, such as
    class logits, a sum over all entries of that tensor, so that every class has the same layer; then the score of the
    target's own classes, and these classes. Without a target, or where it does not fit one sample, a sum over
    everything that the model returned.
    """
    question = None
    if target is not None:

        def of_target() -> tuple[Question, Tensor]:
            question = bind_target(of_samples(target, 0, 1), output, sample.picture.shape)
            return question, question(output, torch.tensor([0])).flatten()

        result = attempted(of_target, scores_of_all)  # the target may be for all samples together
        if not isinstance(result, Refusal):
            question, scores = result
    if question is None:
        return None, weighted_sum(tensor for _, tensor in containers.leaves(output)).unsqueeze(0), frozenset()
    if has_separate_branches(question):
        return question, scores, frozenset()
    tensor = output_tensors(output).get(output_part(question))
    if these_scores or not reads_entries(question) or tensor is None:
        return question, scores.sum().unsqueeze(0), frozenset()
    labels = frozenset(question.labels.flatten().tolist())
    return question, torch.stack([weighted_sum([tensor]), scores.sum().cpu().float()]), labels
