"""What every layer returns, by one dry pass, how it is to be read, and which layer to look at."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.engine.declared import declared, declared_grids, declared_queries
from torchpeek.engine.forward import run
from torchpeek.engine.given import Given, as_given, compares_texts
from torchpeek.engine.guard import as_found
from torchpeek.engine.layouts import Layout, described
from torchpeek.engine.readings import Seen, channels_of, grid_of, is_mixed, linear_widths, readings, without_attention
from torchpeek.engine.targets import Target, of_samples
from torchpeek.errors import NoSpatialLayer, TargetError
from torchpeek.hooks import attached, nested


@dataclass(frozen=True)
class LayerCall:
    """One layer in a dry pass: what it is, and what it returned in its last call."""

    name: str
    type: str
    parameters: int  # with those of the layers in it
    calls: int = 0
    output: str | None = None  # shape, or what else it was; None where it was not called


@dataclass(frozen=True)
class Suggestion:
    """The layer to look at when none is asked for, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class _Candidate:
    """The best of the layers that returned one and the same tensor with a grid."""

    layer: str
    layout: Layout
    projection: bool  # whether it is a linear layer, inside of something: queries, keys, hidden units


# A model is surveyed once for each size of input; forgotten with the model.
_SURVEYS: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Survey]] = weakref.WeakKeyDictionary()
_SUGGESTED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Suggestion]] = weakref.WeakKeyDictionary()

# So many candidates are tried in one pass, from the last one on: mostly that is it, and a graph over the whole model is
# seldom needed.
_TRIED = (1, 3, 12)

# Of so many sizes of input a model's surveys are kept.
_SIZES = 16


def survey(model: nn.Module, inputs: Tensor | Given | None) -> tuple[list[LayerCall], Suggestion | None]:
    """Every layer, in the order of `named_modules`, and the one to look at.

    With `inputs`, what a pass over the first sample returns; without, neither shapes nor a suggestion. No suggestion
    either where no layer has a grid.
    """
    found, suggestion = None, None
    if inputs is not None:
        given = as_given(model, inputs)
        found = _surveyed(model, given, anew=True)
        try:
            suggestion = suggest_layer(model, given, anew=True)
        except NoSpatialLayer:
            suggestion = None
    calls = [
        LayerCall(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters()),
            found.calls.get(name, 0) if found else 0,
            found.outputs.get(name) if found else None,
        )
        for name, module in model.named_modules()
        if name
    ]
    return calls, suggestion


def what_is_seen(model: nn.Module, given: Given) -> Seen:
    """What a dry pass over the first sample shows of the model's grids, for as many samples as are given."""
    return replace(_surveyed(model, given).seen, count=len(given))


def seen_before(model: nn.Module, given: Given) -> Seen | None:
    """The same, without a pass: None where there was none yet."""
    known = _SURVEYS.get(model, {}).get(_key(given))
    return None if known is None else replace(known.seen, count=len(given))


def layout_of(model: nn.Module, given: Given, layer: str) -> Layout | None:
    """How what a layer returns is to be read, by a dry pass; None where it has no grid, or not one for certain."""
    found = _surveyed(model, given)
    if layer not in found.seen.returned:
        return None
    layouts = readings(dict(model.named_modules())[layer], found.seen.returned[layer], found.seen)
    return layouts[0] if len(layouts) == 1 else None


