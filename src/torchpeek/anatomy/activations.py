"""activations(): the outputs of layers for given inputs."""

from __future__ import annotations

from functools import partial

from torch import nn

from torchpeek.anatomy.tensor_table import TensorTable
from torchpeek.engine import (
    CallCounts,
    ModelCall,
    Refusal,
    attempted,
    call_counts,
    inspectable_module,
    may_refuse,
    preserved,
    run,
)
from torchpeek.errors import AmbiguousCall, TorchpeekError
from torchpeek.hooks import Selection, record, select, several_calls
from torchpeek.keywords import checked_keywords
from torchpeek.models import Inputs, Model, model_call_for, module_of


@checked_keywords
def activations(model: Model, inputs: Inputs, layers: Selection, *, exclude: Selection | None = None) -> TensorTable:
    """Return the outputs of layers for these inputs, in eval mode.

    The forward pass stops when the last of the layers has returned, so the rest of the model does not run. A layer that
    is called several times has several outputs: "act[0]" is the first, "act[-1]" the last, and "act" alone raises
    AmbiguousCall. To count the calls, one sample runs through the whole model the first time that the model is given
    inputs of this form; your hooks do not run then. Where that cannot count them, and for a call that is counted from
    the end, the whole model runs on all samples. The model is left exactly as it was found.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: A batch (N, C, *grid), a Picture, with a LoadedModel also a path or a PIL image, or what else the model
            takes: a mapping of keyword arguments, or Arguments.
        layers: Which layers: a name or glob, which may end with the number of a call in brackets, a compiled regular
            expression, a type, a predicate, a module, or a list.
        exclude: Layers to leave out, selected in the same ways.

    Returns:
        A dict from layer name to the layer's output: a tensor, or a container of tensors. It prints as a table.

    Raises:
        LayerNotFound: When the selection matches no layer.
        NotFired: When a layer, or the call of it, is not called.
        AmbiguousCall: When a layer is called several times, and no call of it is chosen.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> outputs = tp.activations(model, torch.rand(2, 3, 8, 8), ["0", "1"])
        >>> {name: tuple(output.shape) for name, output in outputs.items()}
        {'0': (2, 4, 6, 6), '1': (2, 4, 6, 6)}
    """
    module = inspectable_module(module_of(model))
    call = model_call_for(model, inputs, any_tensor=True)
    whole = [layer for layer in select(module, layers, exclude=exclude).values() if layer.call is None]
    counts = call_counts(module, call) if whole else CallCounts({}, complete=True)
    by_layer = [counts.by_module.get(id(layer.module), 0) for layer in whole]
    for layer, count in zip(whole, by_layer, strict=True):
        if count > 1:
            raise AmbiguousCall(several_calls(layer.path, count))
    recorded = partial(_recorded, module, call, layers, exclude)
    if counts.complete and all(by_layer):
        return recorded(stop=True)

    def fails_after_the_layers(error: Exception) -> bool:
        return may_refuse(error) and all(by_layer) and not isinstance(error, TorchpeekError)

    # A layer whose calls could not be counted may be called again later in the pass. The model may fail after the
    # layers, as it does at a size that its head does not take.
    outputs = attempted(partial(recorded, stop=False), partial(recorded, stop=True), possible=fails_after_the_layers)
    return outputs.unchanged if isinstance(outputs, Refusal) else outputs


def _recorded(
    module: nn.Module, call: ModelCall, layers: Selection, exclude: Selection | None, *, stop: bool
) -> TensorTable:
    with preserved(module), record(module, layers, exclude=exclude, snapshot="clone", stop=stop) as tape:
        run(module, call)
    return TensorTable({name: tape[name].output for name in tape})
