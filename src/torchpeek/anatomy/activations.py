"""activations(): what layers return for these inputs."""

from __future__ import annotations

from typing import Any

from torchpeek.engine import inspectable_module, preserved, run
from torchpeek.hooks import Selection, record
from torchpeek.models import Inputs, Model, model_call_for, module_of


def activations(model: Model, inputs: Inputs, layers: Selection, *, exclude: Selection | None = None) -> dict[str, Any]:
    """What the layers return for `inputs`, in eval mode: layer name -> tensor, or container of tensors.

    The pass stops when each of them has returned once: what comes after is not run, and of a layer that runs again
    later this is the first call; `record` sees them all. Raises NotFired for a layer that is not called, AmbiguousCall
    for one that was called several times by then. The model is left exactly as it was found.
    """
    module = inspectable_module(module_of(model))
    given = model_call_for(model, inputs)
    tape = record(module, layers, exclude=exclude, snapshot="clone", stop=True)
    with preserved(module), tape:
        run(module, given)
    return {name: tape[name].output for name in tape}
