"""The front door for heatmaps: trace, explain, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, overload

from torchpeek.argument_types import Allowed, Seed
from torchpeek.cam import Fusion, Smoothing, find_method
from torchpeek.engine import Arguments, Trace
from torchpeek.errors import InputError, OptionError
from torchpeek.explanation.heatmaps import HeatmapOptions, compute_heatmaps
from torchpeek.explanation.plan import PassRequirements, run_pass
from torchpeek.explanation.request import LayerChoice, LayoutLike, TargetLike, explanation_request
from torchpeek.explanation.results import HeatmapList, HeatmapsByMethod
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import Selection, containers
from torchpeek.keywords import checked_keywords, closest_keyword
from torchpeek.models import Inputs, Model, module_of
from torchpeek.models.quantised import quantisation_errors
from torchpeek.registry import NamesOrOptions


@checked_keywords
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
    create_graph: bool = False,
) -> Trace:
    """One clean pass over `inputs`, kept: explain and compare take it in place of model and inputs.

    They then ask it for other methods and classes without another forward pass. Except with `create_graph`, the model
    runs in eval mode and is left exactly as it was found.

    Args:
        model: An nn.Module, or a LoadedModel.
        inputs: A batch (N, C, *grid), a Picture, a dict of keyword arguments, or `tp.Arguments`; with a LoadedModel
            also a path or a PIL image.
        layer: A selection of one layer, or a list of several. "act[1]" is the second call in a pass of a layer that is
            called several times, "act[-1]" the last. None takes the default layer, or one for each scale that the boxes
            of a dense detector are read from; `trace.origin.layer_reason` says why.
        layout: The layout of what the layer returns, where its shape leaves a doubt: a `tp.Layout`, or its text.
        target: What is explained, as for `explain`; None for the predicted class.
        gradients: Whether gradients at the layer are kept. Methods that read none need no graph.
        ablations: Whether the pass also records what replays need, which `Trace.ablate` otherwise takes one more pass
            for.
        attention: Whether attention weights are kept, for the methods that read them.
        create_graph: Whether maps and scores can be part of a training loss. The pass is then one of the model as it
            is, with the whole graph: the modes stay, running statistics are updated, dropout draws from your random
            state. `trace.output` is what the model returned, for the other terms of the loss. The methods of one pass
            take such a trace. Gradients at the layer are of the sum of the batch's scores; where batch normalisation
            is in training mode, each picture's gradient also has its share in the scores of the others.

    Returns:
        The trace. `trace.activations` is (N, 1, C, *grid), `trace.gradients` (N, K, C, *grid), `trace.scores` (N, K).

    Raises:
        InputError: When the model or the inputs cannot be used, or `create_graph` is combined with `ablations` or
            `attention`, or with inputs that require a gradient.
        LayerError: When the layer does not exist, was not called just once and no call is chosen, or returns no grid.
        TargetError: When the target does not fit the model's output.
        NotConnected: When a score does not depend on the layer.
        NotFinite: When the layer's output or the scores have NaN or infinity.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = tp.trace(model, torch.rand(2, 3, 10, 10), layer="0")
        >>> trace.activations.shape, trace.gradients.shape
        (torch.Size([2, 1, 8, 8, 8]), torch.Size([2, 1, 8, 8, 8]))
        >>> tp.explain(trace, method="layercam", target=3).values.shape
        torch.Size([2, 1, 8, 8])
    """
    choice = LayerChoice(layer, layout)
    requirements = PassRequirements(
        gradients=gradients, prefix=ablations, attention=attention, create_graph=create_graph
    )
    if create_graph:
        _check_training_step(inputs, ablations=ablations, attention=attention)
    with quantisation_errors(module_of(model)):
        return run_pass(explanation_request(model, inputs, choice, target), requirements)


def _check_training_step(inputs: object, *, ablations: bool, attention: bool) -> None:
    if ablations or attention:
        raise InputError(
            f"create_graph=True keeps one pass of a training step; {'ablations' if ablations else 'attention'}=True is "
            "for further passes in eval mode. Next: make two traces"
        )
    arguments = (inputs.args, dict(inputs.kwargs)) if isinstance(inputs, Arguments) else inputs
    if any(tensor.requires_grad for _, tensor in containers.leaves(arguments)):
        raise InputError(
            "the inputs require a gradient, and a trace copies them, so no gradient would flow back to them. Next: "
            "give inputs.detach(), or make what comes before a part of the model"
        )


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
    seed: Seed = ...,
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
    seed: Seed = ...,
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
    seed: Seed = ...,
    **options: Any,
) -> list[Heatmap]: ...
@checked_keywords
def explain(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    method: Annotated[str, Allowed("the name of a method (torchpeek methods lists them)")] = "gradcam",
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: Fusion | None = None,
    smooth: Annotated[Smoothing | None, Allowed("tp.Smoothing(), or None")] = None,
    seed: Seed = 0,
    **options: Any,
) -> Heatmap | list[Heatmap]:
    """The heatmap of one method: which part of the picture decided.

    The model runs in eval mode and is left exactly as it was found.

    Args:
        model: An nn.Module, a LoadedModel, or a Trace in place of both model and inputs.
        inputs: A batch (N, C, *grid), a Picture, a dict of keyword arguments, or `tp.Arguments`; with a LoadedModel
            also a path or a PIL image. A list of these, which may differ in size, gives a list of heatmaps.
        method: A method's name; `torchpeek methods` lists them.
        layer: A selection of one layer, or a list of several, whose maps are then fused. "act[1]" is the second call in
            a pass of a layer that is called several times, "act[-1]" the last. None takes the default layer: the last
            one at whose grid positions the score depends. For the boxes of a dense detector, it takes the layers of all
            scales, whose maps are fused. The provenance says which, and why.
        layout: The layout of what the layer returns, where its shape leaves a doubt: a `tp.Layout`, or its text, such
            as "tokens 1+14x14". "(N 4) C H W" is for a layer with 4 frames or views of each sample in its batch axis;
            the values are then (N, K, 4, h, w), a map of each.
        target: None for the predicted class, a class index or name, a tensor or list of indices (N,) or (N, K), or a
            target from `tp.targets`.
        fuse: How the maps of several layers become one: "max" (the default for a list), "mean" or "product". Each map
            is cut off below zero, scaled to [0, 1] and resized to the largest grid first. With `layer=None` the layers
            are the last ones of the three coarsest sizes of grid or, for the boxes of a dense detector, those of all
            scales. Methods that combine layers by themselves (polycam, refinecam) take a list as it is.
        smooth: Average the maps of mirrored and scaled versions of the input; a `tp.Smoothing`.
        seed: The seed of methods that draw random numbers.
        **options: The method's own options; `torchpeek methods --json` lists them.

    Returns:
        A Heatmap with values (N, K, *grid), signed and raw, at the layer's own resolution; or a list of them.

    Raises:
        MethodNotFound: When there is no such method.
        OptionError: When the method has no such option, or its value is not allowed.
        InputError: When the model or the inputs cannot be used.
        LayerError: When the layer does not exist, was not called just once and no call is chosen, or returns no grid.
        TargetError: When the target does not fit the model's output.
        NotConnected: When a score does not depend on the layer.
        NotFinite: When activations, scores or the map have NaN or infinity.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(2, 3, 10, 10), target=[[0, 5], [1, 2]])
        >>> heatmap.values.shape, heatmap.provenance.layer
        (torch.Size([2, 2, 8, 8]), '0')
    """
    method = find_method(method).name
    _check_keywords(method, options)
    heatmap_options, choice = HeatmapOptions(fuse, smooth, seed), LayerChoice(layer, layout)
    heatmaps = compute_heatmaps(model, inputs, {method: options}, choice, target, heatmap_options)
    heatmap: Heatmap | list[Heatmap] = heatmaps[method]
    return heatmap if isinstance(heatmap, Heatmap) else HeatmapList(heatmap)


# The keywords of explain besides the options of the method.
_OWN = ("inputs", "method", "layer", "layout", "target", "fuse", "smooth", "seed")


def _check_keywords(method: str, options: Mapping[str, Any]) -> None:
    """Raise OptionError for a keyword that is no option of the method, but close to one of explain's own."""
    own = find_method(method).options
    for name in options:
        if name not in own and (keyword := closest_keyword(name, _OWN)):
            allowed = ", ".join(own) or "none"
            raise OptionError(
                f"explain has no keyword {name!r}; did you mean {keyword}=? {method!r} has the options: {allowed}"
            )


