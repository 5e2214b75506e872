"""Choose the layer to explain when none is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

import torch
from torch import nn

from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.fixed_batch import fixed_batch_size
from torchpeek.engine.forward import run
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.layout_inference.dry_run import dry_run, why_no_candidate
from torchpeek.engine.layout_inference.input_dependence import (
    OutputDigests,
    comparable,
    known_unaffected,
    remember_unaffected,
    separate_layers,
    unaffected_layers,
    with_changed_picture,
    with_random_picture,
    with_varied_picture,
)
from torchpeek.engine.layout_inference.scales import ScaleLayers
from torchpeek.engine.layout_inference.score_dependence import score_dependence
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.model_config import compares_texts, feature_extractors
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Target
from torchpeek.engine.targets.question import Bound, bind_target, has_separate_branches
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import ForwardHook, has_layer


@dataclass(frozen=True)
class Suggestion:
    """The layer to explain when none is named, and the reason for it.

    Args:
        layer: The layer's name.
        reason: Why it was chosen, for the provenance.
        labels: Classes whose score is known to depend on the layer.
        dependent: Whether a gradient showed that any score depends on it.
    """

    layer: str
    reason: str
    labels: frozenset[int] = frozenset()
    dependent: bool = True


@dataclass(frozen=True)
class _Choice:
    """What a search found.

    Args:
        one: The one layer.
        scales: The layers of all scales, for boxes that are read from several.
        before_head: In that case, the layers on which the scores depend and that no scale's head holds.
        separate_branches: Whether each score has its own branch, so that the choice holds for these scores alone.
    """

    one: Suggestion
    scales: tuple[Suggestion, ...] = ()
    before_head: frozenset[str] | None = None
    separate_branches: bool = False


# By the form of the call and the kind of target.
_CHOICES: ModelCache[tuple[object, ...], _Choice] = ModelCache(capacity=64)

# How many candidates each pass checks, from the last one back. The last candidate is most often the right one, and a
# graph over the whole model is seldom needed.
_CANDIDATES_PER_PASS = (1, 3, 12)

_BRANCHES = "the branches of a sum or a concatenation that no layer returns"

# The fields of a target, or question, on which the layer may depend. Its class indices are not among them.
_TARGET_FIELDS = ("layers", "part", "what", "function")


def suggest_layers(
    model: nn.Module,
    call: ModelCall,
    target: Target | None = None,
    *,
    anew: bool = False,
    classes: frozenset[int] | None = None,
) -> Sequence[Suggestion]:
    """The last layer with a grid that depends on the picture, and on whose positions the score depends.

    For the boxes of a dense detector, it is one layer for each scale: the last one before the predictions of that scale
    (`scales.py: scale_layers`).

    A dry run finds the layers with a grid. In a second pass, with a changed picture, the layers that return the same do
    not depend on it, and a backward pass shows what the score depends on. In a transformer that is read by its class
    token, the score depends on no grid position after the last block, so the layer is an earlier one.

    Of several layers that return the same tensor, such as a block and its last layer, it is the outermost, but not the
    whole feature extractor, which takes the model's own input. Of several outermost ones it is the last: an activation
    that works in place, not the norm before it. A layer that only passes its input through is never chosen.

    The layer follows from the model, the form of the call and the kind of target. It does not depend on earlier calls.

    Args:
        model: The model.
        call: What it is called with. Only the first sample is used.
        target: The score. None stands for everything that the model returns.
        anew: Whether to ignore what is remembered from earlier calls.
        classes: The target's own classes, to look for a layer on which their scores depend. By default it is one on
            which any class depends, so that one answer serves all of them.

    Raises:
        NoSpatialLayer: When no layer has a grid.
    """
    choice = _choice(model, call, target, anew=anew, classes=classes)
    return choice.scales or (choice.one,)


def suggest_layer(model: nn.Module, call: ModelCall, *, anew: bool = False) -> Suggestion:
    """The last layer with a grid on which anything that the model returns depends; see `suggest_layers`.

    Raises:
        NoSpatialLayer: When no layer has a grid.
    """
    return _choice(model, call, None, anew=anew).one


def suggest_stages(
    model: nn.Module, call: ModelCall, most: int, target: Target | None = None, *, scales: bool = False
) -> Sequence[Suggestion]:
    """The layers to combine: for each of the `most` coarsest sizes of grid, the last of the outermost layers.

    No layer comes after the one that the score is explained at, which is the last of them. For the boxes of a dense
    detector, none is in the head of a scale.

    Args:
        model: The model.
        call: As for `suggest_layers`.
        most: How many layers.
        target: As for `suggest_layers`.
        scales: Whether the layers of all scales take their place, where boxes are read from several.

    Raises:
        NoSpatialLayer: When no layer has a grid.
    """
    choice = _choice(model, call, target)
    if scales and choice.scales:
        return choice.scales
    last, before_head = choice.one, choice.before_head
    dry = dry_run(model, call)
    separate = separate_layers(model, call, unaffected_layers(model, call), [each.layer for each in dry.candidates])
    candidates = [
        each
        for each in dry.candidates
        if each.layer not in separate and (before_head is None or each.layer in before_head)
    ]
    end = next((index for index, each in enumerate(candidates) if each.layer == last.layer), len(candidates) - 1)
    layer_by_size: dict[int, str] = {}
    for each in candidates[:end]:
        positions = torch.Size(each.layout.grid).numel()
        if each.layer.count(".") <= layer_by_size.get(positions, each.layer).count("."):
            layer_by_size[positions] = each.layer
    layer_by_size[torch.Size(candidates[end].layout.grid).numel()] = last.layer
    layers = [layer_by_size[positions] for positions in sorted(layer_by_size, reverse=True)][-most:]
    return [Suggestion(layer, f"the last layers of the {len(layers)} coarsest sizes of grid") for layer in layers]


def _choice(
    model: nn.Module,
    call: ModelCall,
    target: Target | None,
    *,
    anew: bool = False,
    classes: frozenset[int] | None = None,
) -> _Choice:
    """The layers for this target, as they are remembered or by a search. Raises NoSpatialLayer."""
    anew = anew or has_separate_branches(target)
    key = (call.signature, classes, *_target_key(target))
    remembered = _CHOICES.get(model, key)
    holds = remembered is not None and not remembered.separate_branches and has_layer(model, remembered.one.layer)
    if remembered is not None and holds and not anew:
        return remembered
    these_scores = classes is not None
    if anew:
        choice = _LayerSearch(model, call, target, these_scores=these_scores, anew=True).result()
        # A layer that was found for an even picture in particular is not remembered for other pictures.
        return choice if with_varied_picture(call) is not call else _CHOICES.put(model, key, choice)
    search = _LayerSearch(model, with_varied_picture(call), target, these_scores=these_scores, anew=False)
    choice = search.result()
    if not choice.one.dependent and search.connected:
        # All gradients are zero, perhaps only for this picture.
        again = attempted(
            lambda: _LayerSearch(
                model, with_random_picture(call), target, these_scores=these_scores, anew=True
            ).result(),
            lambda: _run_sample(model, call),
        )
        if not isinstance(again, Refusal):  # the model may not take a random picture
            choice = max(again, choice, key=lambda each: each.one.dependent)
    return _CHOICES.put(model, key, choice)


def _run_sample(model: nn.Module, call: ModelCall) -> None:
    with preserved(model):
        run(model, call.one_sample(fixed_batch_size(model, call)).for_one_pass())


def _target_key(target: Target | None) -> tuple[object, ...]:
    """The same for all targets whose scores are likely to depend on the same layers."""
    subject = target.question if isinstance(target, Bound) else target
    return type(subject), *(getattr(subject, name, None) for name in _TARGET_FIELDS)


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


class _LayerSearch:
    """The search for the default layer of one call: a dry run, and passes that check the candidates."""

    def __init__(
        self, model: nn.Module, call: ModelCall, target: Target | None, *, these_scores: bool, anew: bool
    ) -> None:
        self._model = model
        self._call = call
        self._target = target
        self._these_scores = these_scores
        self._unaffected = None if anew else known_unaffected(model, call)
        self._dry_digests = OutputDigests() if self._unaffected is None else None
        if self._dry_digests is None:
            self._dry = dry_run(model, call, anew=anew)
        else:
            # Of the dry run and the first check, one has the changed picture. Boxes are those of the true picture.
            dry_call = with_changed_picture(call) if has_separate_branches(target) else call
            with comparable():
                self._dry = dry_run(model, dry_call, anew=True, hooks=partial(self._dry_digests.hooks, model))
        self._sample = call.one_sample(fixed_batch_size(model, call))
        self.connected = False  # whether a gradient can flow from the scores to a candidate, even if it is zero
        self._is_dependent: dict[str, bool] = {}  # by layer, as far as they were checked
        self._labels: frozenset[int] = frozenset()  # the classes of the target
        self._layers_of_labels: set[str] = set()  # the layers on which the scores of these classes depend
        self._scales: ScaleLayers | None = None
        # Whether each score has its own branch. The target may not know that before it is bound.
        self._separate_branches = has_separate_branches(target)

    def result(self) -> _Choice:
        """The layers, and the reason for them. Raises NoSpatialLayer."""
        one = self._one_layer()
        if self._scales is None:
            return _Choice(one, separate_branches=self._separate_branches)
        reason = f"the last layers of each of the {self._scales.count} scales that the boxes are read from"
        before_head = [
            each.layer
            for each in self._dry.candidates
            if self._is_dependent.get(each.layer) and each.layer not in self._scales.head
        ]
        if before_head:
            one = Suggestion(before_head[-1], "the last layer with a grid before the head")
        scales = tuple(Suggestion(layer, reason) for layer in self._scales.layers)
        return _Choice(one, scales, frozenset(before_head) or None, separate_branches=True)

    def _one_layer(self) -> Suggestion:
        if not self._candidates():
            raise NoSpatialLayer(why_no_candidate(self._model, self._sample))
        # Where there are other inputs, the last layer may be one of theirs. One pass checks all layers then.
        sizes = _CANDIDATES_PER_PASS if self._sample.is_single_tensor else (len(self._dry.candidates),)
        for most in chain(sizes, repeat(sizes[-1])):
            layers = self._candidates()
            if self._may_have_scales:  # one pass for all layers, those of heads too
                layers, most = self._dry.candidates, len(self._dry.candidates)
            checked = [each for each in layers if each.layer not in self._is_dependent][-most:]
            if not checked or not self._check(checked):
                break
            if self._may_have_scales and len(checked) < len(self._dry.candidates):  # this pass has shown it
                self._is_dependent, self._scales = {}, None
                continue
            candidates = self._candidates()
            for each in reversed(candidates):
                if each.layer not in self._is_dependent:
                    break
                if self._is_dependent[each.layer]:
                    return self._chosen(each, candidates)
        last = (self._candidates() or self._dry.candidates)[-1]
        return Suggestion(
            last.layer, "the last layer with a grid; no gradient shows that the score depends on it", dependent=False
        )

    def _chosen(self, last: CandidateLayer, candidates: list[CandidateLayer]) -> Suggestion:
        """The last candidate on which the score depends, or the one before it that carries all of the picture."""
        reason = "the last layer with a grid before the head"
        if last is not candidates[-1]:
            reason = "the last layer at which the score depends on the positions of the grid"
        if last.layer in self._dry.branches and not self._dry.dense:
            before = candidates[: candidates.index(last)]
            carrying = [each for each in before if each.layout == last.layout and each.layer not in self._dry.branches]
            if carrying:
                return Suggestion(carrying[-1].layer, f"the last layer with a grid, except for {_BRANCHES}")
            reason += f"; it is one of {_BRANCHES}"
        return Suggestion(last.layer, reason, self._labels if last.layer in self._layers_of_labels else frozenset())

    @property
    def _may_have_scales(self) -> bool:
        """Whether the boxes may be of several scales. torchvision's detectors are explained at one layer."""
        return self._separate_branches and not self._sample.takes_list

    def _candidates(self) -> list[CandidateLayer]:
        """The candidates that depend on the picture, as far as that is known, without those in a head."""
        names = [each.layer for each in self._dry.candidates]
        separate = separate_layers(self._model, self._sample, self._unaffected or frozenset(), names)
        candidates = [each for each in self._dry.candidates if each.layer not in separate]
        if self._dry.dense or compares_texts(self._model):
            candidates = _layers_before_head(self._model, candidates)
        return candidates

    def _check(self, candidates: list[CandidateLayer]) -> bool:
        """One pass that checks these candidates; False where the model has no backward pass."""
        sample, digests = self._sample, OutputDigests()
        hooks: Iterable[tuple[nn.Module, ForwardHook]] = ()
        if self._dry_digests is not None:
            hooks = digests.hooks(self._model)
            if not self._separate_branches:
                sample = with_changed_picture(sample)
        with comparable():
            dependence = score_dependence(
                self._model,
                sample,
                candidates,
                self._target,
                these_scores=self._these_scores,
                hooks=hooks,
                unaffected=partial(self._compared, digests),
                scores_of_all=self._scores_of_all,
            )
        self._compared(digests)
        if dependence is None:
            return False
        self._scales, self._separate_branches = dependence.scales, dependence.separate_branches
        self.connected |= dependence.connected
        for each in candidates:
            self._is_dependent[each.layer] = each.layer in dependence.layers
        self._labels = dependence.labels
        self._layers_of_labels |= dependence.layers_of_labels
        return True

    def _scores_of_all(self) -> None:
        """Compute the scores of all samples, to see whether the target fails there, too."""
        if self._target is not None:
            with preserved(self._model):
                output = run(self._model, self._call.for_one_pass())
            question = bind_target(self._target, output, self._call.picture.shape)
            question(output, torch.arange(len(self._call)))

    def _compared(self, digests: OutputDigests) -> frozenset[str]:
        """The layers that do not depend on the picture, as known, or by these digests and those of the dry run."""
        if self._dry_digests is not None:
            unaffected = self._dry_digests.unaffected(digests)
            self._unaffected, self._dry_digests = remember_unaffected(self._model, self._sample, unaffected), None
        return self._unaffected or frozenset()
