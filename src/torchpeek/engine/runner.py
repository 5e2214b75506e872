"""Asks a model questions: one clean pass, or many changed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attention.recorder import Attention, AttentionRecorder, layerwise_attention_gradients
from torchpeek.engine.batching import as_dtype, check_changed, check_counts, chunk_size, chunks, score_chunks
from torchpeek.engine.capture import Capture, Looks, Recorder
from torchpeek.engine.forward import run, run_fast, why_not_finite
from torchpeek.engine.layout import Layout, LayoutSpec
from torchpeek.engine.layout_inference.dry_run import known_evidence, layout_evidence, layout_of
from torchpeek.engine.model_call import ModelCall, as_model_call
from torchpeek.engine.numerics import close
from torchpeek.engine.preserve import preserved
from torchpeek.engine.replay.prefix import PrefixRecording
from torchpeek.engine.replay.suffix import Replay, ReplayMismatch, Suffix, of_rows, returning
from torchpeek.engine.replay.validation import checked, copied, refuse, refused
from torchpeek.engine.targets import Target
from torchpeek.engine.targets.neurons import layers_read
from torchpeek.engine.trace import Bound, Change, Origin, Trace
from torchpeek.errors import AmbiguousCall, InputError, NoSpatialLayer, NotConnected, NotFinite, notify
from torchpeek.hooks import attached, containers, select
from torchpeek.hooks.patched_forward import replaced

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
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise InputError(
                f"DataParallel over {len(model.device_ids)} devices runs copies, whose layers are not the model's own. "
                "Next: give the model inside of it, model.module"
            )
        # torch.compile(model) wraps the model and changes the layers' names; the model inside is run eagerly.
        wrapped = type(model).__name__ == "OptimizedModule"
        self.model: nn.Module = model.get_submodule("_orig_mod") if wrapped else model

    def trace(
        self,
        inputs: Tensor | ModelCall,
        layers: Sequence[str],
        target: Target,
        *,
        gradients: bool = True,
        noting: bool = False,
        attention: bool = False,
        origin: Origin | None = None,
        layouts: Mapping[str, Layout | LayoutSpec | None] = MappingProxyType({}),
    ) -> Trace:
        """One pass over `inputs` (N, ...), kept at `layers`, with `target` bound to its output.

        With `gradients` the graph starts at the first of the layers: nothing before it is recorded, and no parameter's
        `.grad` is touched. With `noting` the pass notes what `Trace.ablate` needs at the one layer, which otherwise
        takes one more; with `attention` it keeps how the tokens attended to each other. `layouts` says of layers how
        they are to be read. Raises MethodNotApplicable where there is no such attention, NotFired, AmbiguousCall,
        NoSpatialLayer, NotFinite and NotConnected.
        """
        # A copy, without a graph before it: neither the caller nor the model writes into what the trace keeps.
        given = as_model_call(self.model, inputs).copied()
        if len(given) > 1 and (name := _mixes_samples(self.model)):
            notify(
                f"{name!r} normalises with the statistics of the batch at hand, also in eval mode: the samples of a "
                "batch change each other's scores and heatmaps. Give them one by one for results of their own"
            )
        origin = origin or Origin(type(self.model).__name__)
        chosen = {name: select(self.model, name)[name] for name in layers}
        kind = given.picture.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        given = self.observing(given, target)
        looks = Looks(chosen, gradients, noting, attention, layouts)

        def trace_of(passed: _Passed) -> Trace:
            question = target.bind(passed.output)
            return Trace(
                self, given, passed.captures, passed.output, question, origin, passed.notes, autocast, passed.attended
            )

        with preserved(self.model):
            try:
                passed = self._clean_pass(given, looks)
            except NoSpatialLayer:
                if known_evidence(self.model, given) is not None:
                    raise
                layout_evidence(self.model, given)  # by which the outputs of layers that leave a doubt can be read
                passed = self._clean_pass(given, looks)
            trace = trace_of(passed)
            if not isinstance(target, Bound):
                self._check_apart(trace)
            if gradients and not trace._scores_with_graph().requires_grad:
                # A part of the model ends a no_grad block of its own, and with it what the hook turned on.
                notify(
                    "the model turns gradients off in a part of itself; one more pass keeps the graph from the start"
                )
                with torch.enable_grad():
                    again = self._clean_pass(given, replace(looks, noting=False))
                trace = trace_of(replace(again, notes=passed.notes))
            if not torch.isfinite(trace.scores).all():
                why = why_not_finite(given.picture, trace.scores)
                raise NotFinite(f"the model's scores have NaN or infinity{why}")
            if gradients and layers:
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
        autocast_context = trace.autocast_context(dtype)

        def score(rows: Tensor, numbers: Tensor) -> Tensor:
            made = perturb(of_rows(inputs, rows).clone(), rows, numbers)
            check_changed(made, (len(rows), *inputs.shape[1:]))
            with autocast_context:
                answer = run_fast(self.model, trace.given.of(rows, made), half=dtype is not None)
            return trace.question(answer, rows)

        with preserved(self.model):
            return score_chunks(score, trace.scores, trials, live, batch, "changed inputs")

    def ablate(self, trace: Trace, edit: Change, trials: int, live: Tensor | None, batch: int | None) -> Tensor:
        """(N, trials, K): scores with the traced layer's output changed; what comes before the layer runs only once.

        Whole passes, with a notice, where a replay would not give the same.
        """
        check_counts(trials, batch)
        name, given = trace.layer, trace.given
        layout, returned = trace.at[name].layout, trace.at[name].returned.detach()
        activation = layout.to_grid(returned)
        layer, what = select(self.model, name)[name], f"changes of {name}"

        def changed(rows: Tensor, numbers: Tensor) -> Tensor:
            made = edit(of_rows(activation, rows).clone(), rows, numbers)
            check_changed(made, (len(rows), *activation.shape[1:]))
            return layout.from_grid(made.to(activation.dtype), of_rows(returned, rows))

        def by_a_whole_pass(rows: Tensor, numbers: Tensor) -> Tensor:
            with attached([(layer, returning(changed(rows, numbers).clone(), layout))]):
                return trace.question(run(self.model, given.of(rows).handed()), rows)

        batch = 1 if _mixes_samples(self.model) else batch
        with preserved(self.model), trace.autocast_context():
            try:
                size, replay = self._replay(trace, layer, batch or chunk_size(activation[:1], suffix=True), trials)

                def by_replay(rows: Tensor, numbers: Tensor) -> Tensor:
                    return trace.question(replay.output(changed(rows, numbers), rows), rows)

                return score_chunks(by_replay, trace.scores, trials, live, size, what)
            except ReplayMismatch as error:
                why = str(error)
            notify(f"whole passes for each change of {name!r}, as a replay of what comes after it {why}")
            scores = score_chunks(
                by_a_whole_pass, trace.scores, trials, live, batch or chunk_size(given.picture[:1]), what
            )
            refuse(self.model, name, given, why)  # now that it is known that it was not the model that failed
        return scores

    def variants(self, trace: Trace, perturb: Change, trials: int) -> Iterator[tuple[Tensor, Tensor, Trace]]:
        """The same question of changed inputs, traced at the same layers, a chunk at a time."""
        check_counts(trials, None)

        def changed(rows: Tensor, numbers: Tensor) -> Tensor:
            made = perturb(of_rows(trace.inputs, rows).clone(), rows, numbers)
            check_changed(made, (len(rows), *trace.inputs.shape[1:]))
            return made

        yield from chunks(
            lambda rows, numbers: trace.again_of(changed(rows, numbers), rows=rows, gradients=True),
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
        with preserved(self.model), trace.autocast_context(), torch.enable_grad():
            leaf.requires_grad_()
            scores = trace.question(run(self.model, trace.given.of(rows, inputs).handed(leaf.clone())), rows)  # (n, K)
            asked = scores.gather(1, columns.to(scores.device).unsqueeze(1)).squeeze(1)
            if not asked.requires_grad:
                raise NotConnected("the score does not depend on the input: no gradient flows back to it")
            (gradient,) = torch.autograd.grad(asked.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise NotConnected("the score does not depend on the input: no gradient flows back to it")
        return asked.detach(), gradient

    def _replay(self, trace: Trace, layer: nn.Module, size: int, trials: int) -> tuple[int, Replay]:
        """How many at once, and a checked replay of what comes after the layer. Raises Differs."""
        name, given, capture = trace.layer, trace.given, trace.at[trace.layer]
        if why := refused(self.model, name, given):
            raise ReplayMismatch(why)
        suffix = Suffix(self.model, name, layer, capture.layout, given, trace.noted, capture.returned.detach())
        while True:
            batch = min(size, trials * len(given))
            try:
                replay = checked(suffix, trace.question, batch)
                break
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                size = batch // 2
        if not suffix.notes.confirmed:
            replay.confirm(trace.output, trace.question)
            suffix.notes.confirmed = True
        return size, replay

    def noted(self, trace: Trace) -> PrefixRecording:
        """One more pass, noted at the trace's one layer. Raises Differs."""
        name, given = trace.layer, trace.given
        layer = select(self.model, name)[name]
        with preserved(self.model):
            # Twice, where what was taken to be left alone was overwritten this time: then with copies.
            for known in (copied(self.model, name, given), None):
                notes = PrefixRecording(len(given), known)
                with trace.autocast_context(), replaced(notes.forwards(self.model)), attached([(layer, notes.closing)]):
                    run(self.model, given.handed())
                if (done := notes.checked()) is not None:
                    return done
        raise ReplayMismatch("is not possible: the model overwrites what it returned")

    def _clean_pass(self, given: ModelCall, looks: Looks) -> _Passed:
        layers = looks.layers
        recorder = Recorder(self.model, given, looks)
        hooks = recorder.hooks()
        watched = AttentionRecorder(looks.gradients, self.model) if looks.attention else None
        notes: PrefixRecording | None = None
        with ExitStack() as inside:
            if looks.noting and len(layers) == 1:
                [(name, layer)] = layers.items()
                notes = PrefixRecording(len(given), copied(self.model, name, given))
                inside.enter_context(replaced(notes.forwards(self.model)))
                hooks.append((layer, notes.closing))
            inside.enter_context(attached(hooks))
            if watched is not None:
                inside.enter_context(watched)
            output = run(self.model, given.handed())
        done = None if notes is None else notes.checked()
        attended = None if watched is None else watched.found(len(given))
        return _Passed(recorder.captures(self.model), output, [] if done is None else [done], attended)

    def layerwise(self, trace: Trace) -> Iterator[Tensor]:
        """For each attention of the trace: the gradients (N, K, heads, T, T) of what its own block's tokens score.

        What comes after the last block is replayed for each, or, where that would differ, whole passes are run.
        """
        name, rows = trace.attentions[-1].block, torch.arange(len(trace.inputs))
        layer = select(self.model, name)[name]
        with preserved(self.model), trace.autocast_context():
            last = self.trace(trace.given, [name], trace.bound(), gradients=False, noting=True)
            layout, replay = last.at[name].layout, None
            with suppress(ReplayMismatch):
                replay = self._replay(last, layer, len(rows), 1)[1]

            def score(returned: Any) -> Tensor:
                """(N, K): the scores if the last block returned this."""
                if replay is not None:
                    return trace.question(replay.output(layout.taken(returned), rows), rows)

                def instead(module: nn.Module, args: Any, output: Any) -> Any:
                    torch.set_grad_enabled(True)  # what comes before needs no graph
                    return returned

                with torch.no_grad(), attached([(layer, instead)]):
                    return trace.question(run(self.model, trace.given.handed()), rows)

            yield from layerwise_attention_gradients(score, trace.attentions)

    def layout_of_tokens(self, trace: Trace) -> Layout:
        """How what the last block returns is to be read. Raises NoSpatialLayer where its tokens are of no one grid."""
        block = trace.attentions[-1].block
        layout = layout_of(self.model, trace.given, block)
        if layout is None:
            raise NoSpatialLayer(
                f"which of the tokens that attend lie on the picture's grid is not to be seen at {block!r}: no grid of "
                "the picture has as many positions. Choose a method of one layer, with layer= and layout="
            )
        return layout

    def observing(self, given: ModelCall, target: Target) -> ModelCall:
        """With the layers that the target asks about, if it does. Raises LayerNotFound and AmbiguousCall."""
        observed = {}
        for name in layers_read(target):
            found = select(self.model, name)
            if len(found) > 1:
                listed = ", ".join(map(repr, list(found)[:6])) + (", ..." if len(found) > 6 else "")
                raise AmbiguousCall(
                    f"the target asks about {name!r}, which selects {len(found)} layers ({listed}); name one"
                )
            [(full, module)] = found.items()
            observed[name] = module, layout_of(self.model, given, full)
        return replace(given, observed=observed) if observed else given

    def _check_apart(self, trace: Trace) -> None:
        """Raise InputError where the last sample alone gives something else than in its batch.

        What goes with the samples is told by its shape, and N texts for N pictures look the same as one for each.
        """
        given, last = trace.given, len(trace.given) - 1
        if not given.by_sample or not last:
            return
        cause: Exception | None = None
        try:
            with trace.autocast_context():
                alone = run(self.model, given.of(torch.tensor([last])).handed())
            ours, theirs = dict(containers.leaves(alone)), dict(containers.leaves(trace.output))
            pairs = [(ours[path], each[last:]) for path, each in theirs.items() if each.ndim and len(each) == last + 1]
            same = all(close(one, other, one.dtype) for one, other in pairs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            same, cause = False, error
        if not same:
            named = ", ".join(sorted(repr(path.partition(".")[2]) for path in given.by_sample))
            raise InputError(
                f"sample {last} alone gives something else than in its batch of {last + 1}: of what is taken to go "
                f"with the samples ({named}) some may be the same for all of them, or the model lets them see each "
                "other. Next: tp.Arguments(..., shared=[...]) names what is for all, or give the samples one by one"
            ) from cause


@dataclass(frozen=True, eq=False)
class _Passed:
    """What a pass left behind."""

    captures: dict[str, Capture]
    output: Any
    notes: list[PrefixRecording]
    attended: Sequence[Attention] | None


def _mixes_samples(model: nn.Module) -> str:
    """The name of a layer that lets the samples of a batch see each other in eval mode, or nothing."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return ""