def suggest_layer(
    model: nn.Module, inputs: Tensor | Given, target: Target | None = None, *, anew: bool = False
) -> Suggestion:
    """The last layer with a grid at which the score depends on the positions of the grid.

    Found by a dry pass and one that follows the score back, and remembered unless `anew`. After the last block of a
    transformer that is read by its class token, the score depends on that token alone, so that the layer is an earlier
    one. The score is that of `target`; None is all that the model returns.

    Where several modules return that very tensor, as a block and its last part do, it is the outermost that is not the
    feature extractor as a whole (a module that takes the model's own input); of several outermost the last, so that it
    is the activation rather than the normalisation that it overwrites, but never one that only passes on. Raises
    NoSpatialLayer where no layer has a grid.
    """
    known, kind = _SUGGESTED.setdefault(model, {}), _kind(target)
    suggestion = known.get(kind)
    # Of a detector each box hangs on a branch of its own.
    anew = anew or _is_of_boxes(target)
    if suggestion is not None and not anew and suggestion.layer in dict(model.named_modules()):
        return suggestion
    given = as_given(model, inputs)
    found = _surveyed(model, given, anew=anew)
    candidates = found.candidates
    if found.dense or compares_texts(model):
        candidates = _before_the_head(model, candidates)
    if not candidates:
        raise NoSpatialLayer(
            f"no layer of {type(model).__name__} returns a grid of positions for an input of "
            f"{tuple(given.picture.shape)}, be it (N, C, *grid), (N, *grid, C) or tokens (N, T, C), so there is "
            "nothing to lay over the picture; torchpeek layers shows what they return"
        )
    chosen = _last_that_counts(model, given, candidates, target)
    reason = "the last layer with a grid before the head"
    if chosen is not candidates[-1]:
        reason = "the last layer at which the score depends on the positions of the grid"
    known[kind] = suggestion = Suggestion(chosen.layer, reason)
    return suggestion


def _is_of_boxes(target: Target | None) -> bool:
    return hasattr(target, "least_iou")


def _kind(target: Target | None) -> tuple[object, ...]:
    """What targets of one kind have in common: that the same layers count for them, most likely."""
    reads = (getattr(target, name, None) for name in ("layers", "part", "what", "function"))
    return type(target), *reads


def _before_the_head(model: nn.Module, candidates: list[_Candidate]) -> list[_Candidate]:
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


def suggest_stages(
    model: nn.Module, inputs: Tensor | Given, most: int, target: Target | None = None
) -> Sequence[Suggestion]:
    """The layers to look at together: the last outermost one of each of the `most` coarsest sizes of grid.

    None of them comes after the one that `suggest_layer` suggests, and raises as that does.
    """
    given = as_given(model, inputs)
    last = suggest_layer(model, given, target)
    candidates = _surveyed(model, given).candidates
    end = next((number for number, each in enumerate(candidates) if each.layer == last.layer), len(candidates) - 1)
    found: dict[int, str] = {}
    for each in candidates[:end]:
        positions = torch.Size(each.layout.grid).numel()
        if each.layer.count(".") <= found.get(positions, each.layer).count("."):
            found[positions] = each.layer
    found[torch.Size(candidates[end].layout.grid).numel()] = last.layer
    layers = [found[positions] for positions in sorted(found, reverse=True)][-most:]
    return [Suggestion(layer, f"the last layers of the {len(layers)} coarsest sizes of grid") for layer in layers]


@dataclass(frozen=True, eq=False)
class _Survey:
    """What one dry pass showed; no tensors."""

    calls: Mapping[str, int]
    outputs: Mapping[str, str]
    seen: Seen
    candidates: list[_Candidate]  # in the order in which they returned
    dense: bool  # whether the model answers at each position of a grid, or for boxes


