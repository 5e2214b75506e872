"""The docstrings of the public names: their sections are complete, and their examples run.

Covered is every name in `torchpeek.__all__`: functions; classes with their public methods, properties and `__call__`;
of a module, the functions and classes in its `__all__`, or those that it defines.

- A function or method has a summary line, `Args:` with exactly the parameters of the signature in their order,
  `Returns:` or `Yields:` unless it returns None, and `Example:` with two to five lines of source.
- A class has a summary line and an example. `Args:` names the fields of a dataclass or NamedTuple, or the parameters of
  `__init__`.
- A property has a summary. It needs no sections.
- A Protocol cannot be called, so it and its methods need no example.
- An error or a warning has one sentence and nothing else.
- METHODS and METRICS are tables of functions that are called through `explain` and `evaluate`. Such a function has a
  summary line, and `Args:` with exactly its options.
- The same rules hold for the classes in RETURNED.

`Raises:` cannot be checked against the code, so it is left to the reader.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchpeek as tp
from run_examples import names_for_runs
from torchpeek.anatomy import GradientFlow, Kernels, LayerTable, Plan, Statistics, Table, TrainingFlow
from torchpeek.anatomy.tensor_table import TensorTable
from torchpeek.explanation.results import HeatmapList, HeatmapsByMethod

# What public functions return, in files of its own: it is no name of torchpeek.
RETURNED: tuple[type, ...] = (
    *(GradientFlow, Kernels, LayerTable, Plan, Statistics, Table, TensorTable, TrainingFlow),
    *(HeatmapList, HeatmapsByMethod),
)

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes of a module that are public: those in its `__all__`, or those that it defines."""
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    for name in names:
        member = getattr(module, name)
        if isinstance(member, (FunctionType, type)) and member.__module__.startswith(module.__name__):
            yield name, member


def public_names() -> Iterator[tuple[str, Any]]:
    """Dotted name and object: functions, classes, methods and properties."""
    for name in tp.__all__:
        value = getattr(tp, name)
        members = public_members(value) if isinstance(value, ModuleType) else [(None, value)]
        for member_name, member in members:
            full_name = name if member_name is None else f"{name}.{member_name}"
            if isinstance(member, type):
                yield full_name, member
                yield from ((f"{full_name}.{attribute}", each) for attribute, each in public_attributes(member))
            elif isinstance(member, FunctionType):
                yield full_name, member
    for member in RETURNED:
        yield member.__name__, member
        inherited = {name for base in member.__mro__[1:] if base in RETURNED for name in vars(base)}
        for attribute, each in public_attributes(member):
            if attribute not in inherited:  # the class above documents it
                yield f"{member.__name__}.{attribute}", each


def public_attributes(cls: type) -> Iterator[tuple[str, Any]]:
    """Name and object: the public methods and properties that a class defines."""
    for attribute, definition in vars(cls).items():
        public = attribute == "__call__" or not attribute.startswith("_")
        if public and attribute not in fields_of(cls) and is_method_or_property(definition):
            yield attribute, definition


def is_method_or_property(value: object) -> bool:
    return isinstance(value, (FunctionType, classmethod, staticmethod)) or is_property(value)


def is_property(value: object) -> bool:
    return isinstance(value, property) or type(value).__name__ == "cached_property"


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def is_protocol(value: object) -> bool:
    return bool(getattr(value, "_is_protocol", False))


def docstring(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def sections(text: str) -> dict[str, str]:
    """Name of the section -> its text. A section starts at a line like `Args:`."""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}):", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_names(text: str) -> list[str]:
    """The names in an `Args:` section, which are four spaces in."""
    return re.findall(r"^    (\*{0,2}\w+):", text, flags=re.MULTILINE)


def function_of(value: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(value, "__func__", value)
    return function


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names in the signature, with their stars, without self and cls."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    named = [
        stars.get(each.kind, "") + each.name for each in inspect.signature(inspect.unwrap(function)).parameters.values()
    ]
    return [name for name in named if name not in ("self", "cls")]


def fields_of(cls: Any) -> list[str]:
    """What is handed in to make one of these."""
    if is_protocol(cls):
        return []
    if hasattr(cls, "_fields"):
        return list(cls._fields)
    if is_dataclass(cls):
        return parameters(cls)
    return parameters(cls.__init__) if "__init__" in vars(cls) else []


def examples(value: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(docstring(value))


# Each object once: some are public in two places.
DOCUMENTED = {name: value for value, name in {value: name for name, value in reversed([*public_names()])}.items()}
IN_PROTOCOLS = {
    name for name in DOCUMENTED if is_protocol(DOCUMENTED[name]) or is_protocol(DOCUMENTED.get(name.rpartition(".")[0]))
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_sections_are_complete(name: str) -> None:
    value = DOCUMENTED[name]
    text = docstring(value)
    found = sections(text)
    assert text, "no docstring"
    assert len(text.splitlines()[0]) <= 120
    if is_error(value):
        assert len(text.splitlines()) == 1, "an error has one sentence"
        assert text.endswith(".")
        return
    assert text.splitlines()[0].endswith((".", "?")), "the summary is a sentence"
    if is_property(value):
        return
    if isinstance(value, type):
        expected = fields_of(value)
    else:
        function = function_of(value)
        expected = parameters(function)
        if inspect.signature(inspect.unwrap(function)).return_annotation not in (None, "None"):
            assert found.keys() & {"Returns", "Yields"}, "no Returns or Yields"
    assert documented_names(found.get("Args", found.get("Attributes", ""))) == expected
    if name not in IN_PROTOCOLS:
        lines = sum(len(each.source.splitlines()) for each in examples(value))
        assert 2 <= lines <= 5, f"an example of {lines} lines"
        assert "Example" in found


@pytest.fixture(scope="module")
def data_set_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return names_for_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", [name for name, value in DOCUMENTED.items() if examples(value)])
def test_the_example_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    names = {"torch": torch, "nn": nn, "tp": tp, "np": np, "folder": tmp_path}
    if str(getattr(function_of(DOCUMENTED[name]), "__module__", "")).startswith("torchpeek.runs."):
        names |= request.getfixturevalue("data_set_run")
    test = doctest.DocTest(examples(DOCUMENTED[name]), names, name, None, None, None)
    output: list[str] = []
    doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=output.append)
    assert not output, "".join(output)


@pytest.mark.parametrize("name", [*tp.METHODS, *tp.METRICS])
def test_methods_and_metrics_document_their_options(name: str) -> None:
    entry = tp.METHODS.get(name) or tp.METRICS[name]
    text = docstring(entry.compute)
    assert text.splitlines()[0].endswith(".")
    assert documented_names(sections(text).get("Args", "")) == list(entry.options)


class TestTheChecksThemselves:
    def test_sections_are_told_apart(self) -> None:
        text = "Summary.\n\nArgs:\n    a: One\n        line: more.\n    **b: Two.\nReturns:\n    c: three."
        assert list(sections(text)) == ["Args", "Returns"]
        assert documented_names(sections(text)["Args"]) == ["a", "**b"]

    def test_a_wrong_example_is_noticed(self) -> None:
        parsed = doctest.DocTestParser().get_examples(">>> 1 + 1\n3\n")
        output: list[str] = []
        doctest.DocTestRunner(optionflags=_FLAGS).run(
            doctest.DocTest(parsed, {}, "wrong", None, None, None), out=output.append
        )
        assert output
