"""gradient_flow(): the size of the gradients of one training step, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchpeek.anatomy.statistics import Loss, one_number
from torchpeek.anatomy.table import Table
from torchpeek.engine import check_initialised, inspectable_module, output_part, preserved, run
from torchpeek.engine.targets import as_target, class_logits
from torchpeek.errors import GradUnavailable, LayerNotFound, TargetError, closest, notify
from torchpeek.hooks import Selection, record, select_modules, takes_hooks
from torchpeek.keywords import checked_keywords
from torchpeek.models import Inputs, LoadedModel, Model, model_call_for, module_of
from torchpeek.norms import magnitude, norm, total_norm
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
        weight_norm: Euclidean norm of the parameter. NaN where the first pass of a lazy layer has yet to make it.
        gradient_norm: Euclidean norm of the gradient. None if there is no gradient: the parameter is frozen or unused.
        gradient_mean_abs: Mean absolute value of the gradient, or None.
        gradient_max_abs: Largest absolute value of the gradient, or None.
        remark: Why there is no gradient, or what is wrong with it.
        tied: Whether an earlier row has the same parameter and the same gradient.
        shared_with: The layer and the parameter of that earlier row, as one name; an empty string if there is none.
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
    shared_with: str = ""


@dataclass(frozen=True, repr=False)
class GradientFlow(Table[ParameterGradient]):
    """The gradients of one training step, a row for each parameter, in the order in which the layers ran.

    Args:
        rows: A row for each parameter.
        loss: The loss of the step.
        other_names: Further names of layers that have several places in the model -> the name in the rows.

    Example:
        >>> flow = tp.gradient_flow(nn.Linear(2, 3), torch.rand(4, 2))
        >>> [(row.parameter, row.numel) for row in flow]
        [('weight', 6), ('bias', 3)]
    """

    rows: tuple[ParameterGradient, ...]
    loss: float
    other_names: Mapping[str, str] = field(default_factory=dict)

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
        return total_norm([row.gradient_norm for row in self.rows if row.gradient_norm is not None and not row.tied])

    def norm_of(self, block: str) -> float:
        """The gradient norm over all parameters inside a layer or block, each counted once.

        Args:
            block: The name of the layer or block; an empty string is the whole model.

        Returns:
            The norm; 0 where none of the parameters has a gradient.

        Raises:
            LayerNotFound: When no parameter in this table is inside it.

        Example:
            >>> model = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.Linear(2, 2))
            >>> flow = tp.gradient_flow(model, torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
            >>> flow.norm_of("0") == flow.norm_of("0.0") <= flow.total_norm
            True
        """
        by_name = {row.layer: row.layer for row in self.rows} | dict(self.other_names)
        inside = {layer for name, layer in by_name.items() if not block or f"{name}.".startswith(f"{block}.")}
        rows = [row for row in self.rows if row.layer in inside]
        if not rows:
            names = list(by_name)
            raise LayerNotFound(f"no parameter of {block!r} is in this table{closest(block, names)}")
        norms = {row.shared_with or f"{row.layer}.{row.parameter}": row.gradient_norm for row in rows}
        return total_norm([norm for norm in norms.values() if norm is not None])

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
        layers: The layers whose parameters are listed, selected as in `activations`. A block stands for all parameters
            inside it. None is all of the model's.
        exclude: Layers to leave out, with everything inside them, selected in the same ways.

    Returns:
        GradientFlow: a table with a row for each parameter, in the order in which the layers ran. `total_norm` is the
        norm over all of them, and `norm_of("layer1")` that over a block.

    Raises:
        LayerNotFound: When no layer is selected, or there are no parameters inside them.
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
    check_initialised(module)
    call = model_call_for(model, inputs, any_tensor=True)
    owners = _owners(module, layers, exclude)
    # Also the layers around them: a layer whose weights its parent uses directly runs when the parent does.
    hooked = [each for each in module.modules() if takes_hooks(each)]
    tape = record(module, hooked, keep=lambda tensor: None, snapshot="alias")
    with preserved(module, evaluating=False), tape, torch.enable_grad():
        output = run(module, call)
        value = one_number(_loss(model, output, target, loss))
        # In the order in which they ran; layers that did not run come last.
        named = {
            (name, own): parameter
            for name, owner in owners.items()
            for own, parameter in owner.named_parameters(recurse=False)
        }
        trainable = {id(each): each for each in named.values() if each.requires_grad and not is_lazy(each)}
        if not trainable:
            raise GradUnavailable(
                "every parameter of these layers is frozen; requires_grad_() makes them take gradients"
            )
        gradients = dict(
            zip(trainable, torch.autograd.grad(value, list(trainable.values()), allow_unused=True), strict=True)
        )
    first_calls = {name: tape[name][0].order for name in tape if len(tape[name])}
    used = {name for (name, _), parameter in named.items() if gradients.get(id(parameter)) is not None}
    order = {name: _order(name, first_calls, used) for name in owners}
    rows = []
    listed: dict[int, str] = {}
    for name, own in sorted(named, key=lambda each: order[each[0]]):
        parameter = named[name, own]
        row = _row(name, own, parameter, gradients.get(id(parameter)), called=name in first_calls)
        above = listed.setdefault(id(parameter), f"{name}.{own}")
        tied = above != f"{name}.{own}"
        rows.append(replace(row, remark="tied to one above", tied=True, shared_with=above) if tied else row)
    first_names = {id(owner): name for name, owner in owners.items()}
    other_names = {
        name: first_names[id(each)]
        for name, each in module.named_modules(remove_duplicate=False)
        if id(each) in first_names and name not in owners
    }
    return GradientFlow(tuple(rows), float(value.detach()), other_names)


def _owners(module: nn.Module, layers: Selection | None, exclude: Selection | None) -> dict[str, nn.Module]:
    """The modules that own the parameters inside the selected layers, by name, also the model itself."""
    named = {name: each for name, each in module.named_modules() if each._parameters}
    if not any(each is not None for owner in named.values() for each in owner._parameters.values()):
        raise LayerNotFound(f"{type(module).__name__} has no parameters, so it has no gradients")
    if layers is not None:
        inside = _inside(select_modules(module, layers))
        named = {name: each for name, each in named.items() if id(each) in inside}
    if exclude is not None:
        outside = _inside(select_modules(module, exclude))
        named = {name: each for name, each in named.items() if id(each) not in outside}
    owners = {name: each for name, each in named.items() if any(own is not None for own in each._parameters.values())}
    without_scripts = {name: each for name, each in owners.items() if takes_hooks(each)}
    if len(without_scripts) < len(owners):
        notify("scripted or traced layers take no hooks, and their parameters are left out")
    if not without_scripts:
        raise LayerNotFound(
            "none of these layers has parameters of its own, or inside it; select others, or layers=None for all"
        )
    return without_scripts


def _inside(layers: Mapping[str, nn.Module]) -> set[int]:
    """The ids of these modules and of all modules inside them."""
    return {id(each) for layer in layers.values() for each in layer.modules()}


def _order(name: str, first_calls: Mapping[str, int], used: set[str]) -> float:
    """When a layer first returned; infinity if it was not called.

    A layer whose weights were used without a call counts as the layer around it.
    """
    if name in first_calls or name not in used:
        return first_calls.get(name, math.inf)
    while name and name not in first_calls:
        name = name.rpartition(".")[0]
    return first_calls[name] if name else math.inf


def _loss(model: Model, output: Any, target: Any, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(output) if target is None else loss(output, target)
    question = as_target(target, model.class_names if isinstance(model, LoadedModel) else None).bind(output)
    labels = question.labels
    if labels.shape[1] != 1:
        raise TargetError(f"target names {labels.shape[1]} classes for each sample; allowed: one")
    return F.cross_entropy(class_logits(output, output_part(question)), labels[:, 0])


def _row(layer: str, name: str, parameter: Tensor, gradient: Tensor | None, *, called: bool) -> ParameterGradient:
    weight_norm = norm(parameter)
    if gradient is None:
        remark = "frozen" if not parameter.requires_grad else "not used" if called else "layer not called"
        return ParameterGradient(layer, name, parameter.numel(), weight_norm, None, None, None, remark)
    size = magnitude(gradient)
    remark = "" if math.isfinite(size.max_abs) else "not finite"
    if size.max_abs == 0:
        remark = "zero everywhere" if gradient.numel() else "has no elements"
    return ParameterGradient(layer, name, parameter.numel(), weight_norm, *size, remark)
