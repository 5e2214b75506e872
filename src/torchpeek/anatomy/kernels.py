"""kernels(): the weights of convolutions and other layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor, nn

from torchpeek.anatomy.tensor_table import TensorTable
from torchpeek.engine import effective_weight, inspectable_module, is_quantised, preserved
from torchpeek.errors import LayerNotFound, TorchpeekError, closest
from torchpeek.hooks import Selection, select_modules
from torchpeek.html import fitted, image_tag, notebook_html
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.models import Model, module_of
from torchpeek.render import kernel_grid
from torchpeek.render.axes_plots import image_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked_class
class Kernels(TensorTable):
    """Layer name -> weight, in torch's own order of axes and in the order of the layers. It prints as a table.

    Args:
        weights: Layer name -> weight.
        groups: Name of each transposed convolution -> its number of groups.

    Example:
        >>> kernels = tp.kernels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1)))
        >>> list(kernels), kernels["0"].shape
        (['0', '1'], torch.Size([4, 3, 3, 3]))
    """

    def __init__(self, weights: Mapping[str, Tensor], groups: Mapping[str, int]) -> None:
        super().__init__(weights)
        self._groups = dict(groups)  # only of transposed convolutions

    def by_shape(self) -> dict[tuple[int, ...], dict[str, Tensor]]:
        """Group the weights by the shape of the kernel, such as (3, 3), in the order of first occurrence.

        Returns:
            Shape of the kernel -> layer name -> weight. The shape is that of the axes after the first two, () for a
            linear layer.

        Example:
            >>> kernels = tp.kernels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3)))
            >>> {shape: list(weights) for shape, weights in kernels.by_shape().items()}
            {(3, 3): ['0', '2'], (1, 1): ['1']}
        """
        groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, weight in self.items():
            groups.setdefault(tuple(weight.shape[2:]), TensorTable())[name] = weight
        return groups

    def by_output(self) -> dict[str, Tensor]:
        """Return all weights with the output first, also those of transposed convolutions.

        Returns:
            Layer name -> weight (out, in / groups, *kernel).

        Example:
            >>> kernels = tp.kernels(nn.Sequential(nn.ConvTranspose2d(3, 4, 2)))
            >>> [tuple(weight.shape) for weight in kernels.by_output().values()]
            [(4, 3, 2, 2)]
        """
        return TensorTable(
            (name, _output_first(weight, self._groups[name]) if name in self._groups else weight)
            for name, weight in self.items()
        )

    def plot(self, layer: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the kernels of one layer as tiles, as `tp.render.kernel_grid` does. Needs the extra `plot`.

        Args:
            layer: Name of the layer. None is the first.
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.

        Returns:
            The matplotlib Axes.

        Raises:
            LayerNotFound: When there is no weight of that layer.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
            >>> tp.kernels(model).plot("2").get_images()[0].get_array().shape[2]
            3
        """
        return image_plot(ax, self._drawn(layer))

    @notebook_html
    def _repr_html_(self) -> str:
        tables = super()._repr_html_()
        with suppress(TorchpeekError):  # weights that are no kernels
            tables += image_tag(fitted(self._drawn(None), 640), "the kernels of the first layer", lossless=True)
        return tables

    def _drawn(self, layer: str | None) -> Image.Image:
        name = next(iter(self)) if layer is None else layer
        if name not in self:
            raise LayerNotFound(f"there is no weight of layer {name!r}{closest(name, self)}; there are {len(self)}")
        return kernel_grid(self.by_output()[name], title=name)


@checked_keywords
def kernels(model: Model, layers: Selection | None = None) -> Kernels:
    """Return copies of the weights of convolutions, or of other layers: what the next forward pass computes with.

    So the weights under `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`, and under parametrizations, are
    those of the present parameters, also after `load_state_dict` or a step of an optimizer. They are read in the mode
    that the model is in: in train mode, spectral_norm is the one after its next power iteration, and `model.eval()`
    gives the one of inference. The model is left exactly as it was found. Weights of quantised layers are dequantised.

    What a layer's forward itself does to its weight is not included: the masks of a masked convolution, or a LoRA
    adapter that is not merged. Neither is a change that a hook of your own writes into the parameter. Where such a hook
    sets `weight` in place of a parameter, it is run, without inputs.

    Args:
        model: An nn.Module or a LoadedModel.
        layers: Which layers, selected as in `activations`. None is every convolution. Layers without a weight of two
            axes or more are left out.

    Returns:
        A dict from layer name to weight, (out, in / groups, *kernel) for a convolution. A transposed convolution's
        weight is (in, out / groups, *kernel), as in torch; `.by_output()` returns all weights with the output first,
        and `.by_shape()` groups them by the shape of the kernel.

    Raises:
        LayerNotFound: When no selected layer has such a weight.
        InputError: When the first forward pass has yet to make the weight of a layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1))
        >>> {name: tuple(weight.shape) for name, weight in tp.kernels(model).items()}
        {'0': (4, 3, 3, 3), '2': (8, 4, 1, 1)}
    """
    module = inspectable_module(module_of(model))
    if layers is None and not any(name and _is_convolution(name, layer) for name, layer in module.named_modules()):
        raise LayerNotFound(
            f"no convolution in {type(module).__name__}; select other layers with a weight, or '*' for all of them"
        )
    weights: dict[str, Tensor] = {}
    groups: dict[str, int] = {}
    selected = select_modules(module, _is_convolution if layers is None else layers)
    with preserved(module, evaluating=False):  # computing a weight may change buffers and draw random numbers
        layer: Any
        for name, layer in selected.items():
            weight = effective_weight(name, layer)
            if weight is not None and weight.ndim >= 2:
                weights[name] = weight.clone()
                if _is_convolution(name, layer) and layer.transposed:
                    groups[name] = layer.groups
    if not weights:
        raise LayerNotFound(
            f"none of the layers that {layers!r} selects has a weight of two axes or more; torchpeek layers lists the "
            "layers"
        )
    return Kernels(weights, groups)


def _is_convolution(name: str, layer: Any) -> bool:
    # A quantised convolution is no _ConvNd. Only convolutions have this attribute.
    return isinstance(layer, nn.modules.conv._ConvNd) or (is_quantised(layer) and hasattr(layer, "transposed"))


def _output_first(weight: Tensor, groups: int) -> Tensor:
    """Turn a transposed convolution's weight (in, out / groups, *kernel) into (out, in / groups, *kernel)."""
    apart = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, in / groups, out / groups, *kernel)
    return apart.transpose(1, 2).flatten(0, 1)
