"""gradient_flow(): how large the gradients of one training step are, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpeek.anatomy.statistics import Loss, one_number
from torchpeek.anatomy.table import Table
from torchpeek.engine import ModelRunner, preserved, run
from torchpeek.engine.targets import as_target, class_logits
from torchpeek.errors import GradUnavailable, LayerNotFound, TargetError
from torchpeek.hooks import Selection, record, select
from torchpeek.models import Inputs, LoadedModel, Model, given_to, module_of


@dataclass(frozen=True)
class ParameterGradient:
    """The gradient of one parameter in one step; None where it has none: frozen, or not used."""

    layer: str
    parameter: str
    numel: int
    weight_norm: float
    gradient_norm: float | None
    gradient_mean_abs: float | None
    gradient_max_abs: float | None
    remark: str = ""
    tied: bool = False  # to one above, whose gradient this is, too


@dataclass(frozen=True, repr=False)
class GradientFlow(Table[ParameterGradient]):
    """The gradients of one step, a row for each parameter, in the order in which the layers ran."""

    rows: tuple[ParameterGradient, ...]
    loss: float

    header = ("layer", "parameter", "size", "gradient norm", "mean |g|", "max |g|", "weight norm", "remark")

    def cells(self) -> list[tuple[str, ...]]:
        """As `Table.cells`."""
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

    @property
    def total_norm(self) -> float:
        """The norm over these parameters together, each once: for all of a model what gradient clipping looks at."""
        return math.sqrt(
            sum(row.gradient_norm**2 for row in self.rows if row.gradient_norm is not None and not row.tied)
        )

    @property
    def footer(self) -> str:
        """The loss, and the norm over all."""
        return f"loss {self.loss:.4g}; gradient norm over these parameters {self.total_norm:.4g}"


def gradient_flow(
    model: Model,
    inputs: Inputs,
    target: Any = None,
    *,
    loss: Loss | None = None,
    layers: Selection | None = None,
    exclude: Selection | None = None,
) -> GradientFlow:
    """The gradients that one training step on `inputs` would give the parameters of these layers, or of all.

    `loss(output, target)`, or `loss(output)` without a target, is one number; by default it is the cross entropy of the
    class that `target` names, as in `explain`: an index, a name, (N,) of them, or by default the predicted one. The
    step is not taken: `.grad`, buffers and random state are left as they were. Train or eval mode is as it is found, as
    it matters to the gradients. Raises GradUnavailable where the loss depends on no parameter that takes gradients.
    """
    module = ModelRunner(module_of(model)).model
    call = given_to(model, inputs)
    chosen = select(module, _with_parameters(module) if layers is None else layers, exclude=exclude)
    if not any(layer._parameters for layer in chosen.values()):
        raise LayerNotFound("none of these layers has parameters of its own; choose others, or layers=None for all")
    tape = record(module, list(chosen.values()), keep=lambda tensor: None, snapshot="alias")
    with preserved(module, evaluating=False), tape, torch.enable_grad():
        output = run(module, call)
        value = one_number(_loss(model, output, target, loss))
        # In the order in which they ran; those that did not come last.
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
    """Every layer that has parameters of its own, also the model as a whole."""
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    if not layers:
        raise LayerNotFound(f"{type(module).__name__} has no parameters, so there is no gradient to look at")
    return layers


def _loss(model: Model, output: Any, target: Any, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(output) if target is None else loss(output, target)
    labels = as_target(target, model.class_names if isinstance(model, LoadedModel) else None).bind(output).labels
    if labels.shape[1] != 1:
        raise TargetError(f"target names {labels.shape[1]} classes for each sample; a training step has one")
    return F.cross_entropy(class_logits(output), labels[:, 0])


def _row(layer: str, name: str, parameter: Tensor, gradient: Tensor | None, *, called: bool) -> ParameterGradient:
    weight_norm = float(torch.linalg.vector_norm(parameter.detach(), dtype=_wide(parameter)))
    if gradient is None:
        remark = "frozen" if not parameter.requires_grad else "not used" if called else "layer not called"
        return ParameterGradient(layer, name, parameter.numel(), weight_norm, None, None, None, remark)
    values = gradient if gradient.layout == torch.strided else gradient.to_dense()  # of a sparse embedding
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
