"""A score taken apart: what the input adds to it, and what the biases of every layer do.

Near a point a network is linear in its input, up to shifts: score = x . d score / d x + the sum over the modules of
(d score / d output) . bias, a module's bias being what its output has beyond its Jacobian times its input. For a
convolution or a linear layer that is the bias, for batch normalisation in eval mode its implicit bias, for a ReLU or a
pooling nothing, and for any other module output - J input. (arXiv:1905.00780, section 3; proposition 1 there.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.layout_inference.candidates import is_channels_last
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import preserved
from torchpeek.errors import GradUnavailable, NotConnected
from torchpeek.hooks import attached, containers
from torchpeek.interrupts import let_interrupts_through

Made = TypeVar("Made")
Gradients: TypeAlias = tuple[Tensor | None, ...]

# A module whose output is a multiple of its input, or goes with it where it is not zero, has no bias.
_WITHOUT_BIAS = (
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

# These are one thing, also where they have parts: an activation of their own, weights that are made by others.
_UNITS_WITH_CHILDREN = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)

# What one backward pass may keep of all the gradients; the classes go through in as many chunks.
_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class FullGradients:
    """What adds up to k of the K scores: each term is (N, k, C, ...), wherever the layer has its channels."""

    inputs: Tensor  # (N, k, C, *size): input times gradient
    biases: list[Tensor]  # (N, k, *output) for each call of a module that has a bias
    remainder: Tensor  # (N, k), on the CPU: what of the scores they do not make up


@dataclass(frozen=True, eq=False)
class _BiasTerm:
    edge: GradientEdge
    bias: Tensor  # broadcasts to the output
    shape: torch.Size
    channels_last: bool


def bias_gradients(forward_pass: ForwardPass, use: Callable[[FullGradients], Made]) -> list[Made]:
    """`use` of the contributions to all the scores, for as many of the K at once as memory allows.

    One pass from the input on, and one backward pass through all layers for each of the K.
    """
    model, inputs = forward_pass.model, forward_pass.inputs
    with preserved(model):
        observer = BiasGradientObserver(inputs)
        leaf = inputs.detach().clone()
        with forward_pass.autocast_context(), torch.enable_grad():
            leaf.requires_grad_()
            with observer.attached_to(model):
                output = run(model, forward_pass.call.for_one_pass(leaf.clone()))
            scores = forward_pass.question(output, torch.arange(len(inputs)))  # (N, K)
        if not scores.requires_grad:
            raise NotConnected(
                "the score does not depend on the input: no gradient flows back to it. The model detaches it, or runs "
                "a part under torch.no_grad() or inference_mode(); choose a method that needs no gradients"
            )
        handles: list[Any] = [leaf, *(each.edge for each in observer.found)]
        numbers = leaf.numel() + sum(each.shape.numel() for each in observer.found)
        step = max(1, _BYTES // (numbers * leaf.element_size()))
        made = []
        for start in range(0, scores.shape[1], step):
            columns = slice(start, min(start + step, scores.shape[1]))
            gradients: list[Gradients] = []
            for k in range(columns.start, columns.stop):
                let_interrupts_through()
                with torch.enable_grad():
                    score = scores[:, k].sum()
                gradients.append(_backward(score, handles))
            made.append(use(_full_gradients(gradients, leaf.detach(), observer.found, scores[:, columns].detach())))
    return made


def _backward(score: Tensor, handles: list[Any]) -> Gradients:
    try:
        return torch.autograd.grad(score, handles, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise GradUnavailable(
            "the model overwrites what the way back through all layers needs, so that it cannot be trained either: "
            f"choose a method that needs no gradients, or those of one late layer only ({error})"
        ) from error


def _full_gradients(
    gradients: list[Gradients], inputs: Tensor, found: list[_BiasTerm], scores: Tensor
) -> FullGradients:
    def product(number: int, factor: Tensor) -> Tensor | None:
        each = [one[number] for one in gradients]
        if all(gradient is None for gradient in each):
            return None
        with torch.no_grad():
            made = torch.stack([_or_zeros(gradient, factor) * factor for gradient in each], dim=1)
        return at_least_float32(made)

    of_inputs = product(0, inputs)
    if of_inputs is None:
        of_inputs = scores.new_zeros(*scores.shape, *inputs.shape[1:])
    biases = [
        term.movedim(-1, 2) if each.channels_last else term
        for number, each in enumerate(found, start=1)
        if (term := product(number, each.bias.expand(each.shape))) is not None
    ]
    remainder = scores.cpu().double()  # not every device has float64
    for term in (of_inputs, *biases):
        remainder = remainder - term.flatten(2).sum(2).cpu().double()
    return FullGradients(of_inputs, biases, remainder)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


class BiasGradientObserver:
    """The hooks: for each call that has a bias, where its gradient will be, and the bias."""

    def __init__(self, inputs: Tensor) -> None:
        self.found: list[_BiasTerm] = []
        self._inputs = inputs
        self._last: tuple[torch.Size, bool] = (torch.Size(), False)  # what a module last returned, and how it lies
        self._arguments: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def attached_to(self, model: nn.Module) -> AbstractContextManager[None]:
        units = list(_units(model))
        odd = [(module, self.called) for module in units if _torch_class(module) is None]
        return attached([(module, self.returned) for module in units], called=odd)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Before a module that works in place writes into it.
        self._arguments[module] = containers.mapped((args, kwargs), lambda path, tensor: tensor.detach().clone())

    def returned(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        given = self._arguments.pop(module, ((), {}))
        # What is not by sample, such as a table, has one gradient for all of them, which cannot be told apart.
        count = len(self._inputs)
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != count or not output.requires_grad:
            return None
        channels_last = self._has_channels_last(module, output)
        self._last = output.shape, channels_last
        bias = _implicit_bias(module, output.detach(), given)
        if bias is None:
            return None
        # Writing into a view gives it another history, and the edge would no longer be a part of it.
        passed_on = output.clone() if output._is_view() else output
        self.found.append(_BiasTerm(get_gradient_edge(passed_on), bias, output.shape, channels_last))
        return passed_on if passed_on is not output else None

    def _has_channels_last(self, module: nn.Module, output: Tensor) -> bool:
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            return output.ndim > 2
        if isinstance(module, _CHANNELS_FIRST):
            return False
        shape, channels_last = self._last
        return channels_last if output.shape == shape else is_channels_last(module, output, self._inputs)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are taken as they are: those without parts, and those whose class says what they do."""
    if isinstance(module, torch.jit.ScriptModule):
        return  # takes no hooks
    if isinstance(module, _UNITS_WITH_CHILDREN) or not any(True for _ in module.children()):
        yield module
        return
    for name, child in module.named_children():
        if name != "parametrizations":  # these make weights
            yield from _units(child)


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch's that says what the module does, if its `forward` is that class's own."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules") and "forward" in kind.__dict__:
            known = issubclass(kind, (*_WITHOUT_BIAS, nn.modules.conv._ConvNd, nn.Linear)) or (
                issubclass(kind, nn.modules.batchnorm._BatchNorm) and getattr(module, "running_mean", None) is not None
            )
            own = "forward" in module.__dict__ or type(module).forward is not kind.__dict__["forward"]
            return kind if known and not own else None
    return None


