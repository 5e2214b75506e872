"""Choose the layer to explain when none is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.fixed_batch import fixed_batch_size
from torchpeek.engine.forward import run
from torchpeek.engine.gradients import Handle, start_graph
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.layout_inference.dry_run import dry_run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.model_config import compares_texts, feature_extractors
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Target, of_samples
from torchpeek.engine.targets.question import has_separate_branches
from torchpeek.errors import NoSpatialLayer, TargetError
from torchpeek.hooks import attached, containers


@dataclass(frozen=True)
class Suggestion:
    """The layer to explain when none is named, and the reason for it.

    Args:
        layer: The layer's name.
        reason: Why it was chosen, for the provenance.
    """

    layer: str
    reason: str


# By the kind of target. A model keeps its layer for inputs of another size.
_SUGGESTIONS: ModelCache[tuple[object, ...], Suggestion] = ModelCache()

# How many candidates each pass checks, from the last one back. The last candidate is most often the right one, and a
# graph over the whole model is seldom needed.
_CANDIDATES_PER_PASS = (1, 3, 12)

# The fields of a target on which the layer may depend. Its class indices are not among them.
_TARGET_FIELDS = ("layers", "part", "what", "function")


def suggest_layer(model: nn.Module, call: ModelCall, target: Target | None = None, *, anew: bool = False) -> Suggestion:
    """The last layer with a grid such that the score depends on the positions of that grid.

    A dry run finds the layers with a grid, and a backward pass checks the dependence. In a transformer that is read by
    its class token, the score depends on no grid position after the last block, so the layer is an earlier one.

    Of several layers that return the same tensor, such as a block and its last layer, it is the outermost, but not the
    whole feature extractor, which takes the model's own input. Of several outermost ones it is the last: an activation
    that works in place, not the norm before it. A layer that only passes its input through is never chosen.

    Args:
        model: The model.
        call: What it is called with. Only the first sample is used.
        target: The score. None stands for everything that the model returns.
        anew: Whether to ignore what is remembered from earlier calls.

    Raises:
        NoSpatialLayer: When no layer has a grid.
    """
    key = _target_key(target)
    remembered = _SUGGESTIONS.get(model, key)
    anew = anew or has_separate_branches(target)
    if remembered is not None and not anew and remembered.layer in dict(model.named_modules()):
        return remembered
    dry = dry_run(model, call, anew=anew)
    candidates = dry.candidates
    if dry.dense or compares_texts(model):
        candidates = _layers_before_head(model, candidates)
    if not candidates:
        raise NoSpatialLayer(
            f"no layer of {type(model).__name__} returns a grid of positions for an input of "
            f"{tuple(call.model_picture.shape)}. A heatmap needs a layer that returns (N, C, *grid), (N, *grid, C) or "
            "tokens, such as (N, T, C); torchpeek layers lists what each layer returns"
        )
    candidate = _last_dependent_layer(model, call, candidates, target)
    reason = "the last layer with a grid before the head"
    if candidate is not candidates[-1]:
        reason = "the last layer at which the score depends on the positions of the grid"
    return _SUGGESTIONS.put(model, key, Suggestion(candidate.layer, reason))


def suggest_stages(model: nn.Module, call: ModelCall, most: int, target: Target | None = None) -> Sequence[Suggestion]:
    """The layers to fuse: for each of the `most` coarsest sizes of grid, the last of the outermost layers.

    No layer comes after the one that `suggest_layer` returns, which is the last of them.

    Raises:
        NoSpatialLayer: When no layer has a grid.
    """
    last = suggest_layer(model, call, target)
    candidates = dry_run(model, call).candidates
    end = next((index for index, each in enumerate(candidates) if each.layer == last.layer), len(candidates) - 1)
    layer_by_size: dict[int, str] = {}
    for each in candidates[:end]:
        positions = torch.Size(each.layout.grid).numel()
        if each.layer.count(".") <= layer_by_size.get(positions, each.layer).count("."):
            layer_by_size[positions] = each.layer
    layer_by_size[torch.Size(candidates[end].layout.grid).numel()] = last.layer
    layers = [layer_by_size[positions] for positions in sorted(layer_by_size, reverse=True)][-most:]
    return [Suggestion(layer, f"the last layers of the {len(layers)} coarsest sizes of grid") for layer in layers]


def _target_key(target: Target | None) -> tuple[object, ...]:
    """The same for all targets whose scores are likely to depend on the same layers."""
    return type(target), *(getattr(target, name, None) for name in _TARGET_FIELDS)


def _layers_before_head(model: nn.Module, candidates: list[CandidateLayer]) -> list[CandidateLayer]:
    """The candidates of the feature extractor, or up to the last one with the coarsest grid if the model names none.

    A head that predicts something for each position shows where the class is, but not what decided.
    """
    for name in feature_extractors(model):
        inside = [each for each in candidates if each.layer == name or each.layer.startswith(f"{name}.")]
        if inside:
            return inside
    sizes = [math.prod(each.layout.grid) for each in candidates]
    return candidates[: len(sizes) - sizes[::-1].index(min(sizes))] if sizes else []


def _last_dependent_layer(
    model: nn.Module, call: ModelCall, candidates: list[CandidateLayer], target: Target | None
) -> CandidateLayer:
    """The last candidate on whose grid the scores depend; the last of all where there is none or no backward pass."""
    end = len(candidates)
    for most in chain(_CANDIDATES_PER_PASS, repeat(_CANDIDATES_PER_PASS[-1])):
        checked = candidates[max(0, end - most) : end]
        dependent = _score_depends_on(model, call, checked, target) if checked else None
        if dependent is None:
            break
        if any(dependent):
            return checked[max(index for index, each in enumerate(dependent) if each)]
        end -= len(checked)
    return candidates[-1]


def _score_depends_on(
    model: nn.Module, call: ModelCall, candidates: list[CandidateLayer], target: Target | None
) -> list[bool] | None:
    """For each candidate, whether the scores of the first sample depend on its grid; None where no gradient exists.

    One forward pass, whose graph starts at the first of the candidates, and a backward pass for each score.
    """
    modules = dict(model.named_modules())
    handles: dict[str, Handle] = {}

    def take_handle(candidate: CandidateLayer, module: nn.Module, args: Any, output: Any) -> Any:
        tensor = dict(containers.leaves(output)).get(candidate.layout.part)
        if tensor is None or candidate.layer in handles:
            return None
        handles[candidate.layer], continued = start_graph(tensor, tensor.detach().clone())
        return None if continued is tensor else containers.with_part(output, candidate.layout.part, continued)

    hooks = [(modules[each.layer], partial(take_handle, each)) for each in candidates]
    with preserved(model):
        with attached(hooks):
            output = run(model, call.one_sample(fixed_batch_size(model, call)).for_one_pass())
        try:
            with torch.enable_grad():
                scores = _scores_to_follow(output, target)
            if not handles:
                return None
            if not scores.requires_grad:  # no path leads from these layers to the scores, or one without a graph
                return [False] * len(candidates)
            inputs: Any = list(handles.values())  # torch accepts gradient edges, but its type hints do not
            gradients = [
                torch.autograd.grad(one, inputs, retain_graph=True, allow_unused=True) for one in scores.unbind()
            ]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # the model has no backward pass; the trace says so if it needs gradients
            return None
    by_score = [dict(zip(handles, of_score, strict=True)) for of_score in gradients]
    return [
        all(_has_grid_gradient(of_score.get(each.layer), each.layout) for of_score in by_score) for each in candidates
    ]


def _has_grid_gradient(gradient: Tensor | None, layout: Layout) -> bool:
    """Whether a gradient is not zero at some position of the grid."""
    if gradient is None:
        return False
    return bool(layout.to_grid(gradient.movedim(layout.batch_axis, 0)).any())


def _scores_to_follow(output: Any, target: Target | None) -> Tensor:
    """(n,): the scores of the first sample; one for each box of a detector, otherwise one in all.

    Without a target, or where the target does not fit one sample, a weighted sum of everything that the model returned.
    """
    if target is not None:
        try:
            question = of_samples(target, 0, 1).bind(output)
            scores = question(output, torch.tensor([0])).flatten()
            return scores if has_separate_branches(target) else scores.sum().unsqueeze(0)
        except TargetError:  # the target may be for all samples together; the trace raises if it is wrong
            pass
    total = torch.zeros(())
    for _, tensor in containers.leaves(output):
        if tensor.is_floating_point() and tensor.numel():
            # Weights that do not cancel by a normalisation or a symmetry of the output.
            weights = torch.cos(torch.arange(tensor.numel(), device=tensor.device)).view(tensor.shape)
            total = total + (tensor.float() * weights).sum().cpu()
    return total.unsqueeze(0)
