"""FullGrad's decomposition: what the input and the biases of all layers contribute to a score.

Near a point, a network is linear in its input plus constant terms: score = x . d score / d x + the sum over the modules
of (d score / d output) . bias. The bias of a module is what its output has beyond its Jacobian J times its input:

- of a convolution or a linear layer, its bias parameter;
- of batch normalisation in eval mode, the implicit bias that follows from its statistics;
- of a ReLU or a pooling layer, nothing;
- of any other module, output - J input.

Source: arXiv:1905.00780, section 3, proposition 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchpeek.engine.attempts import Refusal, attempted, is_of_torch, may_refuse
from torchpeek.engine.forward import run
from torchpeek.engine.forward_pass import ForwardPass
from torchpeek.engine.gradients import NOT_CONNECTED_TO_INPUT
from torchpeek.engine.layout_inference.candidates import is_channels_last
from torchpeek.engine.layout_inference.input_dependence import unconnected_layers
from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.preserve import preserved
from torchpeek.errors import GradUnavailable, NotConnected
from torchpeek.hooks import CHANNELS_FIRST_WITH_WEIGHTS, attached, containers
from torchpeek.interrupts import let_interrupts_through

Result = TypeVar("Result")
Gradients: TypeAlias = tuple[Tensor | None, ...]
"""The gradients of one score: of the input first, then of the output of each module with a bias."""

ModuleArguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments of a module's call."""

# Near a point, the output of these is linear in the input without a constant term: they have no bias.
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

# These are units even where they have children: an activation of their own, or modules that compute their weights.
_UNITS_WITH_CHILDREN = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)

# The memory for the gradients of one chunk of scores.
_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class FullGradients:
    """The contributions to k of the K scores.

    Args:
        inputs: (N, k, C, *size): input times gradient.
        biases: For each call of a module with a bias, if the picture reaches it, (N, k, C, ...): bias times gradient,
            with the channels third wherever the module's output has them.
        elsewhere: (N, k), on the CPU: what other inputs contribute, and modules that the picture does not reach.
        remainder: (N, k), on the CPU: the part of the scores that the contributions do not add up to.
    """

    inputs: Tensor
    biases: list[Tensor]
    elsewhere: Tensor
    remainder: Tensor


@dataclass(frozen=True, eq=False)
class _BiasTerm:
    edge: GradientEdge
    bias: Tensor  # broadcasts to the output
    shape: torch.Size
    channels_last: bool
    reached: bool  # whether the picture reaches the module


