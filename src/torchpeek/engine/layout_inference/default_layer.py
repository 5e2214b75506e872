"""Which layer to look at when none is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.layout_inference.dry_run import dry_run, first_sample
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall, compares_texts
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Target, of_samples
from torchpeek.engine.targets.question import has_separate_branches
from torchpeek.errors import NoSpatialLayer, TargetError
from torchpeek.hooks import attached, containers


@dataclass(frozen=True)
class Suggestion:
    """The layer to look at when none is asked for, and why."""

    layer: str
    reason: str


_SUGGESTIONS: ModelCache[tuple[object, ...], Suggestion] = ModelCache()


# So many candidates are tried in one pass, from the last one on: mostly that is it, and a graph over the whole model is
# seldom needed.
_CANDIDATES_PER_PASS = (1, 3, 12)


def suggest_layer(model: nn.Module, call: ModelCall, target: Target | None = None, *, anew: bool = False) -> Suggestion:
    """The last layer with a grid at which the score depends on the positions of the grid.

    Found by a dry pass and one that follows the score back, and remembered unless `anew`. After the last block of a
    transformer that is read by its class token, the score depends on that token alone, so that the layer is an earlier
    one. The score is that of `target`; None is all that the model returns.

    Where several modules return that very tensor, as a block and its last part do, it is the outermost that is not the
    feature extractor as a whole (a module that takes the model's own input); of several outermost the last, so that it
    is the activation rather than the normalisation that it overwrites, but never one that only passes on. Raises
    NoSpatialLayer where no layer has a grid.
    """
    kind = _target_key(target)
    suggestion = _SUGGESTIONS.get(model, kind)
    anew = anew or has_separate_branches(target)
    if suggestion is not None and not anew and suggestion.layer in dict(model.named_modules()):
        return suggestion
    found = dry_run(model, call, anew=anew)
    candidates = found.candidates
    if found.dense or compares_texts(model):
        candidates = _layers_before_head(model, candidates)
    if not candidates:
        raise NoSpatialLayer(
            f"no layer of {type(model).__name__} returns a grid of positions for an input of "
            f"{tuple(call.model_picture.shape)}, be it (N, C, *grid), (N, *grid, C) or tokens (N, T, C), so there is "
            "nothing to lay over the picture; torchpeek layers shows what they return"
        )
    chosen = _last_dependent_layer(model, call, candidates, target)
    reason = "the last layer with a grid before the head"
    if chosen is not candidates[-1]:
        reason = "the last layer at which the score depends on the positions of the grid"
    return _SUGGESTIONS.put(model, kind, Suggestion(chosen.layer, reason))


def _target_key(target: Target | None) -> tuple[object, ...]:
    """What targets of one kind have in common: that the same layers count for them, most likely."""
    reads = (getattr(target, name, None) for name in ("layers", "part", "what", "function"))
    return type(target), *reads


def _layers_before_head(model: nn.Module, candidates: list[CandidateLayer]) -> list[CandidateLayer]:
    """The layers that are looked at where a head answers at each position, which shows where, but not why.

    They are those of the feature extractor, where the model has one of its own (`backbone`, as torchvision's models
    have, CLIP's `vision_model`, or transformers' base model), else those up to the last one with the coarsest grid.
    """
    for name in ("backbone", "vision_model", str(getattr(model, "base_model_prefix", ""))):
        if name and isinstance(getattr(model, name, None), nn.Module):
            inside = [each for each in candidates if each.layer == name or each.layer.startswith(f"{name}.")]
            if inside:
                return inside
    sizes = [math.prod(each.layout.grid) for each in candidates]
    return candidates[: len(sizes) - sizes[::-1].index(min(sizes))] if sizes else []


def suggest_stages(model: nn.Module, call: ModelCall, most: int, target: Target | None = None) -> Sequence[Suggestion]:
    """The layers to look at together: the last outermost one of each of the `most` coarsest sizes of grid.

    None of them comes after the one that `suggest_layer` suggests, and raises as that does.
    """
    last = suggest_layer(model, call, target)
    candidates = dry_run(model, call).candidates
    end = next((number for number, each in enumerate(candidates) if each.layer == last.layer), len(candidates) - 1)
    found: dict[int, str] = {}
    for each in candidates[:end]:
        positions = torch.Size(each.layout.grid).numel()
        if each.layer.count(".") <= found.get(positions, each.layer).count("."):
            found[positions] = each.layer
    found[torch.Size(candidates[end].layout.grid).numel()] = last.layer
    layers = [found[positions] for positions in sorted(found, reverse=True)][-most:]
    return [Suggestion(layer, f"the last layers of the {len(layers)} coarsest sizes of grid") for layer in layers]


def _last_dependent_layer(
    model: nn.Module, call: ModelCall, candidates: list[CandidateLayer], target: Target | None
) -> CandidateLayer:
    """The last candidate with a gradient at some position of its grid; the last of all where there is none anywhere."""
    end = len(candidates)
    for most in chain(_CANDIDATES_PER_PASS, repeat(_CANDIDATES_PER_PASS[-1])):
        tried = candidates[max(0, end - most) : end]
        counts = _score_depends_on(model, call, tried, target) if tried else None
        if counts is None:
            break
        if any(counts):
            return tried[max(number for number, each in enumerate(counts) if each)]
        end -= len(tried)
    return candidates[-1]


def _score_depends_on(
    model: nn.Module, call: ModelCall, candidates: list[CandidateLayer], target: Target | None
) -> list[bool] | None:
    """For each candidate, whether the scores of the first sample depend on its grid. None where one cannot tell."""
    modules = dict(model.named_modules())
    handles: dict[str, Any] = {}

    def keep(each: CandidateLayer, module: nn.Module, args: Any, output: Any) -> Any:
        tensor = dict(containers.leaves(output)).get(each.layout.part)
        if tensor is None or each.layer in handles:
            return None
        if tensor.requires_grad:
            handles[each.layer] = get_gradient_edge(tensor)
            return None
        torch.set_grad_enabled(True)  # for what comes after; `preserved` ends it
        leaf = tensor.detach().clone().requires_grad_()
        handles[each.layer] = leaf
        return containers.with_part(output, each.layout.part, leaf.clone())

    hooks = [(modules[each.layer], partial(keep, each)) for each in candidates]
    with preserved(model):
        with attached(hooks):
            output = run(model, first_sample(call).for_one_pass())
        try:
            with torch.enable_grad():
                scores = _scores_to_follow(output, target)
            if not handles:
                return None
            if not scores.requires_grad:  # nothing after these layers leads to it, or the model keeps no graph there
                return [False] * len(candidates)
            ways: Any = list(handles.values())  # tensors and edges, which torch takes, but not its types
            found = [torch.autograd.grad(each, ways, retain_graph=True, allow_unused=True) for each in scores.unbind()]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a model that has no way back; the trace will say so, if gradients are asked for
            return None
    by_layer = [dict(zip(handles, gradients, strict=True)) for gradients in found]
    return [all(_has_grid_gradient(one.get(each.layer), each.layout) for one in by_layer) for each in candidates]


def _has_grid_gradient(gradient: Tensor | None, layout: Layout) -> bool:
    if gradient is None:
        return False
    return bool(layout.to_grid(gradient.movedim(layout.batch_axis, 0)).any())


def _scores_to_follow(output: Any, target: Target | None) -> Tensor:
    """(n,): what is asked for, each box on its own, else in one; all that the model returns where that is not known."""
    if target is not None:
        try:
            question = of_samples(target, 0, 1).bind(output)
            scores = question(output, torch.tensor([0])).flatten()
            return scores if has_separate_branches(target) else scores.sum().unsqueeze(0)
        except TargetError:  # of a target for all the samples, perhaps; the trace says it if it is wrong
            pass
    total = torch.zeros(())
    for _, tensor in containers.leaves(output):
        if tensor.is_floating_point() and tensor.numel():
            # Weights that no normalisation cancels, and that no symmetry of the output does.
            weights = torch.cos(torch.arange(tensor.numel(), device=tensor.device)).view(tensor.shape)
            total = total + (tensor.float() * weights).sum().cpu()
    return total.unsqueeze(0)
