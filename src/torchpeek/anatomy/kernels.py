"""kernels(): what the layers of a network weigh their inputs with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from torchpeek.engine import ModelRunner, preserved
from torchpeek.errors import LayerNotFound
from torchpeek.hooks import Selection, select
from torchpeek.models import Model, module_of

_CONVOLUTION = nn.modules.conv._ConvNd


class Kernels(dict[str, Tensor]):
    """Layer name -> weight as torch has it, in the order of the layers."""

    def __init__(self, weights: Mapping[str, Tensor], groups: Mapping[str, int]) -> None:
        super().__init__(weights)
        self._groups = dict(groups)  # of the transposed convolutions

    def by_shape(self) -> dict[tuple[int, ...], dict[str, Tensor]]:
        """The same, grouped by the kernels' own shape, such as (3, 3), in the order in which each comes first."""
        groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, weight in self.items():
            groups.setdefault(tuple(weight.shape[2:]), {})[name] = weight
        return groups

    def by_output(self) -> dict[str, Tensor]:
        """The same, as pictures show them: (out, in / groups, *kernel) each, also those of transposed convolutions."""
        return {
            name: _output_first(weight, self._groups[name]) if name in self._groups else weight
            for name, weight in self.items()
        }


def kernels(model: Model, layers: Selection | None = None) -> Kernels:
    """Copies of the weights of these layers, or of every convolution: (out, in / groups, *kernel) each.

    Those of a transposed convolution are (in, out / groups, *kernel), as torch has them; `.by_output()` turns them.
    What is selected and has no weight is left out. Raises LayerNotFound where nothing is left.
    """
    module = ModelRunner(module_of(model)).model
    if layers is None and not any(name and isinstance(layer, _CONVOLUTION) for name, layer in module.named_modules()):
        raise LayerNotFound(
            f"no convolution in {type(module).__name__}; name other layers with a weight, or '*' for all that have one"
        )
    weights: dict[str, Tensor] = {}
    groups: dict[str, int] = {}
    selected = select(module, _CONVOLUTION if layers is None else layers)
    with preserved(module):  # spectral_norm changes a buffer when its weight is read in train mode
        for name, layer in selected.items():
            weight = getattr(layer, "weight", None)  # also one that is computed, as with weight_norm
            if isinstance(weight, Tensor) and weight.ndim >= 2:
                weights[name] = weight.detach().clone()
                if isinstance(layer, nn.modules.conv._ConvTransposeNd):
                    groups[name] = layer.groups
    if not weights:
        raise LayerNotFound(
            f"none of the layers that {layers!r} selects has a weight of two axes or more; torchpeek layers lists what "
            "there is"
        )
    return Kernels(weights, groups)


def _output_first(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (in, out / groups, *kernel) as (out, in / groups, *kernel)."""
    apart = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, in / groups, out / groups, *kernel)
    return apart.transpose(1, 2).flatten(0, 1)