def bias_gradients(forward_pass: ForwardPass, use: Callable[[FullGradients], Result]) -> list[Result]:
    """Compute the contributions of the input and of all biases to the scores, and hand them to `use` in chunks.

    This takes one pass from the input on, and for each of the K scores one backward pass through all layers.

    Args:
        forward_pass: The clean pass.
        use: Called with the contributions to as many of the K scores as fit into memory.

    Returns:
        What `use` returned, for each chunk.

    Raises:
        NotConnected: When the scores do not depend on the input.
        GradUnavailable: When the model overwrites values that the backward pass needs.
    """
    model, inputs = forward_pass.model, forward_pass.inputs
    with preserved(model):
        observer = BiasGradientObserver(inputs, unconnected_layers(model, forward_pass.call))
        leaf = inputs.detach().clone()
        others: list[Tensor] = []

        def as_leaf(path: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            others.append(tensor.detach().clone().requires_grad_())
            return others[-1].clone()

        with forward_pass.autocast_context(), torch.enable_grad():
            leaf.requires_grad_()
            call = forward_pass.call.for_one_pass(leaf.clone())
            call = replace(call, arguments=containers.mapped(call.arguments, as_leaf))
            with observer.attached_to(model):
                output = run(model, call)
            scores = forward_pass.question(output, torch.arange(len(inputs)))  # (N, K)
        if not scores.requires_grad:
            raise NotConnected(f"{NOT_CONNECTED_TO_INPUT}, or a method of one layer")
        terms = observer.terms
        handles: list[Any] = [leaf, *(term.edge for term in terms), *others]
        numel = sum(each.numel() for each in (leaf, *others)) + sum(term.shape.numel() for term in terms)
        step = max(1, _BYTES // (numel * leaf.element_size()))
        results = []
        for start in range(0, scores.shape[1], step):
            columns = slice(start, min(start + step, scores.shape[1]))
            gradients: list[Gradients] = []
            for k in range(columns.start, columns.stop):
                let_interrupts_through()
                with torch.enable_grad():
                    score = scores[:, k].sum()
                gradients.append(_backward(score, handles))
            results.append(use(_full_gradients(gradients, leaf.detach(), terms, others, scores[:, columns].detach())))
    return results


def _backward(score: Tensor, handles: list[Any]) -> Gradients:
    try:
        return torch.autograd.grad(score, handles, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not is_of_torch(error) or "modified by an inplace operation" not in str(error):
            raise
        raise GradUnavailable(
            "the model overwrites values that the backward pass through all layers needs, so it cannot be trained "
            f"either. Choose a method that needs no gradients, or those of one late layer only ({error})"
        ) from error


def _full_gradients(
    gradients: list[Gradients], inputs: Tensor, terms: list[_BiasTerm], others: list[Tensor], scores: Tensor
) -> FullGradients:
    """Multiply the k gradients by the inputs and the biases: the contributions to the scores (N, k)."""

    def product(index: int, factor: Tensor) -> Tensor | None:
        of_scores = [of_score[index] for of_score in gradients]
        if all(gradient is None for gradient in of_scores):
            return None
        with torch.no_grad():
            stacked = torch.stack([_or_zeros(gradient, factor) * factor for gradient in of_scores], dim=1)
        return at_least_float32(stacked)

    def total(contribution: Tensor) -> Tensor:
        return contribution.flatten(2).sum(2).cpu().double()  # on the CPU, because not every device has float64

    of_inputs = product(0, inputs)
    if of_inputs is None:  # only a part of the model has a graph, and the contributions before it are unknown
        raise NotConnected(f"{NOT_CONNECTED_TO_INPUT}, or a method of one layer")
    biases, elsewhere = [], torch.zeros(scores.shape, dtype=torch.float64)
    for index, term in enumerate(terms, start=1):
        contribution = product(index, term.bias.expand(term.shape))
        if contribution is None:
            continue
        if term.reached:
            biases.append(contribution.movedim(-1, 2) if term.channels_last else contribution)
        else:
            elsewhere = elsewhere + total(contribution)
    for index, other in enumerate(others, start=1 + len(terms)):
        contribution = product(index, other.detach()) if len(other) == len(inputs) else None
        if contribution is not None:
            elsewhere = elsewhere + total(contribution)
    remainder = scores.cpu().double() - elsewhere
    for contribution in (of_inputs, *biases):
        remainder = remainder - total(contribution)
    return FullGradients(of_inputs, biases, elsewhere, remainder)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


class BiasGradientObserver:
    """The hooks that collect a term for each call of a module with a bias: the bias, and where its gradient is read."""

    def __init__(self, inputs: Tensor, unconnected: frozenset[str] = frozenset()) -> None:
        self.terms: list[_BiasTerm] = []
        self._inputs = inputs
        # The shape of the latest output, and whether its channels are last.
        self._latest_output: tuple[torch.Size, bool] = (torch.Size(), False)
        self._arguments: dict[nn.Module, ModuleArguments] = {}
        self._unconnected = unconnected
        self._names: dict[nn.Module, str] = {}
        self._calls: dict[nn.Module, int] = {}

    def attached_to(self, model: nn.Module) -> AbstractContextManager[None]:
        self._names = {module: name for name, module in model.named_modules()}
        units = list(_units(model))
        unknown = [(module, self.called) for module in units if _torch_class(module) is None]
        return attached([(module, self.returned) for module in units], called=unknown)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copies, because a module that works in place writes into its arguments.
        self._arguments[module] = containers.mapped((args, kwargs), lambda path, tensor: tensor.detach().clone())

    def returned(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        arguments = self._arguments.pop(module, ((), {}))
        index = self._calls.get(module, 0)
        self._calls[module] = index + 1
        # An output whose first axis is not the samples, such as a table, has one gradient for all of them, which cannot
        # be divided among them.
        count = len(self._inputs)
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != count or not output.requires_grad:
            return None
        channels_last = self._has_channels_last(module, output)
        self._latest_output = output.shape, channels_last
        bias = _bias_of(module, output.detach(), arguments)
        if bias is None:
            return None
        # A write into a view gives the view another history, and its edge would no longer be part of the graph.
        passed_on = output.clone() if output._is_view() else output
        reached = f"{self._names[module]}[{index}]" not in self._unconnected
        self.terms.append(_BiasTerm(get_gradient_edge(passed_on), bias, output.shape, channels_last, reached))
        return passed_on if passed_on is not output else None

    def _has_channels_last(self, module: nn.Module, output: Tensor) -> bool:
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            return output.ndim > 2
        if isinstance(module, CHANNELS_FIRST_WITH_WEIGHTS):
            return False
        shape, channels_last = self._latest_output
        return channels_last if output.shape == shape else is_channels_last(module, output, self._inputs)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose calls have a term each: those without children, and torch's layers with a known bias."""
    if isinstance(module, torch.jit.ScriptModule):
        return  # it takes no hooks
    if isinstance(module, _UNITS_WITH_CHILDREN) or not any(True for _ in module.children()):
        yield module
        return
    for name, child in module.named_children():
        if name != "parametrizations":  # these modules compute weights
            yield from _units(child)


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch's that the module's bias follows from; None if the module has a `forward` of its own."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.modules") and "forward" in cls.__dict__:
            known = issubclass(cls, (*_WITHOUT_BIAS, nn.modules.conv._ConvNd, nn.Linear)) or (
                issubclass(cls, nn.modules.batchnorm._BatchNorm) and getattr(module, "running_mean", None) is not None
            )
            overridden = "forward" in module.__dict__ or type(module).forward is not cls.__dict__["forward"]
            return cls if known and not overridden else None
    return None


def _bias_of(module: nn.Module, output: Tensor, arguments: ModuleArguments) -> Tensor | None:
    """The bias of a module, which broadcasts to its output; None where it has none."""
    cls = _torch_class(module)
    if cls is None:
        return _nonlinear_remainder(module, output, arguments)
    if issubclass(cls, (nn.modules.conv._ConvNd, nn.Linear)):
        bias: Any = module.bias
        return None if bias is None else _along_axis(bias, output, -1 if issubclass(cls, nn.Linear) else 1)
    if issubclass(cls, nn.modules.batchnorm._BatchNorm):
        mean, variance, weight, offset = (
            getattr(module, name) for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = (variance + module.eps).rsqrt() if weight is None else (variance + module.eps).rsqrt() * weight
        return _along_axis(-mean * scale if offset is None else offset - mean * scale, output, 1)
    return None


def _nonlinear_remainder(module: nn.Module, output: Tensor, arguments: ModuleArguments) -> Tensor | None:
    """output - J input, for any module; None where it is rounding only.

    It is None also where torch has no forward derivative of the module. The remainder of the decomposition then holds
    what the module contributes.
    """
    leaves = [(path, tensor) for path, tensor in containers.leaves(arguments) if tensor.is_floating_point()]
    tensors = tuple(tensor for _, tensor in leaves)
    if not tensors:
        return output  # without an input, all of the output is bias

    def function(*values: Tensor) -> Any:
        # Clones, because the module may work in place.
        changed = {path: value.clone() for (path, _), value in zip(leaves, values, strict=True)}
        args, kwargs = containers.mapped(arguments, lambda path, tensor: changed.get(path, tensor))
        return module.forward(*args, **kwargs)

    def derivative(jvp: Callable[..., Any]) -> Any:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about how it computes forward derivatives
            return jvp(function, tensors, tensors)[1]

    for jvp in (torch.func.jvp, torch.autograd.functional.jvp):  # the second by two backward passes
        linear_part = attempted(partial(derivative, jvp), partial(function, *tensors), possible=_may_have_no_derivative)
        if isinstance(linear_part, Refusal):
            continue
        if not isinstance(linear_part, Tensor) or linear_part.shape != output.shape:
            return None
        bias = output - linear_part
        rounding = 64 * torch.finfo(output.dtype).eps * torch.maximum(output.abs().max(), linear_part.abs().max())
        return bias if bool(bias.abs().max() > rounding) else None
    return None


def _may_have_no_derivative(error: Exception) -> bool:
    return may_refuse(error) and isinstance(error, (RuntimeError, TypeError))


def _along_axis(values: Tensor, output: Tensor, axis: int) -> Tensor:
    """(C,) -> the shape in which the values broadcast along this axis of the output."""
    shape = [1] * output.ndim
    shape[axis] = -1
    return values.detach().view(shape)
