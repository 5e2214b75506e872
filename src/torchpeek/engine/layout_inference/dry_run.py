"""The dry run: one pass over one sample, with a hook on every layer, and what is asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from torchpeek.engine.attempts import Refusal, attempted, may_refuse
from torchpeek.engine.call_counts import call_counts
from torchpeek.engine.fixed_batch import fixed_batch_size, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.input_mismatch import unbatched_hooks
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer, layouts_in_dry_run
from torchpeek.engine.layout_inference.dry_run_observer import DryRun, DryRunObserver
from torchpeek.engine.layout_inference.error_texts import no_grid_anywhere
from torchpeek.engine.layout_inference.evidence import LayoutEvidence
from torchpeek.engine.layout_inference.position_origin import PositionTracker
from torchpeek.engine.layout_inference.token_probe import locate_grid, token_movements
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.model_config import configured_token_counts
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import ForwardHook, SelectedLayer, attached, call_name, takes_hooks


@dataclass(frozen=True)
class LayerCall:
    """One layer, and its last call in a dry run.

    Args:
        name: The layer's name.
        type: The name of its class.
        parameters: How many numbers its parameters have, with those of the layers in it.
        calls: How often the pass called it.
        output: The shape of its output, or a description of another output. None where it was not called.
        outputs: The same for each call of a layer that was called several times: `name[i]` is call i.
    """

    name: str
    type: str
    parameters: int
    calls: int = 0
    output: str | None = None
    outputs: Sequence[str] = field(default_factory=list)


LayerHook: TypeAlias = tuple[nn.Module, ForwardHook]

# One dry run for each model and signature of the call.
_DRY_RUNS: ModelCache[Any, DryRun] = ModelCache(capacity=16)


def layer_calls(model: nn.Module, call: ModelCall | None) -> list[LayerCall]:
    """Every layer, in the order of `named_modules`; with a call, also what a dry run over its first sample showed."""
    dry = None if call is None else dry_run(model, call)
    return [
        LayerCall(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter)),
            dry.calls.get(name, 0) if dry else 0,
            dry.outputs[name][-1] if dry and name in dry.outputs else None,
            list(dry.outputs[name]) if dry and dry.calls.get(name, 0) > 1 else [],
        )
        for name, module in model.named_modules()
        if name
    ]


def known_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence | None:
    """What a dry run of the model has shown, for the batch size of the call; None where there was none yet."""
    dry = _DRY_RUNS.get(model, call.signature)
    return None if dry is None else replace(dry.evidence, batch_size=len(call))


def layout_of(model: nn.Module, call: ModelCall, layer: SelectedLayer) -> Layout | None:
    """The layout of a layer's output, by a dry run; None where no layout fits, or several do."""
    dry = dry_run(model, call)
    first_name = _first_name(model, layer.module)
    counted = layer.with_total({layer.path: dry.calls.get(first_name, 0)})
    output = call_name(first_name, counted.index)
    if output not in dry.evidence.meta_outputs:
        return None
    layouts = layouts_in_dry_run(output, layer.module, dry.evidence)
    return layouts[0] if len(layouts) == 1 else None


def why_no_candidate(model: nn.Module, call: ModelCall) -> str:
    """The error text where no layer of the model has a grid: what its last layers return, for the samples of a call."""
    dry, modules = dry_run(model, call), dict(model.named_modules())
    layers = [
        (
            name,
            dry.evidence.meta_outputs[name],
            dry.calls[name],
            layouts_in_dry_run(name, modules[name], dry.evidence),
        )
        for name in dict.fromkeys(dry.layers)
    ]
    return no_grid_anywhere(model, call.model_picture.shape, layers, 1)


def with_known_totals(
    model: nn.Module, call: ModelCall, layers: Mapping[str, SelectedLayer]
) -> Mapping[str, SelectedLayer]:
    """The same layers and calls. Those that are counted from the end know how many calls a pass of one sample makes.

    That pass runs none of the user's hooks, unless the model cannot run without them.
    """
    if not any(layer.counts_from_end for layer in layers.values()):
        return layers
    counts = call_counts(model, call)
    calls = counts.by_module
    if not counts.complete:
        dry = dry_run(model, call)
        calls = {id(module): dry.calls.get(name, 0) for name, module in model.named_modules()}
    return {name: layer.with_total({layer.path: calls.get(id(layer.module), 0)}) for name, layer in layers.items()}


