"""Every error that torchpeek raises on purpose, and the one warning class.

    TorchpeekError
    ├── InputError            an argument cannot be used
    │   ├── TargetError       a class or target that does not fit the model's output or the batch
    │   │   ├── ClassNotFound
    │   │   └── AmbiguousClass
    │   └── OptionError       an option that the method does not have, or a value that it does not take
    ├── LayerError
    │   ├── LayerNotFound     the selection matches nothing
    │   ├── NoSpatialLayer    the model or the selected layer has no grid
    │   ├── NotFired          the layer was not called in the forward pass
    │   └── AmbiguousCall     the layer was called several times, or several layers are selected
    ├── PassError
    │   ├── GradUnavailable   gradients were not recorded, or do not exist
    │   ├── NotConnected      the score does not depend on the layer
    │   ├── StaleCapture      a recorded tensor was overwritten after it was recorded
    │   └── NotFinite         NaN or infinity where finite numbers are required
    │       ├── LayerNotFinite    a layer made it
    │       └── InputNotFinite    it came into the model
    ├── MethodError
    │   ├── MethodNotFound
    │   └── MethodNotApplicable
    ├── MetricError
    │   ├── MetricNotFound
    │   └── MetricNotApplicable
    ├── ModelError
    │   ├── ModelNotFound
    │   └── WeightsError
    ├── FileError
    │   ├── PictureError      a picture that cannot be read
    │   ├── FormatError       a file with other contents than expected
    │   └── FolderError       an output folder that cannot be used
    └── RunError              a data-set run cannot go on, or does not have what was asked for
        ├── RunMismatch       it was made with something else
        └── SampleChanged     a picture has changed since the run has read it

    Notice (a UserWarning)    a decision that the caller should know of

Each message says what is wrong, what was given, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
import warnings
from collections.abc import Iterable

from torchpeek.printable import printable

_LONGEST = 120  # letters of a value in an error text

_LONGEST_WORD = 1000  # letters; a longer word is a user's text, and no path has as many
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


class _ShortRepr(reprlib.Repr):
    """Short texts of values, in which a tensor or an array is its shape and dtype, also inside a list or a dict."""

    def repr1(self, x: object, level: int) -> str:
        if getattr(x, "shape", ()) and hasattr(x, "dtype"):
            # The line before asks for both, which mypy does not see.
            return f"{type_shown(x)} {tuple(x.shape)} of {x.dtype}"  # type: ignore[attr-defined]
        return super().repr1(x, level)


_REPR = _ShortRepr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong, _REPR.maxdict = 3, 80, 80, 40, 3


def _shortened(text: str) -> str:
    return _LONG_WORD.sub(lambda word: f"{word[0][:_LONGEST_WORD]}...", text)


class TorchpeekError(Exception):
    """Base of every error that torchpeek raises on purpose. Its text can be printed, whatever names are in it."""

    def __str__(self) -> str:
        return printable(_shortened(super().__str__()), lines=True)


class InputError(TorchpeekError, ValueError):
    """An argument cannot be used."""


class TargetError(InputError):
    """A class or target that does not fit the model's output or the batch."""


class ClassNotFound(TargetError, LookupError):
    """No class has that name or index."""


class AmbiguousClass(TargetError, LookupError):
    """Several classes have that name."""


class OptionError(InputError):
    """An option that the method does not have, or a value that it does not take."""


class LayerError(TorchpeekError):
    """Base of the errors about one layer."""


class LayerNotFound(LayerError, LookupError):
    """The selection matches no layer."""


class NoSpatialLayer(LayerError):
    """The model or the selected layer has no grid of positions."""


class NotFired(LayerError):
    """The layer was not called in the forward pass."""


class AmbiguousCall(LayerError):
    """One call was expected, but the layer was called several times, or several layers are selected."""


class PassError(TorchpeekError):
    """Base of the errors about the result of a forward or backward pass."""


class GradUnavailable(PassError):
    """Gradients were not recorded, or do not exist."""


class NotConnected(PassError):
    """The score does not depend on the layer."""


class StaleCapture(PassError):
    """A recorded tensor was overwritten after it was recorded."""


class NotFinite(PassError):
    """NaN or infinity where finite numbers are required."""


class LayerNotFinite(NotFinite):
    """A layer made NaN or infinity from finite numbers, or its weights are not finite."""

    def __init__(
        self,
        message: str,
        *,
        layer: str = "",
        call: int | None = None,
        pass_number: int | None = None,
        operation: str = "",
        node: str = "",
        direction: str = "forward",
    ) -> None:
        super().__init__(message)
        self.layer = layer  # "" is the model itself
        self.call = call  # of the layer in its pass, from 0; None in the second run of a checkpointed part
        self.pass_number = pass_number  # in the block, from 0
        self.operation = operation  # such as "torch.log"; "" where it is not known, or the weights are not finite
        self.node = node  # of the graph, such as "SqrtBackward0"; "" in the forward pass
        self.direction = direction  # "forward" or "backward"


