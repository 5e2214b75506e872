"""The linear head that reads a layer's global average, as CAM (arXiv:1512.04150) needs it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchpeek.engine.effective_weight import effective_weight
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import ClassScores, ContrastScores, class_logits


def linear_head(forward_pass: ForwardPass, layer: str) -> Tensor | None:
    """(N, K, C): for each score, the weights of the linear layer that reads the global average of `layer`.

    They are taken from the parameters, detached unless the pass has `create_graph`, and only where they reproduce what
    the model returned: the weights times the mean of the layer's output over the grid, plus the bias, are the logits.
    None where no linear layer does.
    """
    question, capture = forward_pass.question, forward_pass.captures[layer]
    if not isinstance(question, (ClassScores, ContrastScores)):
        return None
    pooled = at_least_float32(capture.activation.detach()).flatten(2).mean(2)  # (N, C)
    model_logits = class_logits(forward_pass.output, question.part).detach()  # (N, classes)
    of_logits = replace(question, part="")  # the same scores, of the logits alone
    tolerance = _TOLERANCE[capture.returned.dtype]
    rows = torch.arange(len(model_logits))
    sizes = (model_logits.shape[1], pooled.shape[1])
    for name, module in forward_pass.model.named_modules():
        if not isinstance(module, nn.Linear) or _size(module) != sizes:
            continue
        with preserved(forward_pass.model, evaluating=not forward_pass.create_graph):
            effective = effective_weight(name, module)
        if effective is None:
            continue
        weights = effective.to(pooled)  # (classes, C)
        bias = None if module.bias is None else module.bias.detach().to(pooled)
        with torch.autocast(pooled.device.type, enabled=False):
            logits = F.linear(pooled, weights, bias)  # (N, classes)
        same_logits = _close(logits, model_logits, tolerance)
        if same_logits and _close(of_logits(logits, rows), forward_pass.scores.detach(), tolerance):
            return question.combined(module.weight.to(pooled) if forward_pass.create_graph else weights)
    return None


def _size(module: nn.Linear) -> tuple[int, ...]:
    """(classes, C) of the weight, without computing one that is computed when it is read."""
    stored = module._parameters.get("weight")
    return (module.out_features, module.in_features) if stored is None or is_lazy(stored) else tuple(stored.shape)


# How far a head's scores may be from the model's, relative to the largest: the rounding of the sums.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
