"""Check that what stands for a model is a module that takes hooks; otherwise say what to give instead."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import PurePath

import torch
from torch import Tensor, nn

from torchpeek.errors import InputError, type_shown

# Where wrappers of networks have the network, in the order in which they are looked for.
_WRAPPED = ("module", "model", "network", "net", "model_", "module_")
_WEIGHTS_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".tar", ".onnx")
_SPEC = re.compile(r"[A-Za-z_][\w.]*:[^\\/].*")  # torchvision:NAME, package.module:callable; not C:\file


def checked_model(model: object, allowed: str = "an nn.Module") -> nn.Module:
    """The model itself.

    Args:
        model: What the user gave.
        allowed: What may be given, for the error text.

    Raises:
        InputError: For anything but an nn.Module, and for a scripted or traced one. The message says what to give.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced model takes no hooks; give the nn.Module that it was made from")
    if isinstance(model, nn.Module):
        return model
    what, instead = _described(model)
    raise InputError(f"model is {what}; allowed: {allowed}{'. Next: ' if instead else ''}{instead}")


def _described(model: object) -> tuple[str, str]:
    """What was given in place of a model, and what to give; the second is "" where that is not known."""
    name = type_shown(model)
    if isinstance(model, (str, PathLike)):
        return _of_text(fspath(model))
    if isinstance(model, type):
        made = f"make one: model = {model.__name__}(...)" if issubclass(model, nn.Module) else ""
        return f"the class {model.__name__} itself", made
    if inspect.ismethod(model):
        owner = type_shown(model.__self__)
        if isinstance(model.__self__, nn.Module):
            return f"the method {model.__name__} of {owner}", "give that module itself"
        return f"the method {model.__name__} of {owner}", _described(model.__self__)[1]
    if isinstance(model, functools.partial) or inspect.isroutine(model) or isinstance(model, torch.jit.ScriptFunction):
        called = getattr(model, "__name__", "")
        builder = called if called.isidentifier() else "builder"
        return f"a function{', ' if called else ''}{called}", (
            f"if it builds the network, call it: model = {builder}(...). What is no module has no layers"
        )
    if isinstance(model, Tensor):
        return "a Tensor", "give the model first, then the inputs"
    if isinstance(model, Mapping):
        return _of_mapping(model)
    if type(model).__name__ == "_IncompatibleKeys":
        return "what load_state_dict returns", "give the network itself, which load_state_dict changes in place"
    if isinstance(model, (list, tuple)):
        modules = any(isinstance(each, nn.Module) for each in model)
        return f"{name} of {len(model)}", "give one model at a time" if modules else ""
    if type(model).__name__ == "ExportedProgram":
        return "an ExportedProgram", (
            "give torch.export.unflatten(program), whose layers are called; program.module() computes without them"
        )
    if found := _wrapped(model):
        network = type_shown(_attributes(model)[found])
        return f"{name}, which is no module", f"give its .{found}, {network}"
    return name, ""


def _of_text(text: str) -> tuple[str, str]:
    path = PurePath(text)
    if path.suffix.lower() == ".pt2":
        return f"the name of a file, {text!r}", f"give torch.export.unflatten(torch.export.load({text!r}))"
    if not text:
        return "an empty str", "load a model by its name: tp.load_model('torchvision:resnet18')"
    if path.suffix.lower() in _WEIGHTS_FILES:
        return f"the name of a file, {text!r}", (
            f"a file has weights, not the network: tp.load_model('package.module:callable', weights={text!r}), where "
            "the callable builds the network"
        )
    if _SPEC.fullmatch(text):
        return f"a str, {text!r}", f"load it: tp.load_model({text!r})"
    if len(path.parts) > 1:
        return f"a path, {text!r}", f"for a folder of save_pretrained, tp.load_model({'hf:' + text!r})"
    return f"a str, {text!r}", f"load it: tp.load_model({'torchvision:' + text!r}), or with timm: or hf: in front"


def _of_mapping(model: Mapping[object, object]) -> tuple[str, str]:
    name = type_shown(model)
    for key, value in model.items():
        if isinstance(value, nn.Module):
            return name, f"give its entry {key!r}, {type_shown(value)}"
    nested = next((key for key, each in model.items() if isinstance(each, Mapping) and _is_weights(each)), None)
    weights = "weights" if nested is None else f"checkpoint[{nested!r}]"
    if nested is None and not _is_weights(model):
        return name, ""
    return f"{name} of weights, without the network", (
        f"build the network, load them with network.load_state_dict({weights}), and give the network"
    )


def _is_weights(mapping: Mapping[object, object]) -> bool:
    return bool(mapping) and all(isinstance(each, Tensor) for each in mapping.values())


def _wrapped(model: object) -> str | None:
    """Where the object has a network: the path of an attribute, also inside another one; None where it has none."""
    found = {path: value for path, value in _attributes(model).items() if isinstance(value, nn.Module)}
    first = next((path for name in _WRAPPED for path in found if path == name), None)
    return first or next(iter(found), None)


def _attributes(model: object) -> dict[str, object]:
    """The attributes of an object by their paths, those of its own first, then those inside them, then properties.

    An entry of a list or a dict has its index in brackets as its name.
    """
    outer = _members(model)
    inner = {
        f"{path}.{name}" if name.isidentifier() else f"{path}{name}": value
        for path, each in outer.items()
        if not isinstance(each, (nn.Module, Tensor, str))
        for name, value in _members(each).items()
    }
    properties = {}
    for name in _WRAPPED:
        if isinstance(getattr(type(model), name, None), property):
            try:
                properties[name] = getattr(model, name)
            except Exception:  # a property that cannot be read now
                continue
    return outer | inner | properties


def _members(value: object) -> dict[str, object]:
    if isinstance(value, (list, tuple)):
        return {f"[{index}]": each for index, each in enumerate(value)}
    if isinstance(value, Mapping):
        return {f"[{key!r}]": each for key, each in value.items()}
    slots = [name for owner in type(value).__mro__ for name in vars(owner).get("__slots__", ())]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(getattr(value, "__dict__", {}))