def _implicit_bias(module: nn.Module, output: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor | None:
    kind = _torch_class(module)
    if kind is None:
        return _nonlinear_remainder(module, output, given)
    if issubclass(kind, (nn.modules.conv._ConvNd, nn.Linear)):
        bias: Any = module.bias
        return None if bias is None else _by_channel(bias, output, -1 if issubclass(kind, nn.Linear) else 1)
    if issubclass(kind, nn.modules.batchnorm._BatchNorm):
        mean, variance, weight, offset = (
            getattr(module, name) for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = (variance + module.eps).rsqrt() if weight is None else (variance + module.eps).rsqrt() * weight
        return _by_channel(-mean * scale if offset is None else offset - mean * scale, output, 1)
    return None


def _nonlinear_remainder(
    module: nn.Module, output: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]]
) -> Tensor | None:
    """output - J input, for any module. None where torch has no such derivative of it: then it is in the rest."""
    leaves = [(path, tensor) for path, tensor in containers.leaves(given) if tensor.is_floating_point()]
    tensors = tuple(tensor for _, tensor in leaves)
    if not tensors:
        return output  # of no input: all that it returns

    def function(*values: Tensor) -> Any:
        changed = {path: value.clone() for (path, _), value in zip(leaves, values, strict=True)}  # it may work in place
        args, kwargs = containers.mapped(given, lambda path, tensor: changed.get(path, tensor))
        return module.forward(*args, **kwargs)

    for derivative in (torch.func.jvp, torch.autograd.functional.jvp):  # the latter by two backward passes
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch's own ways to a forward derivative
                along = derivative(function, tensors, tensors)[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError):  # torch has no such derivative of some operation
            continue
        if not isinstance(along, Tensor) or along.shape != output.shape:
            return None
        bias = output - along
        rounding = 64 * torch.finfo(output.dtype).eps * torch.maximum(output.abs().max(), along.abs().max())
        return bias if bool(bias.abs().max() > rounding) else None  # linear, though of no kind that is known to be
    return None


def _by_channel(values: Tensor, output: Tensor, axis: int) -> Tensor:
    shape = [1] * output.ndim
    shape[axis] = -1
    return values.detach().view(shape)
