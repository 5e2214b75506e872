"""What one pass leaves behind, and what can be asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpeek.engine.attention.recorder import Attention, attention_gradients
from torchpeek.engine.capture import Capture
from torchpeek.engine.gradients import hessian_product, score_gradients
from torchpeek.engine.layout import Layout
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import ClassScores, ContrastScores, Question, Target, class_logits
from torchpeek.engine.targets.neurons import answer
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotConnected
from torchpeek.hooks import containers
from torchpeek.interrupts import let_interrupts_through, uninterrupted

if TYPE_CHECKING:
    from torchpeek.engine.batching import Precision
    from torchpeek.engine.replay.prefix import PrefixRecording
    from torchpeek.engine.runner import ModelRunner

Change: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `change(tensor (b, ...), rows (b,), trials (b,))`: entry i is sample rows[i] in its trial trials[i].

`rows` and `trials` are on the CPU, wherever the tensor is: good for indexing, and `.to(tensor)` for arithmetic.
"""


@dataclass(frozen=True)
class Origin:
    """Where a trace comes from, in words: what a heatmap made from it says of itself."""

    model: str
    weights: str = ""  # "random" where they were not trained
    preprocess: str = ""
    layer_reason: str = "asked for"
    class_names: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """One pass, kept: what the layers returned, the graph from there on, and the question that was asked.

    Every question is answered from the kept output; nothing here runs the model again, except `again`, `rescore`,
    `ablate`, `variants` and `input_gradients`, which say so.
    """

    runner: ModelRunner
    given: ModelCall
    at: Mapping[str, Capture]
    output: Any  # as the model returned it, with the graph behind it
    question: Question
    origin: Origin
    notes: list[PrefixRecording] = field(
        default_factory=list
    )  # for `ablate`: one or none yet, whatever is asked of the pass
    autocast: torch.dtype | None = None  # that the pass ran in, and every further one does
    attended: Sequence[Attention] | None = None  # None where the pass did not look at attention

    @property
    def inputs(self) -> Tensor:
        """(N, C, *size): the pictures, or whatever else the model looks at."""
        return self.given.picture

    def __repr__(self) -> str:
        layers, scores = ", ".join(map(repr, self.at)), tuple(self.question.labels.shape)
        return f"Trace({self.origin.model} at {layers}, inputs {tuple(self.inputs.shape)}, scores {scores})"

    def asked(self, target: Target) -> Trace:
        """The same pass with another question, which is bound to the same output. No forward pass."""
        return replace(self, question=target.bind(answer(target, self.output)), output=answer(target, self.output))

    @cached_property
    def scores(self) -> Tensor:
        """(N, K) scores of the question."""
        return self._scores_with_graph().detach()

    @property
    def layer(self) -> str:
        """The name of the one layer that was traced."""
        if len(self.at) != 1:
            raise AmbiguousCall(
                f"this trace holds {len(self.at)} layers ({', '.join(self.at)}); take one with .only(name)"
            )
        return next(iter(self.at))

    def only(self, layer: str) -> Trace:
        """The same pass seen at one of its layers."""
        if layer not in self.at:
            raise LayerNotFound(f"this trace holds no layer {layer!r}; it holds {', '.join(map(repr, self.at))}")
        if len(self.at) == 1:
            return self
        one = replace(self, at={layer: self.at[layer]}, notes=[])
        if "gradients_at" in self.__dict__:  # known already: not a second time for each layer
            one.__dict__["gradients_at"] = {layer: self.gradients_at[layer]}
        return one

    @property
    def activations(self) -> Tensor:
        """(N, 1, C, *grid) of the one layer, at least float32; the 1 broadcasts over the K scores."""
        return at_least_float32(self.at[self.layer].activation.detach()).unsqueeze(1)

    @property
    def gradients(self) -> Tensor:
        """(N, K, C, *grid): gradients of each score with respect to the one layer's output, at least float32."""
        return self.gradients_at[self.layer]

    @cached_property
    def gradients_at(self) -> Mapping[str, Tensor]:
        """(N, K, C, *grid) for each layer, all scores by one batched vector-Jacobian product.

        Raises GradUnavailable where the pass kept no graph, NotConnected where a score does not depend on a layer.
        """
        if any(capture.handle is None for capture in self.at.values()):
            raise GradUnavailable("this trace was made with gradients=False; make it again without that")
        # As found also here: a checkpointed part of the model runs once more on the way back.
        with preserved(self.runner.model):
            captures = list(self.at.values())
            handles = [each.handle for each in captures if each.handle is not None]
            largest = max(each.returned.nbytes for each in captures)
            found = score_gradients(self._scores_with_graph(), handles, largest)
        if unused := [name for name, gradient in zip(self.at, found, strict=True) if gradient is None]:
            raise NotConnected(_not_connected(unused))
        pairs = zip(self.at.values(), found, strict=True)
        return {each.layer: _on_the_grid(each, gradient) for each, gradient in pairs if gradient is not None}

    @cached_property
    def head(self) -> Tensor | None:
        """(N, K, C): for each score, the weights of the linear head that reads the layer's global average.

        Taken from the parameters, and only where they reproduce what the model returned: a linear layer whose
        weights, times the mean over the grid of this layer's output, plus its bias, are the scores. None elsewhere.
        """
        pooled = self.activations.squeeze(1).flatten(2).mean(2)  # (N, C)
        if not isinstance(self.question, (ClassScores, ContrastScores)):
            return None
        theirs = class_logits(self.output).detach()  # (N, classes)
        tolerance = _ROUNDING[self.at[self.layer].returned.dtype]
        rows = torch.arange(len(theirs))
        for module in self.runner.model.modules():
            if not isinstance(module, nn.Linear) or module.weight.shape != (theirs.shape[1], pooled.shape[1]):
                continue
            weights = module.weight.detach().to(pooled)  # (classes, C)
            bias = None if module.bias is None else module.bias.detach().to(pooled)
            with torch.autocast(pooled.device.type, enabled=False):
                logits = F.linear(pooled, weights, bias)  # (N, classes)
            if _close(logits, theirs, tolerance) and _close(self.question(logits, rows), self.scores, tolerance):
                return self.question.combined(weights)
        return None

    def again(
        self,
        inputs: Tensor,
        layers: list[str] | None = None,
        rows: Tensor | None = None,
        *,
        gradients: bool | None = None,
    ) -> Trace:
        """One more pass: the same question of other inputs (n, ...), with their axes as the model takes them.

        `rows` (n,) says which clean sample each input is a version of; it may be left out where n = N. With gradients
        where this trace has them, unless it is said.
        """
        order = self.given.order
        picture = inputs if order is None else order.to_grid(inputs)
        return self.again_of(picture, layers, rows, gradients=gradients)

    def again_of(
        self,
        inputs: Tensor,
        layers: list[str] | None = None,
        rows: Tensor | None = None,
        *,
        gradients: bool | None = None,
    ) -> Trace:
        """The same of inputs (n, C, *grid), as `inputs` of the trace are."""
        count = len(self.inputs)
        if rows is None and len(inputs) != count:
            raise InputError(f"{len(inputs)} inputs for a trace of {count}; rows= says what each is a version of")
        rows = torch.arange(count) if rows is None else rows
        if len(rows) != len(inputs) or bool(((rows < 0) | (rows >= count)).any()):
            raise InputError(f"rows has {len(rows)} entries for {len(inputs)} inputs; one for each, 0 to {count - 1}")
        question = self.question.select(rows.to(self.question.labels.device), slice(None))
        same_size = inputs.shape[1:] == self.inputs.shape[1:]
        if gradients is None:
            handles = [each.handle for each in self.at.values()] + [each.handle for each in self.attended or ()]
            gradients = bool(handles) and all(each is not None for each in handles)
        with self.autocast_context():
            return self.runner.trace(
                self.given.of(rows, inputs),
                layers or list(self.at),
                Bound(question, tuple(self.given.observed)),
                gradients=gradients,
                noting=bool(self.notes),
                origin=self.origin,
                attention=self.attended is not None,
                layouts={name: each.layout if same_size else each.layout.kept() for name, each in self.at.items()},
            )

    def bound(self) -> Target:
        """The question of this trace, as a target for another pass over the same inputs."""
        return Bound(self.question, tuple(self.given.observed))

    def rescore(
        self,
        perturb: Change,
        trials: int,
        *,
        live: Tensor | None = None,
        batch: int | None = None,
        precision: Precision = None,
    ) -> Tensor:
        """(N, trials, K): scores of changed inputs, all K in one pass for each sample and trial.

        `perturb` is given a copy of the samples, which it may write into, and returns as many changed ones. Where
        `live` (N, trials) is False no pass is run, and the clean scores stand. `batch` passes go at once: None takes as
        many as fit into memory; where they do not, half as many are tried. With `precision="bfloat16"` the passes run
        under autocast.
        """
        return self.runner.rescore(self, perturb, trials, live, batch, precision)

    def ablate(self, edit: Change, trials: int, *, live: Tensor | None = None, batch: int | None = None) -> Tensor:
        """(N, trials, K): scores with the one layer's output changed; what comes before the layer is not run again.

        The rest is as for `rescore`; `edit` is given what the layer returned. Before this is relied on, it is compared
        with whole passes, for each model and layer; where it would differ, whole passes are run, with a notice.
        """
        return self.runner.ablate(self, edit, trials, live, batch)

    def variants(self, perturb: Change, trials: int) -> Iterator[tuple[Tensor, Tensor, Trace]]:
        """The same question of changed inputs, traced with gradients, as many at once as memory allows.

        Yields (rows (b,), trials (b,), trace); entry i of that trace is sample rows[i] in its trial trials[i].
        """
        return self.runner.variants(self, perturb, trials)

    def input_gradients(self, inputs: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) of changed inputs (n, ...), and the gradient of each with respect to its input (n, ...).

        Entry i is a version of sample rows[i], and its score the one of column columns[i].
        """
        return self.runner.input_gradients(self, inputs, rows, columns)

    def hessian_times(self, vector: Tensor) -> Tensor:
        """(N, K, C, *grid): the Hessian of each score with respect to the one layer's output, times `vector`.

        `vector` is (N, 1 or K, C, *grid). Raises GradUnavailable where a part of the model has no second derivative.
        """
        capture = self.at[self.layer]
        if capture.handle is None:
            raise GradUnavailable("this trace was made with gradients=False; make it again without that")
        with preserved(self.runner.model), torch.enable_grad():
            scores = self._scores_with_graph()
            wanted = vector.to(capture.returned.dtype).expand(-1, scores.shape[1], *vector.shape[2:])
            products = []
            for k in range(scores.shape[1]):
                let_interrupts_through()
                given = capture.as_returned(wanted[:, k])
                product = hessian_product(scores[:, k].sum(), capture.handle, given, capture.layer)
                if product is None:
                    raise NotConnected(_not_connected([capture.layer]))
                products.append(product)
        return at_least_float32(capture.to_grid(torch.stack(products)))

    @property
    def attentions(self) -> Sequence[Attention]:
        """How the tokens attended to each other, layer after layer. Raises GradUnavailable where it was not kept."""
        if self.attended is None:
            raise GradUnavailable("this trace was made without attention; make it again with attention=True")
        return self.attended

    @cached_property
    def attention_gradients(self) -> Sequence[Tensor]:
        """(N, K, heads, T, T) for each of `attentions`: gradients of the scores, at least float32."""
        attentions = self.attentions
        with preserved(self.runner.model):
            return attention_gradients(self._scores_with_graph(), attentions)

    @property
    def layerwise_attention_gradients(self) -> Iterator[Tensor]:
        """(N, K, heads, T, T) for each of `attentions`: of what the model would say of its block's tokens at once.

        These passes through what comes after the last block are made anew each time.
        """
        return self.runner.layerwise(self)

    @cached_property
    def tokens(self) -> Layout:
        """Which of the tokens that attend are those of the grid."""
        return self.runner.layout_of_tokens(self)

    @cached_property
    def reading(self) -> Tensor:
        """(N, K, T): with what weight each score reads the tokens after the last block; each row sums to 1.

        The grid's all alike, where the score depends on any of them; else those beside the grid that it depends on,
        such as the class token. Where it depends on none, as with a head of zeros, the first before the grid, or the
        grid.
        """
        last, tokens, count = self.attentions[-1].after, self.tokens, self.scores.shape[1]
        if last is None or last.edge is None:
            raise GradUnavailable(
                "which tokens the score reads is told by its gradient, and this trace was made with gradients=False; "
                "make it again without that"
            )
        size = math.prod(tokens.grid)
        of_grid = torch.zeros(size + tokens.others, device=self.inputs.device)
        of_grid[tokens.prefix : tokens.prefix + size] = 1
        if not tokens.others:
            return (of_grid / size).expand(len(self.inputs), count, -1)
        with preserved(self.runner.model):
            largest = containers.at(last.value, last.path).nbytes
            (gradient,) = score_gradients(self._scores_with_graph(), [last.edge], largest)
        read = torch.zeros(len(self.inputs), count, len(of_grid), device=of_grid.device)
        if gradient is not None:
            samples_first = gradient.movedim(1 + tokens.batch_axis, 0)  # (N, K, T, C), or (N, K, C, T)
            read = (samples_first != 0).any(2 if tokens.kind == "channel-tokens" else 3).float()
        first = torch.zeros_like(of_grid)
        first[slice(1) if tokens.prefix else slice(size)] = 1
        beside = torch.where(read.any(2, keepdim=True), read, first)
        found = torch.where((read * of_grid).any(2, keepdim=True), of_grid, beside)
        return found / found.sum(2, keepdim=True)

    def autocast_context(self, dtype: torch.dtype | None = None) -> AbstractContextManager[object]:
        """Autocast as it was in the pass, or to `dtype`, whatever the caller is in now."""
        dtype = dtype or self.autocast
        kind = self.inputs.device.type
        return torch.autocast(kind, dtype) if dtype is not None else torch.autocast(kind, enabled=False)

    @property
    def noted(self) -> PrefixRecording:
        """What `ablate` needs, from the pass itself or from one more."""
        if not self.notes:
            self.notes.append(self.runner.noted(self))
        return self.notes[0]

    def _scores_with_graph(self) -> Tensor:
        # The caller may be inside no_grad or inference_mode, where a graph would not be kept.
        with uninterrupted(), torch.inference_mode(False), torch.enable_grad():
            return self.question(self.output, torch.arange(len(self.inputs)))


@dataclass(frozen=True)
class Bound:
    """A question that is already bound, as a target."""

    question: Question
    layers: Sequence[str]

    def bind(self, output: Any) -> Question:
        return self.question


def _on_the_grid(capture: Capture, gradient: Tensor) -> Tensor:
    """(K, ...) -> (N, K, C, *grid). Raises NotConnected where a score depends on other tokens than the grid's alone."""
    found = capture.to_grid(gradient)
    layout = capture.layout
    if layout.others:
        of_grid = (found.flatten(2) != 0).any(2)  # (N, K)
        of_all = (gradient.movedim(1 + layout.batch_axis, 0).flatten(2) != 0).any(2)
        if bool((of_all & ~of_grid).any()):
            raise NotConnected(
                f"at {capture.layer!r} ({layout}) the score depends on the tokens beside the grid alone, such as the "
                "class token: its gradient is zero at every position of the picture. Choose a layer before the last "
                "exchange between the tokens, such as the last block's first norm; layer=None suggests one"
            )
    return at_least_float32(found)


def _not_connected(layers: list[str]) -> str:
    named = ", ".join(repr(layer) for layer in layers)
    return (
        f"the score does not depend on {named}: no gradient flows back to it. Either the model does not use its "
        "output for this score (an auxiliary head, another branch), or it detaches it, runs it under "
        "torch.no_grad() or inference_mode(), or checkpoints it with use_reentrant=True. Choose another layer, or a "
        "method that needs no gradients (torchpeek methods lists them)"
    )


# How far a head's scores may be off the model's, relative to the largest: rounding of the sums, and not more.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
