"""Provenance: every choice that a heatmap depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from torchpeek.html import html_table, notebook_html
from torchpeek.keywords import checked_class


@checked_class
@dataclass(frozen=True)
class Provenance:
    """Every choice that a heatmap depends on. It is saved with the heatmap and printed beside its picture.

    Args:
        method: Name of the method, a key of `METHODS`.
        layer: Name of the target layer. Several names are joined by ", ".
        layer_reason: Why this layer was taken, where it was suggested.
        layout: How the layer's output was read: "channels-first 7x7", "tokens 1+14x14".
        model: Name of the model's class.
        weights: Name of the weights; "random" if they are not trained.
        preprocess: The preprocessing of the pictures.
        paper: Where the method was published: "arXiv:..." or "doi:...".
        options: The method's options, name -> value.
        score: What a score is: "logit", "probability", ...
        class_names: Class index -> name, for the labels of the question.
        device: The device on which the model ran.
        dtype: The dtype of the activations.
        torch: Version of torch.
        torchpeek: Version of torchpeek.
        steps: What was done to the values afterwards: "positive", "unit", "resized to 224 x 224".
        inputs: A digest of each sample's input, as the model took it. `evaluate` finds by these that a heatmap is of
            other inputs. Empty where they are not known.

    Example:
        >>> tp.Provenance("gradcam", "layer4", class_names={281: "tabby"})
        Provenance(method='gradcam', layer='layer4', ...)
        >>> tp.Provenance("gradcam", "layer4").options
        {}
    """

    method: str
    layer: str
    layer_reason: str = ""
    layout: str = ""
    model: str = ""
    weights: str = ""
    preprocess: str = ""
    paper: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    score: str = ""
    class_names: Mapping[int, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    torch: str = ""
    torchpeek: str = ""
    steps: Sequence[str] = ()
    inputs: Sequence[str] = ()

    def class_name(self, label: int) -> str:
        """Return the name of a class, or `class 281` if the model has no class names.

        Args:
            label: The class index.

        Returns:
            The name.

        Example:
            >>> provenance = tp.Provenance("gradcam", "layer4", class_names={281: "tabby"})
            >>> provenance.class_name(281), provenance.class_name(7)
            ('tabby', 'class 7')
        """
        return self.class_names.get(label, f"class {label}")

    def of_samples(self, rows: slice) -> Provenance:
        """Return the provenance of some of the samples.

        Args:
            rows: Which of them.

        Returns:
            The Provenance; the others' digests are left out.

        Example:
            >>> provenance = tp.Provenance("gradcam", "layer4", inputs=("a", "b"))
            >>> provenance.of_samples(slice(1, 2)).inputs
            ('b',)
        """
        return replace(self, inputs=self.inputs[rows]) if self.inputs else self

    def described(self) -> list[tuple[str, str]]:
        """Return the choices that are known, as text.

        Returns:
            Pairs of a field's name and its value.

        Example:
            >>> provenance = tp.Provenance("gradcam", "layer4", options={"seed": 0})
            >>> provenance.described()
            [('method', 'gradcam'), ('layer', 'layer4'), ('options', 'seed=0')]
        """
        # Digests say nothing to a reader.
        shown = [each.name for each in fields(self) if each.name != "inputs"]
        return [(name, text) for name in shown if (text := _text_of(getattr(self, name)))]

    @notebook_html
    def _repr_html_(self) -> str:
        return html_table((), [(name.replace("_", " "), text) for name, text in self.described()])


def _text_of(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text_of(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text_of, value))
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
