"""A score taken apart: what the input adds to it, and what the biases of every layer do.

Near a point a network is linear in its input, up to shifts: score = x . d score / d x + the sum over the modules of
(d score / d output) . shift, a module's shift being what its output has beyond its Jacobian times its input. For a
convolution or a linear layer that is the bias, for batch normalisation in eval mode its implicit bias, for a ReLU or a
pooling nothing, and for any other module output - J input. (arXiv:1905.00780, section 3; proposition 1 there.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.forward import run
from torchpeek.engine.guard import as_found
from torchpeek.hooks import attached, let_interrupts_through

if TYPE_CHECKING:
    from torchpeek.engine.trace import Trace

Made = TypeVar("Made")
Gradients: TypeAlias = tuple[Tensor | None, ...]

# A module whose output is a multiple of its input, or goes with it where it is not zero, has no shift.
_WITHOUT_SHIFT = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)

# What one backward pass may keep of all the gradients; the classes go through in as many chunks.
_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Contributions:
    """What adds up to k of the K scores: each term is (N, k, ...), the rest as the tensor that it is of."""

    inputs: Tensor  # (N, k, C, *size): input times gradient
    biases: list[Tensor]  # (N, k, *output) for each call of a module that has a shift
    remainder: Tensor  # (N, k): what of the scores they do not make up


@dataclass(frozen=True, eq=False)
class _Shifted:
    edge: GradientEdge
    shift: Tensor  # broadcasts to the output
    shape: torch.Size


def contributions(trace: Trace, use: Callable[[Contributions], Made]) -> list[Made]:
    """`use` of the contributions to all the scores, for as many of the K at once as memory allows.

    One pass from the input on, and one backward pass through all layers for each of the K.
    """
    model, count = trace.runner.model, len(trace.inputs)
    with as_found(model):
        watch = _Watch()
        leaf = trace.inputs.detach().clone()
        with trace.regime(), torch.enable_grad():
            leaf.requires_grad_()
            with watch.attached_to(model):
                output = run(model, leaf.clone())
            scores = trace.question(output, torch.arange(count))  # (N, K)
        handles: list[Any] = [leaf, *(each.edge for each in watch.found)]
        numbers = leaf.numel() + sum(each.shape.numel() for each in watch.found)
        step = max(1, _BYTES // (numbers * leaf.element_size()))
        made = []
        for start in range(0, scores.shape[1], step):
            columns = slice(start, min(start + step, scores.shape[1]))
            gradients: list[Gradients] = []
            for k in range(columns.start, columns.stop):
                let_interrupts_through()
                with torch.enable_grad():
                    score = scores[:, k].sum()
                gradients.append(torch.autograd.grad(score, handles, retain_graph=True, allow_unused=True))
            made.append(use(_terms(gradients, leaf.detach(), watch.found, scores[:, columns].detach())))
    return made


def _terms(gradients: list[Gradients], inputs: Tensor, found: list[_Shifted], scores: Tensor) -> Contributions:
    def product(number: int, factor: Tensor) -> Tensor | None:
        each = [one[number] for one in gradients]
        if all(gradient is None for gradient in each):
            return None
        with torch.no_grad():
            made = torch.stack([_or_zeros(gradient, factor) * factor for gradient in each], dim=1)
        return made if made.dtype == torch.float64 else made.float()

    of_inputs = product(0, inputs)
    if of_inputs is None:
        of_inputs = scores.new_zeros(*scores.shape, *inputs.shape[1:])
    biases = [
        term
        for number, each in enumerate(found, start=1)
        if (term := product(number, each.shift.expand(each.shape))) is not None
    ]
    remainder = scores.double()
    for term in (of_inputs, *biases):
        remainder = remainder - term.flatten(2).sum(2, dtype=torch.float64)
    return Contributions(of_inputs, biases, remainder)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


class _Watch:
    """The hooks: for each call that has a shift, where its gradient will be, and the shift."""

    def __init__(self) -> None:
        self.found: list[_Shifted] = []
        self._given: dict[nn.Module, tuple[Any, ...]] = {}

    def attached_to(self, model: nn.Module) -> AbstractContextManager[None]:
        parts = [module for module in model.modules() if not any(True for _ in module.children())]
        odd = [(module, self.called) for module in parts if _is_odd(module)]
        return attached([(module, self.returned) for module in parts], called=odd)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Before a module that works in place writes into it.
        self._given[module] = tuple(each.detach().clone() if isinstance(each, Tensor) else each for each in args)

    def returned(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad or output.ndim < 2:
            return
        shift = _shift(module, output, self._given.pop(module, ()))
        if shift is not None:
            self.found.append(_Shifted(get_gradient_edge(output), shift, output.shape))


def _shift(module: nn.Module, output: Tensor, given: tuple[Any, ...]) -> Tensor | None:
    if isinstance(module, nn.modules.conv._ConvNd):
        return None if module.bias is None else _by_channel(module.bias, output, 1)
    if isinstance(module, nn.Linear):
        return None if module.bias is None else _by_channel(module.bias, output, -1)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        assert module.running_var is not None  # both or none
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        shift = -module.running_mean * scale
        return _by_channel(shift if module.bias is None else shift + module.bias.detach(), output, 1)
    if not _is_odd(module):
        return None
    return _beyond_linear(module, output.detach(), given)


def _beyond_linear(module: nn.Module, output: Tensor, given: tuple[Any, ...]) -> Tensor | None:
    """output - J input, for any module. None where torch has no second derivative of it: then it is in the rest."""
    positions = [place for place, each in enumerate(given) if isinstance(each, Tensor) and each.is_floating_point()]
    tensors = tuple(given[place] for place in positions)

    def function(*values: Tensor) -> Any:
        filled = list(given)
        for place, value in zip(positions, values, strict=True):
            filled[place] = value.clone()  # it may work in place
        return module.forward(*filled)

    try:
        # By two backward passes, which more operations have than a forward derivative.
        along = torch.autograd.functional.jvp(function, tensors, tensors)[1]  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    if not isinstance(along, Tensor) or along.shape != output.shape:
        return None
    shift = output - along
    rounding = 64 * torch.finfo(output.dtype).eps * torch.maximum(output.abs().max(), along.abs().max())
    return shift if bool(shift.abs().max() > rounding) else None  # linear, though of no kind that is known to be


def _is_odd(module: nn.Module) -> bool:
    """Whether its shift has to be found from its derivative."""
    plain = (*_WITHOUT_SHIFT, nn.modules.conv._ConvNd, nn.Linear)
    return not isinstance(module, plain) and not _is_fixed_batch_norm(module)


def _is_fixed_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _by_channel(values: Tensor, output: Tensor, axis: int) -> Tensor:
    shape = [1] * output.ndim
    shape[axis] = -1
    return values.detach().view(shape)
