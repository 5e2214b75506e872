"""Which methods and which metrics, at which layer, with which options: from words to what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpeek.cam import METHODS, find_method
from torchpeek.cli.explainer import Explaining
from torchpeek.cli.loading import selection
from torchpeek.cli.predictions import Names
from torchpeek.cli.targets import Wanted
from torchpeek.engine import Target
from torchpeek.errors import LayerNotFound, OptionError, TargetError, notify
from torchpeek.explanation import How, trace
from torchpeek.metrics import METRICS, find_metric
from torchpeek.models import LoadedModel


@dataclass(frozen=True)
class Chosen:
    """The options that say what is asked and which methods answer. Raises OptionError where they do not fit."""

    wanted: Wanted
    method: Sequence[str]
    option: Sequence[str]
    layer: Sequence[str] | None
    layout: str | None
    how: How

    def __post_init__(self) -> None:
        if self.layout is not None and not self.layer:
            raise OptionError(f"--layout {self.layout!r} says how a layer is to be read; say which with --layer")
        names = self._names()
        if self.layer:
            _check_layer_is_used(names)

    def explaining(self, loaded: LoadedModel, found: Sequence[Path]) -> Explaining:
        """The same of that model; which of all methods it allows, the first of the pictures says."""
        target = self.wanted.target(loaded)
        named = selection(self.layer)
        layers = named[0] if named and len(named) == 1 and self.how.fuse is None else named
        names = self._names()
        if "all" in self.method:
            names = _applicable(loaded, found, names, layers, self.layout, target)
        called = Names(loaded.class_names, self.wanted.asked_texts, self.wanted.ranks)
        return Explaining(loaded, method_options(names, self.option), layers, self.layout, target, called, self.how)

    def _names(self) -> list[str]:
        if "all" in self.method:
            return [name for name, method in METHODS.items() if method.cheap and method.layers == "one"]
        return list(dict.fromkeys(find_method(name).name for name in self.method))


def method_options(names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method the options that were given and that it has. Raises OptionError for one that none has."""
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for each in given:
        key, equals, text = each.partition("=")
        having = [name for name in names if key in METHODS[name].options]
        if not equals or not having:
            known = sorted({option for name in names for option in METHODS[name].options})
            raise OptionError(
                f"--option {each!r}: allowed are NAME=VALUE, and of {', '.join(names)} these: "
                f"{', '.join(known) or 'none, as they have no options'}"
            )
        for name in having:
            options[name][key] = _parsed(f"--option {key}", text, METHODS[name].options[key])
    return options


def chosen_metrics(given: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each metric its options; "all" is every one that needs nothing but the model and what is asked.

    Raises MetricNotFound, and OptionError for an option that is none of these metrics'.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name in given:
        alone = [each.name for each in METRICS.values() if each.needs in ("heatmap", "passes")]
        chosen |= {each: {} for each in (alone if name == "all" else [find_metric(name).name])}
    for each in options:
        key, equals, text = each.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name in chosen and option in METRICS[name].options):
            known = [f"{metric}.{option}" for metric in chosen for option in METRICS[metric].options]
            raise OptionError(
                f"--metric-option {each!r}: allowed are METRIC.NAME=VALUE, and of the metrics asked for these: "
                f"{', '.join(known) or 'none, as they have no options'}"
            )
        chosen[name][option] = _parsed(f"--metric-option {key}", text, METRICS[name].options[option])
    return chosen


def _parsed(name: str, text: str, default: Any) -> Any:
    """The text as what the option's default is."""
    try:
        match default:
            case int():
                return int(text)
            case float():
                return float(text)
            case None if text.replace(".", "", 1).isdigit():
                return float(text)
    except ValueError as error:
        raise OptionError(f"{name}={text!r}: allowed is a number, such as {default or 1}") from error
    return text


def _check_layer_is_used(names: Sequence[str]) -> None:
    """Raise OptionError where none of the methods looks at a layer that is named; say so where only some do."""
    every = [name for name in names if METHODS[name].layers == "all"]
    looking = "looks" if len(every) == 1 else "look"
    if len(every) == len(names):
        raise OptionError(
            f"--layer is for methods that look at one layer or at some; {', '.join(every)} {looking} at every layer of "
            "the model. Leave --layer away"
        )
    if every:
        notify(f"--layer is for the other methods; {', '.join(every)} {looking} at every layer of the model")


def _applicable(
    loaded: LoadedModel,
    found: Sequence[Path],
    names: list[str],
    layers: str | list[str] | None,
    layout: str | None,
    target: Target,
) -> list[str]:
    """All of these methods but those that the model's head rules out, tried on the first picture that can be read."""
    for path in found:
        try:
            kept = trace(loaded, path, layer=layers, layout=layout, target=target, gradients=False)
            headless = any(kept.only(layer).head is None for layer in kept.at)
        except (LayerNotFound, TargetError):
            raise
        except Exception:  # of this picture; it is named when its turn comes
            continue
        return [name for name in names if METHODS[name].needs != "head" or not headless]
    return names