class _Watch:
    """What the hooks of a dry pass note."""

    def __init__(self, given: Given, model: nn.Module) -> None:
        self._given = given
        self._model = model
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self._returned: dict[str, Any] = {}
        self._returned_by: list[list[str]] = []  # for each tensor: all that returned it, innermost first
        self._returned_last: list[int] = []  # and when the last of them did
        self._clock = count()
        self._take_input: set[str] = set()
        self._grids: dict[tuple[int, ...], None] = {}
        self._first: set[tuple[int, ...]] = set()
        self._last: set[tuple[int, ...]] = set()
        # The latest tensors, how often each had been written into, and its number in the list above.
        self._latest: deque[tuple[Tensor, int, int]] = deque(maxlen=8)
        self._thread = threading.get_ident()

    def returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._calls[name] = self._calls.get(name, 0) + 1
        self._outputs[name] = described(output)
        self._returned[name] = _shape_only(output)  # the readings are made when all grids are known
        if any(given is self._given.picture for given in args):
            self._take_input.add(name)
        if grid := grid_of(module, output):
            self._grids[grid] = None
        if isinstance(output, Tensor) and output.ndim >= 3 and len(output) == 1:
            ends = channels_of(module, output)
            if ends is not None:
                (self._last if ends == "last" else self._first).add(tuple(output.shape[1:]))
        floating = [each for _, each in nested.leaves(output) if each.is_floating_point() and each.ndim >= 3]
        if len(floating) != 1 or isinstance(module, (nn.Softmax, nn.Dropout)):
            return  # of attention: rows and columns are no picture
        (tensor,) = floating
        for place, (earlier, version, number) in enumerate(self._latest):
            if tensor is earlier:
                passes_on = any(given is tensor for given in args) and tensor._version == version
                if not passes_on:
                    self._returned_by[number].append(name)
                    self._returned_last[number] = next(self._clock)
                self._latest[place] = (tensor, tensor._version, number)
                return
        self._latest.append((tensor, tensor._version, len(self._returned_by)))
        self._returned_by.append([name])
        self._returned_last.append(next(self._clock))

    def surveyed(self, output: Any) -> _Survey:
        """What the pass showed, in which the model returned `output`."""
        prefix, suffix = declared(self._model)
        size, scales = self._size(), self._given.listed
        of_picture = (grid for grid in (*self._grids, *declared_grids(self._model)) if len(grid) == len(size))
        fitting = [grid for grid in of_picture if scales or all(a <= b for a, b in zip(grid, size, strict=True))]
        grids = tuple(without_attention(fitting, size))
        seen = Seen(
            size,
            1,
            grids,
            prefix,
            suffix,
            queries=declared_queries(self._model),
            first=frozenset(self._first),
            last=frozenset(self._last),
            mixed=is_mixed(self._model) or any(len(shape) > 2 for shape in self._last),
            widths=linear_widths(self._model),
            scales=scales,
            # Where frames, or other parts of a picture, are convolved one by one, tokens may be in any order.
            guesses=not self._grids or bool(grids),
            returned=self._returned,
        )
        modules = dict(self._model.named_modules())
        candidates: list[_Candidate] = []
        # In the order of the last return: a block may write into, and return, what a part of it made.
        in_order = sorted(range(len(self._returned_by)), key=self._returned_last.__getitem__)
        for names in (self._returned_by[number] for number in in_order):
            # By what each itself returned: one has the tensor in a container, another's kind says what its axes are.
            found = {name: readings(modules[name], self._returned[name], seen) for name in names}
            layer = self._best([name for name in names if len(found[name]) == 1])
            if layer and not _enlarges(modules[layer], found[layer][0], candidates):
                projection = type(modules[layer]) is nn.Linear and names == [layer]
                candidates.append(_Candidate(layer, found[layer][0], projection))
        if not all(each.projection for each in candidates):
            candidates = [each for each in candidates if not each.projection]
        if candidates and any(type(module).__name__ == "Unroll" for module in modules.values()):
            # Hiera: until its last stage the tokens are in the order in which they are merged, and not in the grid's.
            last = candidates[-1].layout
            seen = replace(seen, ordered=last.grid)
            candidates = [each for each in candidates if not each.layout.flat or each.layout.grid == last.grid]
        dense = scales or any(self._is_dense(path, tensor) for path, tensor in nested.leaves(output))
        return _Survey(self._calls, self._outputs, seen, candidates, dense)

    def _is_dense(self, path: str, tensor: Tensor) -> bool:
        of_positions = tensor.ndim == self._given.picture.ndim and tensor.shape[2:].numel() > 1
        return "boxes" in path or (of_positions and tensor.is_floating_point())

    def _size(self) -> tuple[int, ...]:
        """The picture's own axes. All but the first, where that is how convolutions see it: no axis is of channels."""
        picture = self._given.picture
        axes = {len(grid) for grid in self._grids}
        without_channels = picture.ndim - 2 not in axes and picture.ndim - 1 in axes
        return tuple(picture.shape[1:] if without_channels else picture.shape[2:])

    def _best(self, names: list[str]) -> str | None:
        once = [name for name in names if self._calls[name] == 1]
        inner = [name for name in once if name not in self._take_input] or once
        return min(reversed(inner), key=lambda name: name.count(".")) if inner else None


