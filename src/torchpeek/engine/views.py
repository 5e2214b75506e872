"""Views in the batch axis of a layer: which rows belong to which sample, and where each view is in the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.capture import Capture
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.preserve import preserved
from torchpeek.errors import InputError, MethodNotApplicable
from torchpeek.hooks import attached


@dataclass(frozen=True)
class PictureView:
    """The part of the picture that belongs to one view.

    Args:
        axis: The axis of the views in the picture (N, C, *grid).
        index: The view.
        has_channels: Whether another axis holds the channels. If not, each view has one.
    """

    axis: int
    index: int
    has_channels: bool

    def taken(self, picture: Tensor) -> Tensor:
        """(N, C, *grid): this view of the picture."""
        part = picture.narrow(self.axis, self.index, 1)
        return part.squeeze(self.axis) if self.has_channels else part

    def placed(self, picture: Tensor, part: Tensor) -> Tensor:
        """The picture with `part`, (N, C, *grid), in place of this view."""
        part = part.unsqueeze(self.axis) if self.has_channels else part
        before = picture.narrow(self.axis, 0, self.index)
        after = picture.narrow(self.axis, self.index + 1, picture.shape[self.axis] - self.index - 1)
        return torch.cat([before, part, after], self.axis)


def picture_view(forward_pass: ForwardPass) -> PictureView:
    """Where the view that the captures read is in the picture.

    The shapes leave one axis or two. One pass for each decides, with that part of the picture changed: of what the
    layer returns, it has to change this view and no other.

    Raises:
        MethodNotApplicable: When no part of the picture changes this view alone.
    """
    capture = next(iter(forward_pass.captures.values()))
    layout, picture = capture.layout, forward_pass.call.picture
    assert layout.view is not None
    axes = len(layout.grid)
    places = [PictureView(axis, layout.view, True) for axis in (1, 2) if picture.ndim == axes + 3]
    if picture.ndim == axes + 2:
        places.append(PictureView(1, layout.view, False))
    for place in places:
        if picture.shape[place.axis] == layout.views and _changes_this_view_alone(forward_pass, capture, place):
            return place
    raise MethodNotApplicable(
        f"the method changes the input of one view, but no part of the input "
        f"{tuple(forward_pass.call.model_picture.shape)} changes view {layout.view} of layer {capture.layer!r} "
        f"({layout}) and no other view. Next: choose a method that reads the activations and gradients of the layer, "
        "such as gradcam (torchpeek methods lists them)"
    )


def _changes_this_view_alone(forward_pass: ForwardPass, capture: Capture, place: PictureView) -> bool:
    part = place.taken(forward_pass.call.picture)
    other = part.flip(-1) * 0.5 + 0.25 if part.is_floating_point() else part.flip(-1)
    changed = place.placed(forward_pass.call.picture, other)
    of_call = partial(_returned, forward_pass, capture)
    returned = attempted(partial(of_call, forward_pass.call.with_picture(changed)), partial(of_call, forward_pass.call))
    if isinstance(returned, Refusal) or returned is None or returned.shape != capture.returned.shape:
        return False
    pairs = zip(returned.unbind(1), capture.returned.unbind(1), strict=True)
    differs = [not close(ours, theirs, theirs.dtype) for ours, theirs in pairs]
    return differs == [view == place.index for view in range(len(differs))]


def check_views(forward_pass: ForwardPass) -> None:
    """Check the order of samples and views in the batch axis, where there are several samples, by one pass of the last.

    Raises:
        InputError: When the other order is the right one.
    """
    last = len(forward_pass.call) - 1
    folded = [capture for capture in forward_pass.captures.values() if (capture.layout.views or 1) > 1]
    for capture in folded if last else ():
        layout = capture.layout
        of_call = partial(_returned, forward_pass, capture)
        one = forward_pass.call.select(torch.tensor([last]))
        alone = attempted(partial(of_call, one), partial(of_call, forward_pass.call))
        if isinstance(alone, Refusal):  # the model takes no single sample; nothing is known
            return
        other = replace(layout, views_first=not layout.views_first)
        in_other_order = other.samples_first(layout.in_layer_order(capture.returned))
        if alone is None or alone.shape[1:] != capture.returned.shape[1:]:
            continue
        same, same_in_other = (close(alone, each[last:], alone.dtype) for each in (capture.returned, in_other_order))
        if same_in_other and not same:
            right = str(replace(other, view=None))
            raise InputError(
                f"layout={str(layout)!r} does not fit layer {capture.layer!r}: a pass of the last sample alone shows "
                f"that its views are those of {right!r}. Next: layout={right!r}"
            )


def _returned(forward_pass: ForwardPass, capture: Capture, call: ModelCall) -> Tensor | None:
    """(n, views, ...): what the layer returns for another call; None where it returned something else."""
    returned: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        if capture.layout.fits(output, len(call)):
            returned.append(capture.layout.taken(output).detach().clone())

    model, layer = forward_pass.model, forward_pass.layers[capture.layer]
    with preserved(model), forward_pass.autocast_context(), attached([layer.hooked(keep)]):
        run(model, call.for_one_pass())
    return returned[0] if len(returned) == 1 else None
