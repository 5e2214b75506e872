"""Gradients of the scores with respect to what the captured layers returned, on their grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from torchpeek.engine.capture import Capture
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.gradients import NO_GRAPH, hessian_product, score_gradients
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import exclusive, preserved
from torchpeek.errors import GradUnavailable, NotConnected
from torchpeek.hooks import grad_mode
from torchpeek.interrupts import let_interrupts_through


def layer_gradients(forward_pass: ForwardPass) -> Mapping[str, Tensor]:
    """Layer -> (N, K, C, *grid): its gradients, of all scores, by one batched vector-Jacobian product.

    Raises GradUnavailable where the pass kept no graph, NotConnected where a score does not depend on a layer.
    """
    captures = list(forward_pass.captures.values())
    handles = [each.handle for each in captures if each.handle is not None]
    if len(handles) < len(captures):
        raise GradUnavailable(NO_GRAPH)
    # The backward pass runs checkpointed parts of the model once more, so this preserves the model, too.
    model, scores, create_graph = forward_pass.model, forward_pass.scores_with_graph, forward_pass.create_graph
    with exclusive(model) if create_graph else preserved(model):
        largest = max(each.returned.nbytes for each in captures)
        gradients = score_gradients(scores, handles, largest, create_graph=create_graph)
    if unconnected := [each.layer for each, gradient in zip(captures, gradients, strict=True) if gradient is None]:
        raise NotConnected(_not_connected(unconnected))
    pairs = zip(captures, gradients, strict=True)
    with grad_mode(True) if create_graph else nullcontext():
        return {each.layer: _grid_gradient(each, gradient) for each, gradient in pairs if gradient is not None}


def hessian_times(forward_pass: ForwardPass, layer: str, vector: Tensor) -> Tensor:
    """(N, K, C, *grid): the Hessian of each score with respect to the layer's output, times (N, 1 or K, C, *grid).

    Raises GradUnavailable where the pass kept no graph, NotConnected where a score does not depend on the layer.
    """
    capture = forward_pass.captures[layer]
    if capture.handle is None:
        raise GradUnavailable(NO_GRAPH)
    with preserved(forward_pass.model), torch.enable_grad():
        scores = forward_pass.scores_with_graph
        vectors = vector.to(capture.returned.dtype).expand(-1, scores.shape[1], *vector.shape[2:])
        products = []
        for k in range(scores.shape[1]):
            let_interrupts_through()
            of_score = capture.as_returned(vectors[:, k])
            product = hessian_product(scores[:, k].sum(), capture.handle, of_score, capture.layer)
            if product is None:
                raise NotConnected(_not_connected([capture.layer]))
            products.append(product)
    return at_least_float32(capture.to_grid(torch.stack(products)))


def _grid_gradient(capture: Capture, gradient: Tensor) -> Tensor:
    """(K, *shape of the layer's tensor) -> (N, K, C, *grid), at least float32.

    Raises NotConnected where a score depends on tokens outside the grid alone.
    """
    on_grid = capture.to_grid(gradient)
    layout = capture.layout
    if layout.others:
        grid_matters = (on_grid.flatten(2) != 0).any(2)  # (N, K)
        any_matters = (layout.samples_first(gradient, lead=1).flatten(2) != 0).any(2)
        if bool((any_matters & ~grid_matters).any()):
            raise NotConnected(
                f"at {capture.layer!r} ({layout}) the score depends on the tokens beside the grid alone, such as the "
                "class token: its gradient is zero at every position of the picture. Choose a layer before the last "
                "exchange between the tokens, such as the last block's first norm; layer=None suggests one"
            )
    return at_least_float32(on_grid)


def _not_connected(layers: Sequence[str]) -> str:
    named = ", ".join(map(repr, layers))
    return (
        f"the score does not depend on {named}: no gradient flows back to it. Either the model does not use its "
        "output for this score (an auxiliary head, another branch), or it detaches it, runs it under "
        "torch.no_grad() or inference_mode(), or checkpoints it with use_reentrant=True. Choose another layer, or a "
        "method that needs no gradients (torchpeek methods lists them)"
    )
