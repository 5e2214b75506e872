"""Trace: a clean pass, and what can be asked of it; trace_model() makes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.cached import cached_property
from torchpeek.engine import ablation, perturbation
from torchpeek.engine.attention.gradients import attention_gradients, layerwise_attention_gradients, readout_weights
from torchpeek.engine.attention.recorder import Attention
from torchpeek.engine.batching import Change, Precision, check_changed, check_counts, chunks, sample_rows
from torchpeek.engine.capture import Capture, CaptureRequest
from torchpeek.engine.fixed_batch import BatchTooLarge, with_fixed_batch
from torchpeek.engine.forward_pass import ForwardPass, Origin, run_clean_pass, run_training_pass
from torchpeek.engine.further_pass import further_pass
from torchpeek.engine.gradients import NO_GRAPH
from torchpeek.engine.layer_gradients import hessian_times, layer_gradients
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.dry_run import layout_of
from torchpeek.engine.linear_head import linear_head
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.observed import layers_of_target, output_for
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets.question import Bound, Question, Target, bind_target
from torchpeek.engine.views import PictureView, check_views, picture_view
from torchpeek.errors import AmbiguousCall, GradUnavailable, LayerNotFound, NoSpatialLayer
from torchpeek.hooks import containers, layer_at
from torchpeek.keywords import checked_class
from torchpeek.printable import printable


def trace_model(
    model: nn.Module, call: ModelCall, request: CaptureRequest, target: Target, origin: Origin | None = None
) -> Trace:
    """One clean pass over `call`, kept at the layers of `request`, with `target` bound to its output.

    With gradients, those at the layers are computed at once, while nobody else runs the model.

    Args:
        model: The module to run, as `inspectable_module` returns it.
        call: The call. Nobody else may write into its tensors: pass `call.copied()` where somebody might.
        request: Which layers are captured, and what else is kept.
        target: What to explain.
        origin: Where the pass comes from, in words.

    Raises:
        NotConnected: When a score does not depend on one of the layers.
        TorchpeekError: As `run_clean_pass` does.
    """
    origin = origin or Origin(type(model).__name__)
    if request.create_graph:
        trace = Trace(run_training_pass(model, call, request, target, origin))
        if request.gradients and request.layers:
            _ = trace.gradients_at
        return trace
    with preserved(model):
        trace = Trace(run_clean_pass(model, call, request, target, origin))
        if not isinstance(target, Bound):  # another pass of the same model has been checked
            check_views(trace.forward_pass)
        if request.gradients and request.layers:
            _ = trace.gradients_at
    return trace


@checked_class
@dataclass(frozen=True, eq=False)
class Trace:
    """One clean pass, kept: activations, gradients and scores, and further passes that ask the same question.

    Every question about the pass is answered from what was kept. Only `again`, `rescore`, `ablate`, `variants`,
    `input_gradients`, `layerwise_attention_gradients` and `tokens` run the model again.

    Args:
        forward_pass: The pass.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
        >>> trace.scores.shape, trace.activations.shape, trace.gradients.shape
        (torch.Size([2, 1]), torch.Size([2, 1, 8, 8, 8]), torch.Size([2, 1, 8, 8, 8]))
    """

    forward_pass: ForwardPass

    def __repr__(self) -> str:
        layers, scores = ", ".join(map(repr, self.at)), tuple(self.question.labels.shape)
        inputs = tuple(self.forward_pass.inputs.shape)
        return f"Trace({printable(self.origin.model)} at {layers}, inputs {inputs}, scores {scores})"

    @property
    def inputs(self) -> Tensor:
        """(N, C, *grid): the pictures; of a trace of one view, that part of them.

        Raises MethodNotApplicable where it is not known which part of the pictures belongs to the view.
        """
        inputs = self.forward_pass.inputs
        return inputs if self.view is None else self.view.taken(inputs)

    @cached_property
    def view(self) -> PictureView | None:
        """Which part of the picture a trace of one view is of; None for the whole picture."""
        one = any(capture.layout.view is not None for capture in self.at.values())
        return picture_view(self.forward_pass) if one else None

    @property
    def views(self) -> int | None:
        """How many views of each sample the layers hold in their batch axis; None where they hold the samples.

        Raises AmbiguousCall where the layers hold different numbers of them.
        """
        counts = {capture.layout.views for capture in self.at.values() if capture.layout.view is None} or {None}
        if len(counts) > 1:
            listed = ", ".join(f"{name!r} as {each.layout}" for name, each in self.at.items())
            raise AmbiguousCall(f"the layers hold different numbers of views: {listed}. Explain them one by one")
        return next(iter(counts))

    def of_view(self, view: int) -> Trace:
        """The same pass, read at one of the views that the layers hold in their batch axis. Runs nothing.

        The activations, gradients and inputs are those of the view. Changes of the layer's output or of the inputs
        leave the other views as they are.

        Args:
            view: The index of the view, from 0.

        Returns:
            A trace with the same scores.

        Raises:
            InputError: When the layers hold no views, or not so many.

        Example:
            >>> head = nn.AdaptiveAvgPool2d(1), nn.Unflatten(0, (-1, 4)), nn.Flatten()
            >>> model, x = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 8, 3), *head), torch.rand(2, 4, 3, 10, 10)
            >>> trace = tp.trace(model, x, layer="1", layout="(N 4) C H W", target=5)
            >>> trace.activations.shape, trace.of_view(3).activations.shape
            (torch.Size([2, 1, 8, 4, 8, 8]), torch.Size([2, 1, 8, 8, 8]))
        """
        captures = {name: replace(each, layout=each.layout.of_view(view)) for name, each in self.at.items()}
        one = Trace(replace(self.forward_pass, captures=captures))
        if "gradients_at" in self.__dict__:
            one.__dict__["gradients_at"] = {name: each.select(3, view) for name, each in self.gradients_at.items()}
        return one

    @property
    def output(self) -> Any:
        """What the model returned, with the graph behind it where one was kept."""
        return self.forward_pass.output

    @property
    def question(self) -> Question:
        """The target, bound to the output."""
        return self.forward_pass.question

    @property
    def origin(self) -> Origin:
        """Where the pass comes from, in words."""
        return self.forward_pass.origin

    @property
    def create_graph(self) -> bool:
        """Whether everything is connected to the graph of the whole pass, for a training loss."""
        return self.forward_pass.create_graph

    @property
    def at(self) -> Mapping[str, Capture]:
        """Layer -> what it returned."""
        return self.forward_pass.captures

    @property
    def scores(self) -> Tensor:
        """(N, K): the scores, detached unless the trace was made with create_graph=True."""
        return self.forward_pass.scores

    @property
    def layer(self) -> str:
        """The name of the one layer that was traced. Raises AmbiguousCall where there are several."""
        if len(self.at) != 1:
            raise AmbiguousCall(
                f"this trace holds {len(self.at)} layers ({', '.join(self.at)}); take one with .only(name)"
            )
        return next(iter(self.at))

    def with_target(self, target: Target) -> Trace:
        """The same pass with another question, bound to the same output. Runs nothing.

        Args:
            target: The new target.

        Returns:
            A trace whose scores are (N, K) of the new target.

        Raises:
            TargetError: When the target does not fit the output.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.with_target(tp.targets.TopClasses(3)).scores.shape
            torch.Size([2, 3])
        """
        output, call = output_for(target, self.output), self.forward_pass.call
        question = bind_target(target, output, call.picture.shape)
        # Later passes observe no layers for a question that reads none.
        call = call if layers_of_target(target) else replace(call, observed={})
        return Trace(replace(self.forward_pass, question=question, output=output, call=call))

    def only(self, layer: str) -> Trace:
        """The same pass at one of its layers.

        Args:
            layer: The layer's name.

        Returns:
            A trace of that one layer.

        Raises:
            LayerNotFound: When the trace does not hold the layer.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> tp.trace(model, torch.rand(2, 3, 10, 10), layer=["0", "1"]).only("0").layer
            '0'
        """
        if layer not in self.at:
            held = ", ".join(map(repr, self.at))
            raise LayerNotFound(f"this trace holds no layer {layer!r}; it holds {held}")
        if len(self.at) == 1:
            return self
        captures, layers = {layer: self.at[layer]}, {layer: self.forward_pass.layers[layer]}
        one = Trace(replace(self.forward_pass, captures=captures, layers=layers, prefixes={}))
        if "gradients_at" in self.__dict__:  # computed already, and shared by all layers
            one.__dict__["gradients_at"] = {layer: self.gradients_at[layer]}
        return one

    def first(self, count: int) -> Trace:
        """The same pass for its first samples alone, with the activations, scores and gradients that it has.

        Args:
            count: How many samples.

        Returns:
            The trace of these samples. It holds no graph.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> tp.trace(model, torch.rand(3, 3, 10, 10), layer="0").first(2).scores.shape
            torch.Size([2, 1])
        """
        forward_pass, rows = self.forward_pass, torch.arange(count)

        def of_samples(path: str, tensor: Tensor) -> Tensor:
            return tensor.detach()[:count] if tensor.ndim and len(tensor) == len(forward_pass.call) else tensor.detach()

        of_first = Trace(
            replace(
                forward_pass,
                call=forward_pass.call.select(rows),
                captures={
                    name: replace(each, returned=each.returned[:count], handle=None) for name, each in self.at.items()
                },
                output=containers.mapped(self.output, of_samples),
                question=self.question.select(rows.to(self.question.labels.device), slice(None)),
                attentions=None,
                prefixes={},
            )
        )
        of_first.forward_pass.__dict__["scores_with_graph"] = self.scores[:count]
        if "gradients_at" in self.__dict__:
            of_first.__dict__["gradients_at"] = {name: each[:count] for name, each in self.gradients_at.items()}
        return of_first

    @property
    def activations(self) -> Tensor:
        """(N, 1, C, *grid) of the one layer, at least float32; the 1 broadcasts over the K scores.

        Where the layer holds views in its batch axis, *grid begins with the views; `of_view` reads one of them.
        """
        activation = self.at[self.layer].activation
        return at_least_float32(activation if self.create_graph else activation.detach()).unsqueeze(1)

    @property
    def gradients(self) -> Tensor:
        """(N, K, C, *grid): gradients of each score with respect to the one layer's output, at least float32."""
        return self.gradients_at[self.layer]

    @property
    def contributions(self) -> Tensor:
        """(N, K, C): what each channel of the one layer contributes to each score.

        It is the gradient of the score times the activation, summed over the grid. If the score is linear in the
        activations on the grid, as behind global average pooling and a linear head, the contributions of all channels
        sum to the score less its bias.

        Raises:
            GradUnavailable: When the pass kept no graph.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.contributions.shape
            torch.Size([2, 1, 8])
        """
        return (self.activations * self.gradients).flatten(3).sum(3)

    @cached_property
    def gradients_at(self) -> Mapping[str, Tensor]:
        """Layer -> (N, K, C, *grid): its gradients, of all scores, by one batched vector-Jacobian product.

        Raises GradUnavailable where the pass kept no graph, NotConnected where a score does not depend on a layer.
        """
        return layer_gradients(self.forward_pass)

    @cached_property
    def head(self) -> Tensor | None:
        """(N, K, C): for each score, the weights of the linear head that reads the layer's global average, or None."""
        return linear_head(self.forward_pass, self.layer)

    def again(
        self,
        inputs: Tensor,
        layers: list[str] | None = None,
        rows: Tensor | None = None,
        *,
        gradients: bool | None = None,
    ) -> Trace:
        """One more pass: the same question about other inputs.

        Args:
            inputs: (n, ...), in the axis order that the model takes.
            layers: The layers to capture; None captures those of this trace.
            rows: (n,): which of the N samples each input is a version of; may be left out where n = N.
            gradients: Whether to keep gradients; None does so where this trace has them.

        Returns:
            The trace of the n inputs.

        Raises:
            InputError: When `rows` and `inputs` do not fit together.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.again(torch.rand(2, 3, 10, 10)).scores.shape
            torch.Size([2, 1])
        """
        order = self.forward_pass.call.axis_order
        picture = inputs if order is None else order.to_grid(inputs)
        return self.again_channels_first(picture, layers, rows, gradients=gradients)

    def again_channels_first(
        self,
        inputs: Tensor,
        layers: list[str] | None = None,
        rows: Tensor | None = None,
        *,
        gradients: bool | None = None,
    ) -> Trace:
        """As `again`, for inputs in the axis order of `Trace.inputs`.

        Args:
            inputs: (n, C, *grid).
            layers: As for `again`.
            rows: As for `again`.
            gradients: As for `again`.

        Returns:
            The trace of the n inputs.

        Raises:
            InputError: As for `again`.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.again_channels_first(trace.inputs[:1], rows=torch.tensor([0])).scores.shape
            torch.Size([1, 1])
        """
        self._check_further_passes()
        forward_pass = self.forward_pass
        further = further_pass(forward_pass, self.view, inputs, layers, rows, gradients=gradients)

        def of_batches(size: int | None) -> Trace:
            count = len(further.call)
            if size in (None, count):
                return trace_model(forward_pass.model, further.call, further.request, further.target, self.origin)
            if count > size:
                raise BatchTooLarge(forward_pass.model, size, count)
            whole = further.filled_up(size)
            return trace_model(forward_pass.model, whole.call, whole.request, whole.target, self.origin).first(count)

        with forward_pass.autocast_context():
            return with_fixed_batch(forward_pass.model, forward_pass.call, of_batches)

    def bound(self) -> Bound:
        """The question of this trace, as a target for another pass over the same inputs.

        Returns:
            A target that binds to the same question whatever the output is.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> x = torch.rand(2, 3, 10, 10)
            >>> tp.explain(model, 0.5 * x, target=tp.trace(model, x).bound()).values.shape
            torch.Size([2, 1, 8, 8])
        """
        return Bound(self.question, tuple(self.forward_pass.call.observed))

    def rescore(
        self,
        change: Change,
        trials: int,
        *,
        live: Tensor | None = None,
        batch: int | None = None,
        precision: Precision = None,
    ) -> Tensor:
        """Scores of changed inputs: all K scores in one pass for each sample and trial.

        Args:
            change: Called as `change(inputs (b, C, *grid), rows (b,), trials (b,))` with copies that it may write into;
                returns as many changed inputs.
            trials: How many changed versions there are of each sample.
            live: (N, trials), bool: where it is False, no pass runs and the clean scores stand.
            batch: How many inputs one pass takes. None takes as many as fit into memory, and half as many after an
                out-of-memory error.
            precision: "bfloat16" runs the passes under autocast; None as the model is.

        Returns:
            (N, trials, K): the scores.

        Raises:
            InputError: When `trials` or `batch` is below 1, or `change` returns another shape.
            OptionError: When `precision` is none of these.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.rescore(lambda x, rows, trials: x * 0.5, trials=4).shape
            torch.Size([2, 4, 1])
        """
        self._check_further_passes()
        return perturbation.rescore(
            self.forward_pass, change, trials, live=live, batch=batch, precision=precision, view=self.view
        )

    def ablate(self, change: Change, trials: int, *, live: Tensor | None = None, batch: int | None = None) -> Tensor:
        """Scores with the one layer's output changed. What comes before the layer does not run again.

        Before this is relied on, it is compared with whole passes, for each model and layer; where it would differ,
        whole passes run, with a notice.

        Args:
            change: Called as `change(activations (b, C, *grid), rows (b,), trials (b,))`; the rest is as for `rescore`.
            trials: As for `rescore`.
            live: As for `rescore`.
            batch: As for `rescore`.

        Returns:
            (N, trials, K): the scores.

        Raises:
            InputError: As for `rescore`.
            AmbiguousCall: When the trace holds several layers.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.ablate(lambda a, rows, trials: a * 0, trials=4).shape
            torch.Size([2, 4, 1])
        """
        self._check_further_passes()
        return ablation.ablate(self.forward_pass, self.layer, change, trials, live=live, batch=batch)

    def variants(self, change: Change, trials: int) -> Iterator[tuple[Tensor, Tensor, Trace]]:
        """The same question about changed inputs, traced with gradients, as many at once as memory allows.

        Args:
            change: As for `rescore`.
            trials: As for `rescore`.

        Yields:
            (rows (b,), trials (b,), trace): entry i of the trace is sample rows[i] in its trial trials[i].

        Raises:
            InputError: As for `rescore`.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> [part.gradients.shape for _, _, part in trace.variants(lambda x, rows, trials: x * 0.5, trials=2)]
            [torch.Size([4, 1, 8, 8, 8])]
        """
        check_counts(trials, None)

        def trace_changed(rows: Tensor, trial_numbers: Tensor) -> Trace:
            changed = change(sample_rows(self.inputs, rows).clone(), rows, trial_numbers)
            check_changed(changed, (len(rows), *self.inputs.shape[1:]))
            return self.again_channels_first(changed, rows=rows, gradients=True)

        batch = self.gradient_batch_size
        yield from chunks(trace_changed, len(self.inputs), trials, batch, "changed inputs")

    @property
    def gradient_batch_size(self) -> int:
        """How many changed inputs one pass takes where the gradients of all K scores at the layers are kept."""
        return perturbation.gradient_batch_size(self.forward_pass)

    def input_gradients(self, inputs: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of changed inputs, and the gradient of each with respect to its input.

        Args:
            inputs: (n, C, *grid).
            rows: (n,): inputs[i] is a version of sample rows[i].
            columns: (n,): its score is score columns[i] of the K.

        Returns:
            Scores (n,) and gradients (n, C, *grid).

        Raises:
            NotConnected: When no gradient flows back to the input.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> scores, gradients = trace.input_gradients(trace.inputs, torch.tensor([0, 1]), torch.tensor([0, 0]))
            >>> scores.shape, gradients.shape
            (torch.Size([2]), torch.Size([2, 3, 10, 10]))
        """
        self._check_further_passes()
        return perturbation.input_gradients(self.forward_pass, inputs, rows, columns, self.view)

    def hessian_times(self, vector: Tensor) -> Tensor:
        """The Hessian of each score with respect to the one layer's output, times `vector`.

        Args:
            vector: (N, 1 or K, C, *grid).

        Returns:
            (N, K, C, *grid).

        Raises:
            GradUnavailable: When the pass kept no graph, or a part of the model has no second derivative.
            NotConnected: When a score does not depend on the layer.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0", target=5)
            >>> trace.hessian_times(torch.ones(2, 1, 8, 8, 8)).shape
            torch.Size([2, 1, 8, 8, 8])
        """
        return hessian_times(self.forward_pass, self.layer, vector)

    @property
    def attentions(self) -> Sequence[Attention]:
        """The attention weights, layer after layer. Raises GradUnavailable where they were not kept."""
        if self.forward_pass.attentions is None:
            raise GradUnavailable("this trace was made without attention; make it again with attention=True")
        return self.forward_pass.attentions

    @cached_property
    def attention_gradients(self) -> Sequence[Tensor]:
        """(N, K, heads, T, T) for each of `attentions`: gradients of the scores, at least float32."""
        attentions = self.attentions
        with preserved(self.forward_pass.model):
            return attention_gradients(self.forward_pass.scores_with_graph, attentions)

    @property
    def layerwise_attention_gradients(self) -> Iterator[Tensor]:
        """(N, K, heads, T, T) for each of `attentions`: of the scores that its own block's tokens would get.

        The tokens that a block returns go through what comes after the last block (arXiv:2404.03214, section 3). These
        passes run anew each time.
        """
        attentions = self.attentions
        with preserved(self.forward_pass.model), self.forward_pass.autocast_context():
            scores = ablation.scores_after_layer(self.forward_pass, attentions[-1].block)
            yield from layerwise_attention_gradients(scores, attentions)

    @cached_property
    def tokens(self) -> Layout:
        """The layout of what the last block returns. Raises NoSpatialLayer where its tokens lie on no one grid."""
        block = self.attentions[-1].block
        model = self.forward_pass.model
        layout = layout_of(model, self.forward_pass.call, layer_at(model, block))
        if layout is None:
            raise NoSpatialLayer(
                f"which tokens lie on the picture's grid cannot be inferred at {block!r}: no grid of the picture "
                "has that many positions. Choose a method of one layer, with layer= and layout="
            )
        return layout

    @cached_property
    def readout_weights(self) -> Tensor:
        """(N, K, T): with what weight each score reads the tokens after the last block; each row sums to 1.

        If the score depends on any token of the grid, all tokens of the grid get the same weight. Otherwise the other
        tokens on which it depends share the weight, such as the class token. If it depends on none, as with a head of
        zeros, the first token before the grid gets the weight, or the whole grid.
        """
        last, tokens = self.attentions[-1].block_output, self.tokens
        if last is None or last.edge is None:
            raise GradUnavailable(f"the gradient of the score shows which tokens it reads; {NO_GRAPH}")
        with preserved(self.forward_pass.model):
            return readout_weights(self.forward_pass.scores_with_graph, last, tokens)

    def _check_further_passes(self) -> None:
        """Raise GradUnavailable for a trace of a training step, in which the model may be in training mode."""
        if self.create_graph:
            raise GradUnavailable(
                "this trace was made with create_graph=True, of the model as it was, so further passes, in eval mode, "
                "would score another function. Next: make a trace without create_graph for these"
            )
