"""Which methods and metrics run, and with which options: from the words of the options to registered names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchpeek.cam import METHODS, find_method
from torchpeek.cli.options import MethodOptions
from torchpeek.errors import OptionError, notify
from torchpeek.metrics import METRICS, find_metric
from torchpeek.registry import Registered


def method_names(options: MethodOptions) -> list[str]:
    """The names that --method selects, each once. "all" is each method that runs nothing besides the shared trace."""
    if "all" in options.methods:
        return [name for name, method in METHODS.items() if method.cheap and method.layers == "one"]
    return list(dict.fromkeys(find_method(name).name for name in options.methods))


def check_methods(options: MethodOptions) -> None:
    """Raise MethodNotFound for an unknown method, and OptionError for an option that none of the methods can use."""
    if options.layout is not None and not options.layers:
        raise OptionError(f"--layout {options.layout!r} needs the layer that it describes; name it with --layer")
    names = method_names(options)
    method_options(names, options.method_options or ())
    if not options.layers:
        return
    of_input = [name for name in names if METHODS[name].layers == "none"]
    if of_input:
        notify(f"--layer is for other methods; {', '.join(of_input)} look{'s' * (len(of_input) == 1)} at the input")
    without = [name for name in names if METHODS[name].layers == "all"]
    verb = "uses" if len(without) == 1 else "use"
    if without and len(without) == len(names):
        raise OptionError(
            f"--layer is for methods that use one layer or several; {', '.join(without)} {verb} every layer of the "
            "model. Next: leave out --layer"
        )
    if without:
        notify(f"--layer is for the other methods; {', '.join(without)} {verb} every layer of the model")


def method_options(names: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method, its part of the NAME=VALUE texts. Raises OptionError for one that no method has."""
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in texts:
        key, equals, value = text.partition("=")
        owners = [name for name in names if key in METHODS[name].options]
        if not equals or not owners:
            known = sorted({option for name in names for option in METHODS[name].options})
            raise OptionError(
                f"--option {text!r}: allowed are NAME=VALUE, and for {', '.join(names)}: "
                f"{', '.join(known) or 'none, as they have no options'}"
            )
        for name in owners:
            options[name][key] = _parsed("--option", key, value, METHODS[name], key)
    return options


def metric_options(metrics: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each metric, its part of the METRIC.NAME=VALUE texts. "all" is each one that needs no region and no method.

    Raises MetricNotFound for an unknown metric, and OptionError for an option that none of the metrics has.
    """
    options: dict[str, dict[str, Any]] = {}
    for name in metrics:
        if name == "all":
            options |= {metric.name: {} for metric in METRICS.values() if metric.needs in ("heatmap", "passes")}
        else:
            options[find_metric(name).name] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name in options and option in METRICS[name].options):
            known = [f"{metric}.{option}" for metric in options for option in METRICS[metric].options]
            raise OptionError(
                f"--metric-option {text!r}: allowed are METRIC.NAME=VALUE, and for these metrics: "
                f"{', '.join(known) or 'none, as they have no options'}"
            )
        options[name][option] = _parsed("--metric-option", key, value, METRICS[name], option)
    return options


def _parsed(flag: str, key: str, text: str, owner: Registered, option: str) -> Any:
    """The text as a value of the owner's option. Raises OptionError for one that the option does not allow."""
    value = _value(f"{flag} {key}", text, owner.options[option])
    try:
        value = owner.checked_options({option: value})[option]
    except OptionError as error:
        raise OptionError(f"{flag} {key}={text}: {error}") from error
    return value


def _value(name: str, text: str, default: Any) -> Any:
    """The text as a value of the type of the default. A number where the default is a name stays a number."""
    try:
        match default:
            case int():
                return int(text)
            case float():
                return float(text)
            case None if text.isdigit():
                return int(text)
            case None | str() if _is_number(text):
                return float(text)
    except ValueError as error:
        raise OptionError(f"{name}={text!r}: allowed is a number, such as {default or 1}") from error
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
