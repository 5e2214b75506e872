"""kernels(): what the layers of a network weigh their inputs with."""

from __future__ import annotations

from torch import Tensor, nn

from torchpeek.engine import ModelRunner
from torchpeek.errors import LayerNotFound
from torchpeek.hooks import Selection, select
from torchpeek.models import Model, module_of


class Kernels(dict[str, Tensor]):
    """Layer name -> weight, in the order of the layers."""

    def by_shape(self) -> dict[tuple[int, ...], dict[str, Tensor]]:
        """The same, grouped by the kernels' own shape, such as (3, 3), in the order in which each comes first."""
        groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, weight in self.items():
            groups.setdefault(tuple(weight.shape[2:]), {})[name] = weight
        return groups


def kernels(model: Model, layers: Selection | None = None) -> Kernels:
    """Copies of the weights of these layers, or of every convolution: (out, in / groups, *kernel) each.

    Those of a transposed convolution are (in, out / groups, *kernel), as torch has them. What is selected and has no
    weight is left out. Raises LayerNotFound where nothing is left.
    """
    module = ModelRunner(module_of(model)).model
    found = Kernels()
    for name, layer in select(module, nn.modules.conv._ConvNd if layers is None else layers).items():
        weight = getattr(layer, "weight", None)  # also one that is computed, as with weight_norm
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            found[name] = weight.detach().clone()
    if not found:
        raise LayerNotFound(
            f"none of the layers that {layers!r} selects has a weight of two axes or more; torchpeek layers lists what "
            "there is"
        )
    return found