@overload
def compare(  # type: ignore[overload-overlap]  # a str is a Sequence, too; as a path it is one input
    model: Model,
    inputs: Inputs,
    *,
    methods: NamesOrOptions,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: Seed = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Trace,
    *,
    methods: NamesOrOptions,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: Seed = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Model,
    inputs: Sequence[Inputs],
    *,
    methods: NamesOrOptions,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: Seed = ...,
) -> dict[str, list[Heatmap]]: ...
@checked_keywords
def compare(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    methods: NamesOrOptions,
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: Fusion | None = None,
    smooth: Annotated[Smoothing | None, Allowed("tp.Smoothing(), or None")] = None,
    seed: Seed = 0,
) -> dict[str, Heatmap] | dict[str, list[Heatmap]]:
    """The heatmaps of several methods, from as few passes as they need together.

    Methods of one layer share one forward pass and, if any of them reads gradients, one backward pass. Methods that
    combine layers share another pass where no layer is named, and so do methods that read attention. What each method
    runs besides is in `torchpeek methods`. The model is left exactly as it was found.

    Args:
        model: As for `explain`.
        inputs: As for `explain`.
        methods: Names, or a dict from a name to that method's options.
        layer: As for `explain`.
        layout: As for `explain`.
        target: As for `explain`.
        fuse: As for `explain`.
        smooth: As for `explain`.
        seed: As for `explain`.

    Returns:
        Method name -> Heatmap with values (N, K, *grid), in the order of `methods`; for a list of inputs a list each.

    Raises:
        InputError: When `methods` is empty, or the model or the inputs cannot be used.
        TorchpeekError: As `explain` raises.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmaps = tp.compare(model, torch.rand(1, 3, 10, 10), methods=["gradcam", "layercam"])
        >>> {name: tuple(heatmap.values.shape) for name, heatmap in heatmaps.items()}
        {'gradcam': (1, 1, 8, 8), 'layercam': (1, 1, 8, 8)}
    """
    choice, options = LayerChoice(layer, layout), HeatmapOptions(fuse, smooth, seed)
    heatmaps = compute_heatmaps(model, inputs, methods, choice, target, options)
    return HeatmapsByMethod(
        (name, each if isinstance(each, Heatmap) else HeatmapList(each)) for name, each in heatmaps.items()
    )
