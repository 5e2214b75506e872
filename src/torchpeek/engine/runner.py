"""Asks a model questions: one clean pass, or many changed ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.engine.forward import check_inputs, run, run_fast
from torchpeek.engine.guard import as_found
from torchpeek.engine.layouts import check_spatial, why_not_finite
from torchpeek.engine.notes import Notes
from torchpeek.engine.plans import checked, copied, refuse, refused
from torchpeek.engine.replay import Differs, Replay, of_rows, returning
from torchpeek.engine.scoring import as_dtype, check_changed, check_counts, chunk_size, chunks, score_chunks
from torchpeek.engine.targets import Target
from torchpeek.engine.trace import Capture, Change, Origin, Trace
from torchpeek.errors import AmbiguousCall, InputError, NotConnected, NotFinite, NotFired, notify
from torchpeek.hooks import attached, select
from torchpeek.hooks.attach import ForwardHook
from torchpeek.hooks.forwards import replaced
from torchpeek.hooks.select import why_not_fired

# What the gradients at the layers may take, in one chunk of changed inputs.
_GRADIENT_BYTES = 256 * 2**20


class ModelRunner:
    """Runs one model, in eval mode, and leaves it as found."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model is a {type(model).__name__}; allowed: an nn.Module or a LoadedModel (tp.load_model)"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError("a scripted or traced model takes no hooks; give the nn.Module that it was made from")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError("the model is on the meta device, which has no numbers; load its weights on a real one")
        # torch.compile(model) wraps the model and changes the layers' names; the model inside is run eagerly.
        wrapped = type(model).__name__ == "OptimizedModule"
        self.model: nn.Module = model.get_submodule("_orig_mod") if wrapped else model

    def trace(
        self,
        inputs: Tensor,
        layers: Sequence[str],
        target: Target,
        *,
        gradients: bool = True,
        noting: bool = False,
        origin: Origin | None = None,
    ) -> Trace:
        """One pass over `inputs` (N, ...), kept at `layers`, with `target` bound to its output.

        With `gradients` the graph starts at the first of the layers: nothing before it is recorded, and no parameter's
        `.grad` is touched. With `noting` the pass notes what `Trace.ablate` needs at the one layer, which otherwise
        takes one more. Raises NotFired, AmbiguousCall, NoSpatialLayer, NotFinite and NotConnected.
        """
        check_inputs(inputs)
        # A copy, without a graph before it: neither the caller nor the model writes into what the trace keeps.
        inputs = inputs.detach().clone()
        if len(inputs) > 1 and (name := _mixes_samples(self.model)):
            notify(
                f"{name!r} normalises with the statistics of the batch at hand, also in eval mode: the samples of a "
                "batch change each other's scores and heatmaps. Give them one by one for results of their own"
            )
        origin = origin or Origin(type(self.model).__name__)
        chosen = {name: select(self.model, name)[name] for name in layers}
        kind = inputs.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with as_found(self.model):
            captures, output, notes = self._clean_pass(inputs, chosen, gradients, noting)
            trace = Trace(self, inputs, captures, output, target.bind(output), origin, notes, autocast)
            if gradients and not trace._scores_with_graph().requires_grad:
                # A part of the model ends a no_grad block of its own, and with it what the hook turned on.
                notify(
                    "the model turns gradients off in a part of itself; one more pass keeps the graph from the start"
                )
                with torch.enable_grad():
                    captures, output, _ = self._clean_pass(inputs, chosen, gradients, False)
                trace = Trace(self, inputs, captures, output, target.bind(output), origin, notes, autocast)
            if not torch.isfinite(trace.scores).all():
                raise NotFinite(f"the model's scores have NaN or infinity{why_not_finite(inputs, trace.scores)}")
            if gradients:
                _ = trace.gradients_at  # now, while the model is in hand
        return trace

    def rescore(
        self, trace: Trace, perturb: Change, trials: int, live: Tensor | None, batch: int | None, precision: str | None
    ) -> Tensor:
        """(N, trials, K): scores with the inputs changed, by whole passes."""
        check_counts(trials, batch)
        inputs = trace.inputs
        batch = 1 if _mixes_samples(self.model) else batch or chunk_size(inputs[:1])
        dtype = as_dtype(precision, inputs)
        regime = trace.regime(dtype)

        def score(rows: Tensor, numbers: Tensor) -> Tensor:
            given = perturb(of_rows(inputs, rows).clone(), rows, numbers)
            check_changed(given, (len(rows), *inputs.shape[1:]))
            with regime:
                answer = run_fast(self.model, given, half=dtype is not None)
            return trace.question(answer, rows)

        with as_found(self.model):
            return score_chunks(score, trace.scores, trials, live, batch, "changed inputs")

    def ablate(self, trace: Trace, edit: Change, trials: int, live: Tensor | None, batch: int | None) -> Tensor:
        """(N, trials, K): scores with the traced layer's output changed; what comes before the layer runs only once.

        Whole passes, with a notice, where a replay would not give the same.
        """
        check_counts(trials, batch)
        name, inputs = trace.layer, trace.inputs
        activation = trace.at[name].activation.detach()
        layer, what = select(self.model, name)[name], f"changes of {name}"

        def changed(rows: Tensor, numbers: Tensor) -> Tensor:
            made = edit(of_rows(activation, rows).clone(), rows, numbers)
            check_changed(made, (len(rows), *activation.shape[1:]))
            return made.to(activation.dtype)

        def by_a_whole_pass(rows: Tensor, numbers: Tensor) -> Tensor:
            with attached([(layer, returning(changed(rows, numbers).clone()))]):
                return trace.question(run(self.model, of_rows(inputs, rows).clone()), rows)

        batch = 1 if _mixes_samples(self.model) else batch
        with as_found(self.model), trace.regime():
            try:
                size, replay = self._replay(trace, layer, batch or chunk_size(activation[:1], suffix=True), trials)

                def by_replay(rows: Tensor, numbers: Tensor) -> Tensor:
                    return trace.question(replay.output(changed(rows, numbers), rows), rows)

                return score_chunks(by_replay, trace.scores, trials, live, size, what)
            except Differs as error:
                why = str(error)
            notify(f"whole passes for each change of {name!r}, as a replay of what comes after it {why}")
            scores = score_chunks(by_a_whole_pass, trace.scores, trials, live, batch or chunk_size(inputs[:1]), what)
            refuse(self.model, name, inputs, why)  # now that it is known that it was not the model that failed
        return scores

    def variants(self, trace: Trace, perturb: Change, trials: int) -> Iterator[tuple[Tensor, Tensor, Trace]]:
        """The same question of changed inputs, traced at the same layers, a chunk at a time."""
        check_counts(trials, None)

        def changed(rows: Tensor, numbers: Tensor) -> Tensor:
            made = perturb(of_rows(trace.inputs, rows).clone(), rows, numbers)
            check_changed(made, (len(rows), *trace.inputs.shape[1:]))
            return made

        yield from chunks(
            lambda rows, numbers: trace.again(changed(rows, numbers), rows=rows, gradients=True),
            len(trace.inputs),
            trials,
            self.gradient_batch(trace),
            "changed inputs",
        )

    def gradient_batch(self, trace: Trace) -> int:
        """How many changed inputs to pass at once where gradients are kept, of all the scores."""
        if _mixes_samples(self.model):
            return 1
        captured = max((capture.activation[:1].nbytes for capture in trace.at.values()), default=1)
        most = _GRADIENT_BYTES // max(1, captured * trace.question.labels.shape[1])
        return max(1, min(chunk_size(trace.inputs[:1]) // 2, most))

    def input_gradients(self, trace: Trace, inputs: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) of changed inputs (n, ...), and the gradient of each with respect to its input."""
        leaf = inputs.detach().clone()
        with as_found(self.model), trace.regime(), torch.enable_grad():
            leaf.requires_grad_()
            scores = trace.question(run(self.model, leaf.clone()), rows)  # (n, K)
            asked = scores.gather(1, columns.to(scores.device).unsqueeze(1)).squeeze(1)
            if not asked.requires_grad:
                raise NotConnected("the score does not depend on the input: no gradient flows back to it")
            (gradient,) = torch.autograd.grad(asked.sum(), leaf)
        return asked.detach(), gradient

    def _replay(self, trace: Trace, layer: nn.Module, size: int, trials: int) -> tuple[int, Replay]:
        """How many at once, and a checked replay of what comes after the layer. Raises Differs."""
        name, inputs = trace.layer, trace.inputs
        if why := refused(self.model, name, inputs):
            raise Differs(why)
        activation, notes = trace.at[name].activation.detach(), trace.noted
        while True:
            batch = min(size, trials * len(inputs))
            try:
                replay = checked(self.model, name, layer, inputs, activation, notes, trace.question, batch)
                break
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                size = batch // 2
        if not notes.confirmed:
            replay.confirm(activation, trace.output, trace.question)
            notes.confirmed = True
        return size, replay

    def noted(self, trace: Trace) -> Notes:
        """One more pass, noted at the trace's one layer. Raises Differs."""
        name, inputs = trace.layer, trace.inputs
        layer = select(self.model, name)[name]
        with as_found(self.model):
            # Twice, where what was taken to be left alone was overwritten this time: then with copies.
            for known in (copied(self.model, name, inputs), None):
                notes = Notes(len(inputs), known)
                with trace.regime(), replaced(notes.forwards(self.model)), attached([(layer, notes.closing)]):
                    run(self.model, inputs.clone())
                if (done := notes.checked()) is not None:
                    return done
        raise Differs("is not possible: the model overwrites what it returned")

    def _clean_pass(
        self, inputs: Tensor, layers: Mapping[str, nn.Module], gradients: bool, noting: bool
    ) -> tuple[dict[str, Capture], Any, list[Notes]]:
        recorder = _Recorder(inputs, layers, gradients)
        hooks = recorder.hooks()
        if not noting or len(layers) != 1:
            with attached(hooks):
                output = run(self.model, inputs.clone())
            return recorder.captures(self.model), output, []
        [(name, layer)] = layers.items()
        notes = Notes(len(inputs), copied(self.model, name, inputs))
        with replaced(notes.forwards(self.model)), attached([*hooks, (layer, notes.closing)]):
            output = run(self.model, inputs.clone())
        done = notes.checked()
        return recorder.captures(self.model), output, [] if done is None else [done]


class _Recorder:
    """Keeps what the layers return, and starts the graph at the first of them."""

    def __init__(self, inputs: Tensor, layers: Mapping[str, nn.Module], gradients: bool) -> None:
        self._inputs = inputs
        self._layers = layers
        self._gradients = gradients
        self._kept: dict[str, Capture] = {}
        self._calls = dict.fromkeys(layers, 0)
        self._thread = threading.get_ident()

    def hooks(self) -> list[tuple[nn.Module, ForwardHook]]:
        return [(module, partial(self._returned, name)) for name, module in self._layers.items()]

    def captures(self, model: nn.Module) -> dict[str, Capture]:
        """The layers in the order they were asked for. Raises for those that did not fire just once."""
        for name, calls in self._calls.items():
            if calls == 0:
                raise NotFired(why_not_fired(model, name, self._layers[name]))
            if calls > 1:
                raise AmbiguousCall(
                    f"layer {name!r} was called {calls} times in one pass, so it has no one output. Choose the layer "
                    "around it, or one that is called once (torchpeek layers shows the calls)"
                )
        return {name: self._kept[name] for name in self._layers}

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if threading.get_ident() != self._thread:
            return None  # somebody else is running the model
        self._calls[name] += 1
        if self._calls[name] > 1:
            return None
        check_spatial(name, module, output, self._inputs)
        if not self._gradients:
            self._kept[name] = Capture(name, output.detach().clone(), None)  # what runs next may write in place
            return None
        if output.requires_grad:
            self._kept[name] = Capture(name, output.detach().clone(), get_gradient_edge(output))
            return None
        torch.set_grad_enabled(True)  # for what comes after; as_found ends it
        leaf = output.detach().clone().requires_grad_()
        self._kept[name] = Capture(name, leaf, leaf)
        passed_on: Tensor = leaf.clone()  # not the leaf, nor a view of it: neither may be written into
        return passed_on


def _mixes_samples(model: nn.Module) -> str:
    """The name of a layer that lets the samples of a batch see each other in eval mode, or nothing."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return ""
