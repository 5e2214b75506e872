"""Find the projections among the layers by an experiment, however a projection is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import Refusal, attempted, shown_later
from torchpeek.engine.layout import Layout
from torchpeek.hooks import containers
from torchpeek.interrupts import interruptible

# How far the response to the mean of two inputs may be from the mean of their responses, relative to the difference of
# the responses. A quantised projection rounds; an activation function or a normalisation is off by 20 % and more.
_AFFINE_TOLERANCE = 0.02

# What counts as a change of a response, relative to the difference of the responses: of another position, where a
# product of matrices rounds differently for each shape, and of another channel, where a block that adds next to nothing
# to its input must not pass for a matrix.
_OTHER_POSITION = {torch.float64: 1e-8, torch.float32: 1e-5}
_OTHER_CHANNEL = 1e-3

# The standard deviation of the inputs of the experiment: so large that no activation function looks linear.
_DEVIATION = 4.0


def is_projection(
    module: nn.Module,
    inputs: Any,
    output: Any,
    layout: Layout,
    device: torch.device,
    *,
    inside_grid_layer: bool,
    whole_pass: Callable[[], object] = shown_later,
) -> bool:
    """Whether a layer is a projection, such as queries, keys, values, hidden units or logits of each position.

    A projection computes each position from that position alone, and mixes the channels by a matrix. If it is affine,
    it is a linear layer, whatever module computes it: a LoRA adapter, a parametrised or quantised layer, a convolution
    of size 1 or a product of the module's own parameters. If it is not affine, as with two layers and an activation
    function between them, it counts as a projection only inside another layer with a grid, because it may also be a
    block of the network.

    The module is called with random inputs that have few positions, or as many as in the pass if it takes no others.
    A convolution that returns (N, C, *grid) is never a projection here: a network is made of such layers.

    Args:
        module: The layer.
        inputs: Its arguments in the dry run, (args, kwargs), on the meta device. None where they are not one tensor.
        output: What it returned, on the meta device.
        layout: The layout of the output.
        device: Where to make the inputs, if the module has no parameters.
        inside_grid_layer: Whether a module around it, but not the model, returns a grid, too.
        whole_pass: Runs the model, where the module fails in the experiment. It shows whether it fails in a pass, too.
    """
    if isinstance(module, nn.Linear):
        return True
    if inputs is None or layout.kind == "channels-first" or layout.part or not isinstance(output, Tensor):
        return False
    [(path, like)] = containers.leaves(inputs)
    axis = 1 if layout.kind == "channel-tokens" else -1
    if like.ndim < 3 or not like.is_floating_point() or like.ndim != output.ndim:
        return False
    positions = like.movedim(axis, -1).shape[:-1]
    if positions != output.movedim(axis, -1).shape[:-1]:
        return False
    first = next(module.parameters(), None)
    device = device if first is None else first.device

    def respond(entries: Tensor) -> Tensor:
        args, kwargs = containers.with_part(inputs, path, entries.to(device, like.dtype).movedim(-1, axis))
        with interruptible():
            returned: Tensor = module(*args, **kwargs)
        return returned.detach().movedim(axis, -1).cpu().double()

    def respond_to(calls: list[Tensor]) -> list[Tensor]:
        return [respond(entries) for entries in calls]

    channels = like.shape[axis]
    for sizes in (tuple(min(size, 2) for size in positions), tuple(positions)):
        entries = _entries(sizes, channels)  # each (*sizes, channels)
        # All in one call, as more samples, unless there are as many positions as in the pass.
        calls = entries if sizes == tuple(positions) else [torch.cat(entries)]
        returned = attempted(partial(respond_to, calls), whole_pass)
        if isinstance(returned, Refusal):  # the module takes inputs of one size, or of its own kind
            continue
        responses = returned if len(calls) > 1 else list(returned[0].chunk(len(entries)))
        if any(response.shape[:-1] != entry.shape[:-1] for entry, response in zip(entries, responses, strict=True)):
            continue
        rounding = _OTHER_POSITION.get(like.dtype, 1e-2)
        return _is_projection(entries, responses, rounding, _has_matrix(module) and inside_grid_layer)
    return False


def _entries(sizes: tuple[int, ...], channels: int) -> list[Tensor]:
    """The inputs of the experiment, (*sizes, channels) each.

    Two random ones, their mean, the first with its first position from the second, and the first with one channel of
    its first position from the second, for up to three channels.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (_DEVIATION * torch.randn(*sizes, channels, generator=generator) for _ in range(2))
    origin = (0,) * len(sizes)
    other_position = first.clone()
    other_position[origin] = second[origin]
    entries = [first, second, (first + second) / 2, other_position]
    for channel in sorted({0, channels // 2, channels - 1}):
        other_channel = first.clone()
        other_channel[(*origin, channel)] = second[(*origin, channel)]
        entries.append(other_channel)
    return entries


def _is_projection(entries: list[Tensor], responses: list[Tensor], rounding: float, also_nonlinear: bool) -> bool:
    first, second, mean, other_position, *other_channels = responses
    scale = float((first - second).abs().max())
    if not scale > 0 or not scale < float("inf"):
        return False
    moved = ((other_position - first).abs() > rounding * scale).any(-1).flatten()
    if len(moved) < 2 or not bool(moved[0]) or bool(moved[1:].any()):
        return False  # positions depend on each other
    if first.shape[-1] == entries[0].shape[-1]:
        changed = [entry != entries[0] for entry in entries[4:]]
        if not any(
            bool((((response - first).abs() > _OTHER_CHANNEL * scale) & ~change).any())
            for response, change in zip(other_channels, changed, strict=True)
        ):
            return False  # each channel depends on that channel alone
    off = float((mean - (first + second) / 2).norm() / (first - second).norm())
    return also_nonlinear or off < _AFFINE_TOLERANCE


def _has_matrix(module: nn.Module) -> bool:
    """Whether it has a weight with several long axes. A normalisation has none."""
    return any(sum(size > 1 for size in parameter.shape) > 1 for parameter in module.parameters())