def _first_name(model: nn.Module, module: nn.Module) -> str:
    """The name under which a dry run observes a module that may have several."""
    names: dict[int, str] = {id(each): name for name, each in model.named_modules()}
    return names[id(module)]


def dry_run(
    model: nn.Module, call: ModelCall, *, anew: bool = False, hooks: Callable[[], Iterable[LayerHook]] = tuple
) -> DryRun:
    """Run the first sample once and return what it showed, or return the remembered dry run unless `anew`.

    What `hooks()` returns is attached in that run, too; it is called once more where the run has to be repeated.

    Where the model has tokens outside the grid and its configuration does not say where, the token probe makes three
    more passes.
    """
    key = call.signature
    remembered = None if anew else _DRY_RUNS.get(model, key)
    if remembered is not None:
        return remembered
    size = fixed_batch_size(model, call)
    result = with_fixed_batch(model, call, lambda size: _dry_run(model, call.one_sample(size), hooks))
    if fixed_batch_size(model, call) != size:  # the last pass was of another size, and failed; `hooks` were in it
        result = _dry_run(model, call.one_sample(fixed_batch_size(model, call)), hooks)
    return _DRY_RUNS.put(model, key, result)


def _dry_run(model: nn.Module, sample: ModelCall, hooks: Callable[[], Iterable[LayerHook]]) -> DryRun:
    # Some parts, such as a compiled flex_attention, take no dispatch mode of others, and say so.
    tracked = attempted(
        lambda: _observed(model, sample.for_one_pass(), hooks(), PositionTracker(model, sample)),
        lambda: _observed(model, sample.for_one_pass(), hooks(), None),
        possible=_may_refuse_tracker,
    )
    if isinstance(tracked, Refusal):  # the last pass failed; `hooks` were in it
        tracked = _observed(model, sample.for_one_pass(), hooks(), None)
    observer, output = tracked
    result = observer.result(output, configured_token_counts(model))
    to_probe = _layers_to_probe(result)
    if not to_probe:
        return result
    movements = token_movements(model, sample, result.evidence.input_size, to_probe)
    found = [
        movement and locate_grid(*movement, each.layout) for each, movement in zip(to_probe, movements, strict=True)
    ]
    counts = {_tokens(each.layout): place for each, place in zip(to_probe, found, strict=True) if place}
    if result.evidence.prefix is not None or not movements[0]:
        return observer.result(output, configured_token_counts(model), counts)
    return observer.result(output, found[0] or (None, 0), counts, probe_undecided=found[0] is None)


def _may_refuse_tracker(error: Exception) -> bool:
    return may_refuse(error) and any(text in str(error) for text in ("dispatch mode", PositionTracker.__name__))


def _observed(
    model: nn.Module, sample: ModelCall, hooks: Iterable[LayerHook], tracker: PositionTracker | None
) -> tuple[DryRunObserver, Any]:
    """One pass: what it showed, and what the model returned."""
    observer = DryRunObserver(sample, model, tracker)
    named = [(name, module) for name, module in model.named_modules() if name and takes_hooks(module)]
    inputs = [(module, partial(observer.record_inputs, name)) for name, module in named]
    outputs = [(module, partial(observer.record_call, name)) for name, module in named]
    with preserved(model), attached(chain(outputs, hooks), called=[*inputs, *unbatched_hooks(model, sample)]):
        forward = partial(run, model, sample)
        return observer, forward() if tracker is None else tracker.followed(sample, forward)


def _layers_to_probe(result: DryRun) -> list[CandidateLayer]:
    """One layer for each number of tokens of which it is not known which are outside the grid, on one grid."""
    known = result.evidence.prefix, result.evidence.suffix
    unknown = [each for each in result.candidates if each.layout.others]
    unknown = [each for each in unknown if (each.layout.prefix, each.layout.suffix) != known]
    layers: dict[int, CandidateLayer] = {}
    for each in unknown:
        if each.layout.grid == unknown[0].layout.grid:
            layers.setdefault(_tokens(each.layout), each)
    return list(layers.values())


def _tokens(layout: Layout) -> int:
    return math.prod(layout.grid) + layout.others