class InputNotFinite(NotFinite):
    """The input of the model, or the gradient that arrived at it, was not finite already."""

    def __init__(
        self, message: str, *, layer: str = "", operation: str = "", node: str = "", direction: str = "forward"
    ) -> None:
        super().__init__(message)
        self.layer = layer  # the first that returned it, or at which the gradient arrived
        self.operation = operation  # what made it before the model was called, or made NaN of it; "" if not known
        self.node = node
        self.direction = direction


class MethodError(TorchpeekError):
    """Base of the errors about a method."""


class MethodNotFound(MethodError, LookupError):
    """No method has that name."""


class MethodNotApplicable(MethodError):
    """The method is not defined for this model, layer or target."""


class MetricError(TorchpeekError):
    """Base of the errors about a metric."""


class MetricNotFound(MetricError, LookupError):
    """No metric has that name."""


class MetricNotApplicable(MetricError):
    """The metric is not defined for this model, heatmap or target, or an argument that it needs is missing."""


class ModelError(TorchpeekError):
    """Base of the errors about loading a model."""


class ModelNotFound(ModelError, LookupError):
    """No model has that name."""


class WeightsError(ModelError):
    """The weights cannot be fetched, cannot be read, or do not fit the model."""


class FileError(TorchpeekError, OSError):
    """Base of the errors about files and folders. Its text is one line, because a line break is of a name in it."""

    def __str__(self) -> str:
        return printable(_shortened(super(TorchpeekError, self).__str__()))


class PictureError(FileError):
    """A picture that cannot be read."""


class FormatError(FileError):
    """A file with other contents than expected."""


class FolderError(FileError):
    """An output folder that cannot be used."""


class RunError(TorchpeekError):
    """A data-set run cannot go on, or does not have what was asked for."""


class RunMismatch(RunError):
    """A run was continued with something else than it was made with."""


class SampleChanged(RunError):
    """A sample is not as it was when the run first read it."""


class Notice(UserWarning):
    """A decision that the caller should know of; nothing is wrong."""


def notify(message: str) -> None:
    """Warn with a Notice that points at the caller's own line: the first one outside of torchpeek.

    Args:
        message: The text of the warning.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     tp.errors.notify("the input was resized")
        >>> caught[0].category.__name__
        'Notice'
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torchpeek."):
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), Notice, stacklevel=level)


def shown(value: object) -> str:
    """A value in an error text: short, on one line, whatever the value is.

    Args:
        value: Any value. Of a tensor or an array, the shape and the dtype are shown.

    Returns:
        The text.

    Example:
        >>> tp.errors.shown(torch.zeros(2, 3))
        'a Tensor (2, 3) of torch.float32'
        >>> len(tp.errors.shown("a" * 100_000))
        80
    """
    try:
        text = " ".join(_REPR.repr(value).split())
    except Exception:  # a user's own __repr__, or a number with too many digits
        return type_shown(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def type_shown(value: object) -> str:
    """The type of a value in an error text, with its article.

    Args:
        value: Any value.

    Returns:
        The text.

    Example:
        >>> tp.errors.type_shown(3)
        'an int'
        >>> tp.errors.type_shown(torch.zeros(2))
        'a Tensor'
    """
    return "None" if value is None else with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """A noun, such as the name of a class, with its article.

    Args:
        noun: The noun.

    Returns:
        The text.

    Example:
        >>> tp.errors.with_article("Identity")
        'an Identity'
        >>> tp.errors.with_article("tensor")
        'a tensor'
    """
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"


def listed_names(names: Iterable[str], most: int = 6) -> str:
    """The first names, quoted, for an error text.

    Args:
        names: The names.
        most: How many are listed; more are shown as "...".

    Returns:
        The names as one string.

    Example:
        >>> tp.errors.listed_names(["conv1", "bn1"])
        "'conv1', 'bn1'"
        >>> tp.errors.listed_names(["conv1", "bn1", "relu"], most=2)
        "'conv1', 'bn1', ..."
    """
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (", ..." if len(quoted) > most else "")


def closest(name: str, names: Iterable[str], *, most: int = 3) -> str:
    """Return the end of a not-found message: the names that are most like the one that was not found.

    Args:
        name: The name that was not found.
        names: The names that exist.
        most: The largest number of names to list.

    Returns:
        `; closest: 'layer4', 'layer3'`, or an empty string if no name is similar.

    Example:
        >>> names = ["layer3", "layer4", "fc"]
        >>> tp.errors.closest("layr4", names, most=1)
        "; closest: 'layer4'"
    """
    names = list(names)
    lowered = {candidate.lower(): candidate for candidate in names}
    matches = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=0.6)]
    matches += [candidate for candidate in names if name.lower() in candidate.lower() and candidate not in matches]
    if not matches:
        return ""
    return "; closest: " + ", ".join(repr(candidate) for candidate in matches[:most])
