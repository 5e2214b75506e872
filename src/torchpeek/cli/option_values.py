"""The values of options: what a shell completes, and converters and validators, which run before any work starts.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

MethodName: TypeAlias = Literal[
    "all", "cam", "eigencam", "fem", "kpcacam", "random", "rollout", "legrad", "transformer-attribution", "gradcam",
    "gradcam++", "xgradcam", "hirescam", "gradcam-elementwise", "layercam", "eigengradcam", "segeigencam",
    "smoothgradcam++", "integrated-gradcam", "shapleycam", "fullgrad", "saliency", "input-x-gradient", "smoothgrad",
    "integrated-gradients", "guided-backprop", "guided-gradcam", "occlusion", "rise", "scorecam", "sscam", "iscam",
    "ablationcam", "recipro-cam", "groupcam", "opticam", "polycam", "refinecam",
]  # fmt: skip
"""What a shell completes after --method. A test compares it with the registry, which needs torch."""

MetricName: TypeAlias = Literal[
    "all", "sparseness", "entropy", "effective-complexity", "deletion", "insertion", "aopc", "selectivity",
    "monotonicity", "mufidelity", "infidelity", "sensitivity-n", "monotonicity-correlation", "completeness",
    "pointing-game", "energy-pointing-game", "grid-pointing-game", "relevance-rank-accuracy", "top-k", "auc", "iou",
    "average-drop", "increase", "average-gain", "road-morf", "road-lerf", "road", "max-sensitivity",
    "average-sensitivity", "local-lipschitz", "relative-input-stability", "relative-output-stability", "randomisation",
    "random-class", "adcc", "sufficiency",
]  # fmt: skip
"""What a shell completes after --metric. A test compares it with the registry, which needs torch."""

Colormap: TypeAlias = Literal["viridis", "inferno", "turbo", "jet", "diverging"]
Scale: TypeAlias = Literal["shared", "each"]
Fusion: TypeAlias = Literal["max", "mean", "product"]


def number(low: float, high: float | None = None, *, words: str = "") -> Callable[[Any, Any], None]:
    """A validator of a number, or of each in a list, that is checked before any work starts.

    Args:
        low: The lowest number that is allowed.
        high: The highest number that is allowed; None for no limit.
        words: What is allowed, for the error; by default, the numbers.
    """

    def check(type_: Any, value: Any) -> None:
        values = value if isinstance(value, (list, tuple)) else [value]
        if not all(each is None or (each >= low and (high is None or each <= high)) for each in values):
            raise ValueError(f"allowed: {words or (f'{low} or more' if high is None else f'{low} to {high}')}")

    return check


def whole(low: int, high: int | None = None, *, words: str = "") -> dict[str, Any]:
    """The fields of a Parameter for a whole number, or a list of these. The parser alone would round 1.5."""

    def convert(type_: Any, tokens: Sequence[Any]) -> Any:
        values = [int(token.value) for token in tokens]
        return values if "list" in str(type_) else values[0]

    return {"converter": convert, "validator": number(low, high, words=words)}


def parsed_numbers(texts: Sequence[str] | None) -> list[float]:
    """The numbers of a repeated option, each of which may hold several: "28,28", "28x28" or "0.5 0.5 0.5".

    Raises ValueError for anything else, and where an option has no number.
    """
    words = [word for text in texts or () for word in re.split(r"[,x×\s]+", text.strip(" ()[]")) if word]
    try:
        parsed = [float(word) for word in words]
    except ValueError as error:
        raise ValueError("allowed: numbers, with spaces or commas between them") from error
    if texts and not parsed:  # as with an empty variable of a script
        raise ValueError("allowed: at least one number")
    return parsed


def numbers(low: float, high: float, *, above: bool = False, whole: bool = False, advice: str = "") -> Any:
    """A validator of an option for `parsed_numbers`.

    Args:
        low: The lowest number that is allowed; with `above`, the numbers are higher.
        high: The highest number that is allowed.
        above: Whether `low` itself is not allowed.
        whole: Whether only whole numbers are allowed.
        advice: The next step, for the error.
    """
    allowed = f"above {low:,}, up to {high:,}" if above else f"{'whole numbers, ' * whole}{low:,} to {high:,}"

    def check(type_: Any, value: Any) -> None:
        for each in parsed_numbers(value):
            inside = low < each <= high or (each == low and not above)
            if not inside or (whole and not each.is_integer()):
                raise ValueError(f"allowed: {allowed}{advice}")

    return check


def as_text(type_: Any, tokens: Sequence[Any]) -> Any:
    """A converter that takes any text: the type only lists what a shell completes. The command checks the text."""
    texts = [token.value for token in tokens]
    return texts if str(type_).startswith(("list", "typing.List")) or len(texts) > 1 else texts[0]


def layer_names(values: Sequence[str] | None) -> list[str] | None:
    """The names and globs of a repeated --layer, each of which may hold several with commas between them."""
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()] or None


def not_empty(type_: Any, value: Any) -> None:
    """A validator of an option with names: an empty variable of a script would select the default."""
    if value is not None and layer_names(value) is None:
        raise ValueError("allowed: one name or more")
