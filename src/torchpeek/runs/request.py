"""What is asked of a run: the group that the arguments of run() make, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchpeek.engine.targets.naming import class_index
from torchpeek.errors import OptionError, shown
from torchpeek.evaluation.checks import selected_metrics
from torchpeek.explanation.plan import selected_methods
from torchpeek.models import LoadedModel
from torchpeek.runs.spec import OF_LABEL, Group


def asked_group(
    model: LoadedModel,
    methods: Any,
    layer: Any,
    target: Any,
    fuse: str | None,
    smooth: bool,
    metrics: Any,
    keep: Any,
    dtype: str,
    *,
    predictions: bool = False,
) -> Group:
    """What the arguments of `run` ask to be computed, checked."""
    names = {method.name: dict(options) for method, options in selected_methods(methods)} if methods else {}
    if isinstance(layer, str):
        layer = [layer]
    if layer is not None and not all(isinstance(each, str) for each in layer):
        raise OptionError(f"layer is {shown(layer)}; allowed: a name, a pattern, or a list of these")
    measured = {name: dict(options) for name, options in selected_metrics(metrics).items()} if metrics else {}
    if measured and not names:
        raise OptionError("metrics score heatmaps, and no methods are given")
    kept = (
        dict(keep) if isinstance(keep, Mapping) else dict.fromkeys([keep] if isinstance(keep, str) else keep, "pooled")
    )
    for name, what in kept.items():
        index = str(what).removeprefix("token ")
        if what not in ("whole", "pooled") and not (str(what).startswith("token ") and index.lstrip("-").isdecimal()):
            raise OptionError(f"keep of {name!r} is {shown(what)}; allowed: 'whole', 'pooled', 'token <index>'")
    if dtype not in ("float16", "float32"):
        raise OptionError(f"dtype is {shown(dtype)}; allowed: 'float16', 'float32'")
    return Group(
        names,
        predictions,
        None if layer is None else list(layer),
        asked_target(target, model.class_names),
        fuse,
        bool(smooth),
        measured,
        kept,
        dtype,
    )


def asked_target(target: Any, class_names: Sequence[str] | None) -> int | list[int] | str | None:
    """A target as it can be written down: None, class indices, or "label"."""
    if target is None or (isinstance(target, str) and target == OF_LABEL):
        return target
    if isinstance(target, (str, int)) and not isinstance(target, bool):
        return class_index(target, class_names)
    if isinstance(target, (list, tuple)) and target:
        return [class_index(each, class_names) for each in target]
    raise OptionError(
        f"target is {shown(target)}; allowed in a run: a class index or name, a list of these, {OF_LABEL!r}, or None "
        "for the predicted class"
    )
