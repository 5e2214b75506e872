"""Error texts: why the output of a layer has no layout, and what the user can say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from torchpeek.engine.layout import Grid, Layout, LayoutSpec
from torchpeek.engine.layout_text import described
from torchpeek.hooks import containers, takes_hooks
from torchpeek.tensor_formats import is_dense, is_dense_float

# The axes of a grid by how many they are, as texts of layouts name them.
_LETTERS = {1: "T", 2: "H W", 3: "D H W"}


NOT_OF_PICTURE = (
    "whose tokens are not positions of the picture: they are words, object queries, selected tokens or the like. "
    "Next: name a layer of the picture's own tokens, or leave layer= out to have one suggested. If these tokens are a "
    "grid all the same, say so with layout="
)
"""The end of an error text of a layer whose positions are those of other tokens."""


def text_of(spec: LayoutSpec) -> str:
    """The text of what a user said of a layout."""
    if spec.grid is not None:
        prefix = spec.prefix or 0
        return str(Layout(spec.kind, spec.grid, prefix, spec.suffix, views=spec.views, views_first=spec.views_first))
    if spec.views is None:
        return spec.kind
    axes = _LETTERS.get(spec.axes or 1, "...")
    batch = f"({spec.views} N)" if spec.views_first else f"(N {spec.views})"
    if spec.kind == "sequence-first":
        return f"T {batch} C"
    return f"{batch} C {axes}" if spec.kind in ("channels-first", "channel-tokens") else f"{batch} {axes} C"


def why_no_layout(output: Any, input_size: Grid, batch_size: int, row_major_grid: Grid | None) -> str:
    """The rest of an error text that starts with the layer and the shape of its output."""
    tensors = [tensor for _, tensor in containers.leaves(output)]
    size = " x ".join(map(str, input_size))
    inputs = f" for {'1 picture' if batch_size == 1 else f'{batch_size} pictures'}" + (f" of {size}" if size else "")
    next_step = (
        "Choose a layer before it, or one that contains it; torchpeek layers lists the shapes, layer=None suggests a "
        "layer"
    )
    if not tensors:
        return f"; a heatmap needs a tensor. {next_step}"
    floating = [tensor for tensor in tensors if is_dense_float(tensor)]
    if not floating:
        dtype = str(tensors[0].dtype)
        if not is_dense(tensors[0]):
            layout = "of a nested tensor" if tensors[0].is_nested else f"of {tensors[0].layout}"
            return f" {layout}; a heatmap needs a dense tensor. {next_step}"
        quantised = " The layer is quantised: choose one after the dequantisation." if "q" in dtype else ""
        return f" of {dtype}; a heatmap needs floating-point activations.{quantised}"
    if row_major_grid is not None:
        grid = " x ".join(map(str, row_major_grid))
        return (
            f"{inputs}: before the last stage, whose grid is {grid}, the tokens of this model are in the order in "
            f"which they are merged, and not in that of the picture. {next_step}"
        )
    reason, layouts = why_not_on_picture(floating[0], batch_size)
    if layouts:
        choice = " or ".join(f"layout={each!r}" for each in layouts)
        return f"{inputs}: {reason}. {_IF[len(layouts)]}, say so with {choice}. Otherwise choose another layer"
    if reason:
        return f"{inputs}: {reason}. {next_step}"
    return (
        f"{inputs}: no grid of more than one position fits it. Allowed are (N, C, *grid), (N, *grid, C) and tokens, "
        f"such as (N, T, C). {next_step}"
    )


# By how many layouts may be meant: two orders of the parts in the batch axis, or one grid.
_IF = {
    1: "If they are a grid of its own, such as that of a spectrogram",
    2: "If the parts are frames or views, and a map of each is meant",
}


def why_not_on_picture(tensor: Tensor, batch_size: int) -> tuple[str, list[str]]:
    """Why the axes of a tensor are no grid of the picture, and the texts that layout= takes for them.

    Args:
        tensor: What a layer returned, on whatever device.
        batch_size: How many samples there were.

    Returns:
        The reason, "" if no axes could be a grid, and the texts.
    """
    shape = tuple(tensor.shape)
    if len(shape) < 3 or 0 in shape or (len(shape) == 3 and shape[1] == batch_size == 1):
        return "", []
    grid = shape[2:]
    if shape[0] != batch_size and shape[0] % batch_size == 0:
        views = shape[0] // batch_size
        reason = (
            f"it folds {views} parts of each picture, such as windows, heads or frames, into the batch axis, so its "
            "positions are not on one grid of the picture"
        )
        axes = "T C" if len(shape) == 3 else f"C {_LETTERS.get(len(grid))}"
        if math.prod(shape[1:-1] if len(shape) == 3 else grid) < 2 or len(grid) not in _LETTERS:
            return reason, []
        return reason, [f"(N {views}) {axes}", f"({views} N) {axes}"]
    if len(shape) > 3 and shape[0] == batch_size and math.prod(grid) > 1:
        layout = Layout("channels-first", grid)
        return f"no picture axis explains {' x '.join(map(str, grid))}", [str(layout)]
    return "", []


def no_grid_anywhere(
    model: nn.Module, shape: Sequence[int], layers: Sequence[tuple[str, Any, int, Sequence[Layout]]], batch_size: int
) -> str:
    """The error text where no layer can be suggested: what the last layers return, and what can be said of them.

    Args:
        model: The model.
        shape: The shape of its input.
        layers: Layer, its output for `batch_size` samples, how often it was called, and the layouts that fit, in the
            order in which they returned.
        batch_size: How many samples there were.
    """
    start = f"no layer of {type(model).__name__} returns a grid of the picture for an input of {tuple(shape)}"
    listed: dict[str, str] = {}  # why -> the last layer of which it is so
    for layer, output, calls, layouts in reversed(layers):
        tensors = [tensor for _, tensor in containers.leaves(output) if is_dense_float(tensor) and tensor.ndim > 2]
        if not tensors:
            continue
        reason, texts = why_not_on_picture(tensors[0], batch_size)
        if layouts:
            reason, texts = "", [str(layout) for layout in layouts]
        if calls > 1:
            reason = f"called {calls} times in one pass{', and ' if reason else ''}{reason}"
        why = "; ".join([reason] * bool(reason) + [" or ".join(f"layout={text!r}" for text in texts)] * bool(texts))
        if why and len(listed) < _MOST_LISTED:
            listed.setdefault(why, f"{layer!r} {described(output, batch_size)}")
    scripted = [name for name, module in model.named_modules() if name and not takes_hooks(module)]
    if not listed and scripted:
        return (
            f"{start}: {scripted[0]!r} is scripted or traced, and its layers take no hooks. Next: put the module that "
            "it was made from in its place, or choose a method that looks at the input, such as saliency or rise"
        )
    graphs = [name for name, module in model.named_modules() if isinstance(module, fx.GraphModule)]
    if not listed and graphs:
        what = f"{graphs[0]!r}" if graphs[0] else "it"
        return (
            f"{start}: {what} is a graph whose operations are functions, and its modules only hold parameters. Next: "
            "explain the network that the graph was made from, or torch.export.unflatten(exported_program), which has "
            "its layers"
        )
    if not listed:
        return (
            f"{start}, and none returns a tensor with axes that could be one. A heatmap needs a layer that returns (N, "
            "C, *grid), (N, *grid, C) or tokens, such as (N, T, C); torchpeek layers lists what each layer returns"
        )
    each = "; ".join(f"{layer}: {why}" for why, layer in listed.items())
    return (
        f"{start}. Next: name a layer with layer=, and what its axes are with layout=. From the last layer back: {each}"
    )


# How many layers an error text lists.
_MOST_LISTED = 3
