"""activations(): what layers return for these inputs."""

from __future__ import annotations

from typing import Any

from torchpeek.engine import ModelRunner, preserved, run
from torchpeek.hooks import Selection, record
from torchpeek.models import Inputs, Model, given_to, module_of


def activations(model: Model, inputs: Inputs, layers: Selection, *, exclude: Selection | None = None) -> dict[str, Any]:
    """What the layers return for `inputs`, in eval mode: layer name -> tensor, or container of tensors.

    The pass stops when each of them has returned once: what comes after is not run, and of a layer that runs again
    later this is the first call; `record` sees them all. Raises NotFired for a layer that is not called, AmbiguousCall
    for one that was called several times by then. The model is left exactly as it was found.
    """
    module = ModelRunner(module_of(model)).model
    call = given_to(model, inputs)
    tape = record(module, layers, exclude=exclude, snapshot="clone", stop=True)
    with preserved(module), tape:
        run(module, call)
    return {name: tape[name].output for name in tape}
