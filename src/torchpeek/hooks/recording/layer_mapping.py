"""Mappings from layers: LayerMapping, and the gradients by layer that Recording.grad returns."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torchpeek.errors import AmbiguousCall, LayerNotFound, NotFired, closest
from torchpeek.hooks.recording.summary import shapes
from torchpeek.html import html_table, notebook_html
from torchpeek.text_table import text_table

Value = TypeVar("Value", covariant=True)


class LayerMapping(Mapping[str, Value]):
    """A mapping from layers, whose error for one that it does not have is LayerNotFound."""

    def get(self, layer: Any, default: Any = None) -> Any:
        """The value of the layer, or the default if it has none."""
        try:
            return self[layer]
        except LayerNotFound:
            return default

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class LayerGradients(LayerMapping[Any]):
    """Gradients by layer, in the containers of the outputs: `gradients[name]`, or `gradients[name, i]` for call i.

    Args:
        gradients: For each layer the gradient of each of its calls.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tp.record(model, "*", gradients=True) as tape:
        ...     gradients = tape.grad(model(torch.ones(4, 3)).sum())
        >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
        {'0': (4, 2), '1': (4, 2)}
    """

    def __init__(self, gradients: dict[str, list[Any]]) -> None:
        self._gradients = gradients

    def __getitem__(self, layer: str | tuple[str, int]) -> Any:
        name, index = layer if isinstance(layer, tuple) and len(layer) == 2 else (layer, None)
        if not isinstance(name, str) or name not in self._gradients:
            raise LayerNotFound(f"there is no gradient of layer {name!r}{closest(str(name), self._gradients)}")
        calls = self._gradients[name]
        if index is None and len(calls) > 1:
            raise AmbiguousCall(f"layer {name!r} was called {len(calls)} times; read [{name!r}, 0] and so on")
        try:
            return calls[0 if index is None else operator.index(index)]
        except (TypeError, IndexError):
            raise NotFired(
                f"layer {name!r} has gradients of calls 0 to {len(calls) - 1}; got [{name!r}, {index!r}]"
            ) from None

    def __repr__(self) -> str:
        return text_table(*self._table())

    @notebook_html
    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def _table(self) -> tuple[tuple[str, str, str], list[tuple[str, str, str]]]:
        rows = [
            (name, str(number) if len(calls) > 1 else "", shapes(gradient))
            for name, calls in self._gradients.items()
            for number, gradient in enumerate(calls)
        ]
        return ("layer", "call", "gradient"), rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)