def _enlarges(module: nn.Module, layout: Layout, before: list[_Candidate]) -> bool:
    """Whether it only spreads a coarser grid that came before to one of a fixed size, as VGG does small pictures."""
    adaptive = isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd))
    return adaptive and bool(before) and math.prod(layout.grid) > math.prod(before[-1].layout.grid)


def _shape_only(output: Any) -> Any:
    """The same container with tensors that have a shape and no numbers."""
    return nested.mapped(output, lambda _, each: torch.empty(each.shape, dtype=each.dtype, device="meta"))


def _first(given: Given) -> Given:
    # A copy, so that being given the model's input is told from being given a view.
    return given.of(torch.tensor([0]), given.picture[:1].detach().clone())


def _key(given: Given) -> tuple[object, ...]:
    return tuple(given.picture.shape[1:]), given.path


def _surveyed(model: nn.Module, given: Given, *, anew: bool = False) -> _Survey:
    known = _SURVEYS.setdefault(model, {})
    key = _key(given)
    if anew or key not in known:
        while len(known) >= _SIZES:
            del known[next(iter(known))]
        first = _first(given).handed()
        watch = _Watch(first, model)
        hooks = ((module, partial(watch.returned, name)) for name, module in model.named_modules() if name)
        with as_found(model), attached(hooks):
            output = run(model, first)
        known[key] = watch.surveyed(output)
    return known[key]


def _last_that_counts(
    model: nn.Module, given: Given, candidates: list[_Candidate], target: Target | None
) -> _Candidate:
    """The last candidate with a gradient at some position of its grid; the last of all where there is none anywhere."""
    end = len(candidates)
    for most in chain(_TRIED, repeat(_TRIED[-1])):
        tried = candidates[max(0, end - most) : end]
        counts = _which_count(model, given, tried, target) if tried else None
        if counts is None:
            break
        if any(counts):
            return tried[max(number for number, each in enumerate(counts) if each)]
        end -= len(tried)
    return candidates[-1]


def _which_count(
    model: nn.Module, given: Given, candidates: list[_Candidate], target: Target | None
) -> list[bool] | None:
    """For each candidate, whether the scores of the first sample depend on its grid. None where one cannot tell."""
    modules = dict(model.named_modules())
    handles: dict[str, Any] = {}
    thread = threading.get_ident()

    def keep(each: _Candidate, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None  # somebody else is running the model
        tensor = dict(nested.leaves(output)).get(each.layout.part)
        if tensor is None or each.layer in handles:
            return None
        if tensor.requires_grad:
            handles[each.layer] = get_gradient_edge(tensor)
            return None
        torch.set_grad_enabled(True)  # for what comes after; as_found ends it
        leaf = tensor.detach().clone().requires_grad_()
        handles[each.layer] = leaf
        return nested.with_part(output, each.layout.part, leaf.clone())

    hooks = [(modules[each.layer], partial(keep, each)) for each in candidates]
    with as_found(model):
        with attached(hooks):
            output = run(model, _first(given).handed())
        try:
            with torch.enable_grad():
                scores = _scores(output, target)
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
    return [all(_counts(one.get(each.layer), each.layout) for one in by_layer) for each in candidates]


def _counts(gradient: Tensor | None, layout: Layout) -> bool:
    if gradient is None:
        return False
    return bool(layout.to_grid(gradient.movedim(layout.batch_axis, 0)).any())


def _scores(output: Any, target: Target | None) -> Tensor:
    """(n,): what is asked for, each box on its own, else in one; all that the model returns where that is not known."""
    if target is not None:
        try:
            question = of_samples(target, 0, 1).bind(output)
            scores = question(output, torch.tensor([0])).flatten()
            return scores if _is_of_boxes(target) else scores.sum().unsqueeze(0)
        except TargetError:  # of a target for all the samples, perhaps; the trace says it if it is wrong
            pass
    total = torch.zeros(())
    for _, tensor in nested.leaves(output):
        if tensor.is_floating_point() and tensor.numel():
            # Weights that no normalisation cancels, and that no symmetry of the output does.
            weights = torch.cos(torch.arange(tensor.numel(), device=tensor.device)).view(tensor.shape)
            total = total + (tensor.float() * weights).sum().cpu()
    return total.unsqueeze(0)
