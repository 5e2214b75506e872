"""The front door for heatmaps: trace, explain, compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from torchpeek.cam import Smoothing, find_method
from torchpeek.engine import Trace
from torchpeek.explanation.heatmaps import HeatmapOptions, compute_heatmaps
from torchpeek.explanation.plan import PassRequirements, run_pass
from torchpeek.explanation.request import LayerChoice, LayoutLike, TargetLike, explanation_request
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import Selection
from torchpeek.models import Inputs, Model, module_of
from torchpeek.models.quantised import quantisation_named


def trace(
    model: Model,
    inputs: Inputs,
    *,
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    gradients: bool = True,
    ablations: bool = False,
    attention: bool = False,
) -> Trace:
    """One pass over `inputs`, kept: ask it for as many methods and classes as you like, without another forward pass.

    `layer` selects one layer, or a list several; None takes a suggested one, and the trace's `origin.layer_reason` says
    why that. `layout` says how what it returns is to be read, where its shape leaves a doubt: a Layout, or its text.
    With `gradients=False` no graph is kept, for methods that need none; with `ablations=True` the pass also keeps what
    `trace.ablate` needs, which otherwise takes one more, and with `attention=True` how the tokens of a transformer
    attended to each other, for the methods that need that. The model is left exactly as it was found.
    """
    choice = LayerChoice(layer, layout)
    requirements = PassRequirements(gradients=gradients, prefix=ablations, attention=attention)
    with quantisation_named(module_of(model)):
        return run_pass(explanation_request(model, inputs, choice, target), requirements)


@overload
def explain(
    model: Model,
    inputs: Inputs,
    *,
    method: str = ...,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> Heatmap: ...
@overload
def explain(
    model: Trace,
    *,
    method: str = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> Heatmap: ...
@overload
def explain(
    model: Model,
    inputs: Sequence[Inputs],
    *,
    method: str = ...,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> list[Heatmap]: ...
def explain(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    method: str = "gradcam",
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: str | None = None,
    smooth: Smoothing | None = None,
    seed: int = 0,
    **options: Any,
) -> Heatmap | list[Heatmap]:
    """Which part of the picture decided: the Heatmap of one method.

    `model` is an nn.Module, a LoadedModel, or a Trace in place of both model and inputs. A list of inputs, which may
    differ in size, gives a list of heatmaps. `layer=None` takes a suggested layer, and `target=None` the predicted
    class; the provenance says which. `options` are the method's own (`torchpeek methods`); `seed` is for those that
    draw numbers; `smooth` averages over mirrored and scaled inputs.

    Of a list of layers, or with `fuse`, the maps of several layers become one: each is cut off below zero, scaled to
    [0, 1] and resized to the largest grid, and `fuse` is "max" (of a list, unless said otherwise), "mean" or "product".
    With `fuse` and `layer=None` they are the last layers of the three coarsest sizes of grid. Methods that combine
    layers by themselves (polycam, refinecam) take the list as it is, or, with `layer=None`, the like.

    The model runs in eval mode and is left exactly as it was found.
    """
    method = find_method(method).name
    heatmap_options, choice = HeatmapOptions(fuse, smooth, seed), LayerChoice(layer, layout)
    heatmaps = compute_heatmaps(model, inputs, {method: options}, choice, target, heatmap_options)
    heatmap: Heatmap | list[Heatmap] = heatmaps[method]
    return heatmap


@overload
def compare(  # type: ignore[overload-overlap]  # a str is a Sequence, too; as a path it is one input
    model: Model,
    inputs: Inputs,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Trace,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Model,
    inputs: Sequence[Inputs],
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, list[Heatmap]]: ...
def compare(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: str | None = None,
    smooth: Smoothing | None = None,
    seed: int = 0,
) -> dict[str, Heatmap] | dict[str, list[Heatmap]]:
    """Several methods from one shared trace: one forward pass and, if any of them needs it, one backward pass.

    Besides these, each runs what its entry in `torchpeek methods` says. Methods that combine layers share another
    trace, of their own layers, unless `layer` says which. `methods` are names, or a dict from a name to that method's
    options. Everything else is as for `explain`.
    """
    choice, options = LayerChoice(layer, layout), HeatmapOptions(fuse, smooth, seed)
    heatmaps: dict[str, Heatmap] | dict[str, list[Heatmap]] = compute_heatmaps(
        model, inputs, methods, choice, target, options
    )
    return heatmaps
