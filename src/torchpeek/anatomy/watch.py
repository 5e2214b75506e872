"""watch(): the gradients, the weights and the updates of each block, while a model trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from torchpeek.anatomy.training_flow import BlockStep, TrainingFlow
from torchpeek.argument_types import PositiveInt
from torchpeek.errors import InputError, LayerNotFound, notify
from torchpeek.hooks import Selection, around_steps, is_sharded, method_is_running, opened_by_with, select_modules
from torchpeek.keywords import checked_keywords
from torchpeek.models import Model, module_of
from torchpeek.norms import norms, total_norm


@checked_keywords
@opened_by_with("with tp.watch(model) as seen:")
def watch(
    model: Model, every: PositiveInt = 10, *, layers: Selection | None = None, exclude: Selection | None = None
) -> Iterator[TrainingFlow]:
    """Watch a model train: the gradient norm of each block, beside the norms of its weights and of their update.

    A step is a step of an optimizer, any `torch.optim.Optimizer` that has parameters of the model. Several optimizers
    that step one after the other, each with its own parameters, share one step; a new step begins when a parameter is
    changed for the second time. So passes for validation and batches that are accumulated are no steps, and neither is
    a step that a GradScaler skips, unless the optimizer itself skips it: a fused one takes a step without an update.
    Weights that are changed by hand, without an optimizer, are not seen.

    Steps 0, `every`, 2 * `every`, ... are watched. In these the weights and gradients are read a few times, and a copy
    of the weights is kept while the optimizer steps: as much memory as the weights take. The other steps cost
    microseconds. Nothing is changed, and the results of the training are the same, bit by bit.

    Args:
        model: An nn.Module or a LoadedModel.
        every: Watch each step whose number can be divided by this.
        layers: The blocks, selected as in `record`. A block stands for all parameters inside it. None is every layer
            that owns parameters, each with its own.
        exclude: Layers to leave out, with everything inside them, selected in the same ways.

    Yields:
        TrainingFlow: a table that grows while the model trains. Printing it shows the latest watched step; it also has
        `rows`, `to_dict()` and `plot()`. `tp.render.training_flow` draws gradients and updates in one figure.

    Raises:
        LayerNotFound: When no layer is selected, or there are no parameters inside them.
        OptionError: When `every` is no positive integer.
        InputError: When `model` is no module, or FSDP shards its parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> with tp.watch(model, every=10) as seen:
        ...     model(torch.rand(8, 2)).square().mean().backward()
        ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
        >>> [(row.step, row.layer, row.numel) for row in seen]
        [(0, '0', 12), (0, '2', 5)]
    """
    module = module_of(model)
    if any(map(is_sharded, module.modules())):
        raise InputError(
            "FSDP shards the parameters of this model, so that a norm would be that of one process's part; next: watch "
            "a run that is not sharded"
        )
    watcher = _Watcher(_blocks(module, layers, exclude), every)
    with around_steps(watcher.before, watcher.after):
        yield watcher.flow
    if not watcher.flow.step_count:
        notify(
            "no optimizer took a step with parameters of this model inside the block, so nothing was watched; weights "
            "that are changed without a torch.optim.Optimizer are not seen"
        )


@dataclass(frozen=True)
class _Block:
    """The parameters that a row is of.

    Args:
        module: The layer.
        recurse: Whether the parameters of the layers inside count.
        excluded: Layers whose parameters do not count.
    """

    module: nn.Module
    recurse: bool
    excluded: tuple[nn.Module, ...]

    def parameters(self) -> dict[int, nn.Parameter]:
        """The parameters by their `id`, as they are now, each once."""
        excluded = {id(each) for layer in self.excluded for each in layer.parameters()}
        own = self.module.parameters(recurse=self.recurse)
        return {
            id(each): each
            for each in own
            if id(each) not in excluded and not isinstance(each, nn.parameter.UninitializedParameter)
        }


def _blocks(module: nn.Module, layers: Selection | None, exclude: Selection | None) -> dict[str, _Block]:
    excluded = () if exclude is None else tuple(select_modules(module, exclude).values())
    chosen = dict(module.named_modules()) if layers is None else select_modules(module, layers)
    blocks = {name: _Block(each, layers is not None, excluded) for name, each in chosen.items()}
    lazy = {
        name
        for name, each in chosen.items()
        if any(isinstance(own, nn.parameter.UninitializedParameter) for own in each.parameters(layers is not None))
    }
    found = {name: block for name, block in blocks.items() if name in lazy or block.parameters()}
    if not found:
        raise LayerNotFound(
            "these layers have no parameters, of their own or inside them; select others, or layers=None for all"
        )
    return found


class _Watcher:
    """Measures the watched steps.

    A step ends when a parameter is about to be changed that the step has changed already.

    Args:
        blocks: The blocks by their names.
        every: Each step whose number can be divided by this is measured.
    """

    def __init__(self, blocks: Mapping[str, _Block], every: int) -> None:
        self.flow = TrainingFlow(every)
        self._blocks = blocks
        self._by_block: dict[str, dict[int, nn.Parameter]] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._foreign: set[int] = set()  # parameters of optimizers that are not watched
        self._in_step: frozenset[int] = frozenset()  # the parameters of the model when the present step began
        self._stepped: set[int] = set()  # the parameters that the present step has changed
        self._stepping: Optimizer | None = None  # the outermost optimizer that steps now
        self._open: dict[int, nn.Parameter] = {}  # the parameters that it changes
        self._before: dict[int, Tensor] = {}  # copies, while an optimizer steps
        self._remeasure = False  # whether the step computes the gradients itself
        self._weight_norms: dict[int, float] = {}
        self._gradient_norms: dict[int, float] = {}
        self._update_norms: dict[int, float] = {}

    @property
    def _is_watched(self) -> bool:
        return (self.flow.step_count - 1) % self.flow.every == 0

    def before(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer is about to step."""
        changing = self._changing(optimizer, closure)
        if self._stepping is not None and not method_is_running(self._stepping):  # its step raised
            self._open = {}
        repeated = self._stepping is optimizer  # its last step raised, and this one takes its place
        if not changing or not (repeated or self._open.keys().isdisjoint(changing)):  # a wrapper of this one steps
            return
        self._stepping, self._open = optimizer, changing
        again = not repeated and not self._stepped.isdisjoint(changing)
        if again or not changing.keys() <= self._in_step:
            self._begin_step(changing)
        self._stepped |= changing.keys()
        if not self._is_watched:
            return
        self._remeasure = closure
        self._measure_gradients(changing, optimizer)
        self._before = {key: parameter.detach().clone() for key, parameter in changing.items()}

    def after(self, optimizer: Optimizer) -> None:
        """The optimizer has stepped."""
        if self._stepping is not optimizer:
            return
        before, self._before = self._before, {}
        parameters, self._open, self._stepping = self._open, {}, None
        if not before:
            return
        if self._remeasure:
            self._measure_gradients(parameters, optimizer)
        for key, copy in before.items():
            copy.sub_(parameters[key].detach())
        self._update_norms |= zip(before, norms(list(before.values())), strict=True)
        rows = [self._row(name, parameters) for name, parameters in self._by_block.items()]
        gradients = list(self._gradient_norms.values())
        self.flow._add(self.flow.step_count - 1, rows, total_norm(gradients) if gradients else None)

    def _changing(self, optimizer: Optimizer, closure: bool) -> dict[int, nn.Parameter]:
        """The watched parameters that the optimizer will change."""
        owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        new = {id(parameter) for parameter in owned} - self._parameters.keys() - self._foreign
        if new:  # parameters of the model may have been replaced since
            self._parameters = _united(self._current())
            self._foreign |= new - self._parameters.keys()
        return {
            id(parameter): parameter
            for parameter in owned
            if id(parameter) in self._parameters
            and (parameter.grad is not None or (closure and parameter.requires_grad))
        }

    def _current(self) -> dict[str, dict[int, nn.Parameter]]:
        return {name: block.parameters() for name, block in self._blocks.items()}

    def _begin_step(self, changing: Mapping[int, nn.Parameter]) -> None:
        self.flow.step_count += 1
        self._stepped.clear()
        if self._is_watched:
            self._by_block = self._current()
            self._parameters = _united(self._by_block)
            self._foreign.clear()
        self._in_step = frozenset(self._parameters)
        if not self._is_watched:
            return
        self._update_norms = {}
        self._gradient_norms = {}
        self._weight_norms = dict(zip(self._parameters, norms(list(self._parameters.values())), strict=True))
        others = {key: each for key, each in self._parameters.items() if key not in changing}
        self._measure_gradients(others, None)

    def _measure_gradients(self, parameters: Mapping[int, nn.Parameter], optimizer: Optimizer | None) -> None:
        gradients = {key: each.grad for key, each in parameters.items() if each.grad is not None}
        scale = getattr(optimizer, "grad_scale", None)  # set by a GradScaler whose scale the optimizer takes out itself
        factor = 1.0 if scale is None else float(scale)
        measured = zip(gradients, norms([each for each in gradients.values() if each is not None]), strict=True)
        self._gradient_norms |= {key: size / factor for key, size in measured}

    def _row(self, name: str, parameters: Mapping[int, nn.Parameter]) -> BlockStep:
        weight = total_norm([self._weight_norms[key] for key in parameters])
        gradient = _total(self._gradient_norms, parameters)
        update = _total(self._update_norms, parameters)
        ratio = None if update is None or weight == 0 else update / weight
        frozen = sum(not each.requires_grad for each in parameters.values())
        if frozen == len(parameters):
            remark = "frozen"
        elif gradient is None:
            remark = "no gradient"
        elif not math.isfinite(gradient):
            remark = "gradient not finite"
        elif gradient == 0:
            remark = "gradient zero everywhere"
        elif update is None:
            remark = "in no optimizer that stepped"
        elif weight == 0:
            remark = "weights were zero"
        else:
            remark = "partly frozen" if frozen else ""
        size = sum(each.numel() for each in parameters.values())
        return BlockStep(self.flow.step_count - 1, name, size, weight, gradient, update, ratio, remark)


def _united(by_block: Mapping[str, dict[int, nn.Parameter]]) -> dict[int, nn.Parameter]:
    return {key: each for block in by_block.values() for key, each in block.items()}


def _total(sizes: Mapping[int, float], parameters: Mapping[int, nn.Parameter]) -> float | None:
    parts = [sizes[key] for key in parameters if key in sizes]
    return total_norm(parts) if parts else None
