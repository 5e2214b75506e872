"""gradient_flow(): the size of the gradients of one training step, parameter by parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpeek.anatomy.statistics import Loss, one_number
from torchpeek.anatomy.table import Table
from torchpeek.engine import inspectable_module, output_part, preserved, run
from torchpeek.engine.targets import as_target, class_logits
from torchpeek.errors import GradUnavailable, LayerNotFound, TargetError, notify
from torchpeek.hooks import Selection, record, select_modules, takes_hooks
from torchpeek.keywords import checked_keywords
from torchpeek.models import Inputs, LoadedModel, Model, model_call_for, module_of
from torchpeek.render.axes_plots import gradient_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ParameterGradient:
    """The gradient of one parameter in one training step.

    Args:
        layer: Name of the layer that owns the parameter.
        parameter: Name of the parameter in the layer.
        numel: Number of its elements.
        weight_norm: Euclidean norm of the parameter.
        gradient_norm: Euclidean norm of the gradient. None if there is no gradient: the parameter is frozen or unused.
        gradient_mean_abs: Mean absolute value of the gradient, or None.
        gradient_max_abs: Largest absolute value of the gradient, or None.
        remark: Why there is no gradient, or what is wrong with it.
        tied: Whether an earlier row has the same parameter and the same gradient.
    """

    layer: str
    parameter: str
    numel: int
    weight_norm: float
    gradient_norm: float | None
    gradient_mean_abs: float | None
    gradient_max_abs: float | None
    remark: str = ""
    tied: bool = False


@dataclass(frozen=True, repr=False)
class GradientFlow(Table[ParameterGradient]):
    """The gradients of one training step, a row for each parameter, in the order in which the layers ran."""

    rows: tuple[ParameterGradient, ...]
    loss: float

    header = ("layer", "parameter", "size", "gradient norm", "mean |g|", "max |g|", "weight norm", "remark")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
        return [
            (
                row.layer,
                row.parameter,
                f"{row.numel:,}",
                *(
                    "" if value is None else f"{value:.4g}"
                    for value in (row.gradient_norm, row.gradient_mean_abs, row.gradient_max_abs)
                ),
                f"{row.weight_norm:.4g}",
                row.remark,
            )
            for row in self.rows
        ]

    def plot(self, ax: Axes | None = None, *, log: bool = True) -> Axes:
        """Plot the gradient norm of each parameter, layer by layer. Needs the extra `plot`.

        Norms that the axis cannot show, such as zero, are marked along its lower edge.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.
            log: Whether the axis of the norm is logarithmic.

        Returns:
            The matplotlib Axes.

        Raises:
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> tp.gradient_flow(model, torch.rand(2, 3, 8, 8)).plot().get_ylabel()
            'gradient norm'
        """
        return gradient_plot(ax, self.rows, log=log)

    @property
    def total_norm(self) -> float:
        """The gradient norm over all these parameters, each counted once: what gradient clipping compares."""
        return math.sqrt(
            sum(row.gradient_norm**2 for row in self.rows if row.gradient_norm is not None and not row.tied)
        )

    @property
    def footer(self) -> str:
        """The loss, and the gradient norm over all parameters."""
        return f"loss {self.loss:.4g}; gradient norm over these parameters {self.total_norm:.4g}"


@checked_keywords
def gradient_flow(
    model: Model,
    inputs: Inputs,
    target: Any = None,
    *,
    loss: Loss | None = None,
    layers: Selection | None = None,
    exclude: Selection | None = None,
) -> GradientFlow:
    """Return the gradients that one training step on these inputs gives the parameters.

    The step is not taken: `.grad`, buffers and random state are left as they were. The model stays in train or eval
    mode as it is found, because the mode changes the gradients.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: A batch (N, C, *grid), a Picture, with a LoadedModel also a path or a PIL image, or what else the model
            takes: a mapping of keyword arguments, or Arguments.
        target: The classes of the samples, as in `explain`: an index, a name, or (N,) of them. None is the predicted
            class. With `loss`, whatever that takes.
        loss: A function (output, target) -> one number, or (output) without a target. None is the cross entropy.
        layers: The layers whose parameters are listed, selected as in `activations`. None is all of them.
        exclude: Layers to leave out, selected in the same ways.

    Returns:
        GradientFlow: a table with a row for each parameter, in the order in which the layers ran.

    Raises:
        LayerNotFound: When no layer is selected, or none of them has parameters.
        TargetError: When `target` does not name one class for each sample.
        InputError: When the loss is not one number.
        GradUnavailable: When the parameters are frozen, or the loss does not depend on the output.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> flow = tp.gradient_flow(model, torch.rand(2, 3, 8, 8), torch.tensor([1, 3]))
        >>> [(row.parameter, row.numel) for row in flow]
        [('weight', 108), ('bias', 4)]
    """
    module = inspectable_module(module_of(model))
    call = model_call_for(model, inputs)
    chosen = select_modules(module, _with_parameters(module) if layers is None else layers, exclude=exclude)
    if not any(layer._parameters for layer in chosen.values()):
        raise LayerNotFound("none of these layers has parameters of its own; select others, or layers=None for all")
    tape = record(module, list(chosen.values()), keep=lambda tensor: None, snapshot="alias")
    with preserved(module, evaluating=False), tape, torch.enable_grad():
        output = run(module, call)
        value = one_number(_loss(model, output, target, loss))
        # In the order in which they ran; layers that did not run come last.
        order = {name: tape[name][0].order if len(tape[name]) else math.inf for name in tape}
        named = {
            (name, own): parameter
            for name in sorted(tape, key=order.__getitem__)
            for own, parameter in chosen[name].named_parameters(recurse=False)
        }
        trainable = {id(parameter): parameter for parameter in named.values() if parameter.requires_grad}
        if not trainable:
            raise GradUnavailable(
                "every parameter of these layers is frozen; requires_grad_() makes them take gradients"
            )
        gradients = dict(
            zip(trainable, torch.autograd.grad(value, list(trainable.values()), allow_unused=True), strict=True)
        )
    rows = []
    listed: set[int] = set()
    for (name, own), parameter in named.items():
        row = _row(name, own, parameter, gradients.get(id(parameter)), called=order[name] < math.inf)
        rows.append(replace(row, remark="tied to one above", tied=True) if id(parameter) in listed else row)
        listed.add(id(parameter))
    return GradientFlow(tuple(rows), float(value.detach()))


def _with_parameters(module: nn.Module) -> list[nn.Module]:
    """Return every layer that owns parameters, also the model itself."""
    owning = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    layers = [layer for layer in owning if takes_hooks(layer)]
    if len(layers) < len(owning):
        notify("scripted or traced layers take no hooks, and their parameters are left out")
    if not layers:
        raise LayerNotFound(f"{type(module).__name__} has no parameters, so it has no gradients")
    return layers


def _loss(model: Model, output: Any, target: Any, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(output) if target is None else loss(output, target)
    question = as_target(target, model.class_names if isinstance(model, LoadedModel) else None).bind(output)
    labels = question.labels
    if labels.shape[1] != 1:
        raise TargetError(f"target names {labels.shape[1]} classes for each sample; allowed: one")
    return F.cross_entropy(class_logits(output, output_part(question)), labels[:, 0])


def _row(layer: str, name: str, parameter: Tensor, gradient: Tensor | None, *, called: bool) -> ParameterGradient:
    weight_norm = float(torch.linalg.vector_norm(parameter.detach(), dtype=_wide(parameter)))
    if gradient is None:
        remark = "frozen" if not parameter.requires_grad else "not used" if called else "layer not called"
        return ParameterGradient(layer, name, parameter.numel(), weight_norm, None, None, None, remark)
    values = (
        gradient if gradient.layout == torch.strided else gradient.to_dense()
    )  # a sparse embedding has a sparse gradient
    size = values.abs().to(_wide(values))
    norm = float(torch.linalg.vector_norm(size))
    remark = "" if math.isfinite(norm) else "not finite"
    if norm == 0:
        remark = "zero everywhere"
    return ParameterGradient(
        layer, name, parameter.numel(), weight_norm, norm, float(size.mean()), float(size.max()), remark
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32
