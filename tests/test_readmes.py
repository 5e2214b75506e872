"""The README pages inside the package: the files and names that they mention exist.

The convention, for every README.md under src/torchpeek:

- a backticked `folder/file.py` is a file, relative to the folder of the page;
- a backticked `folder/file.py: name` is a name that is defined in this file: a function, a class or a constant;
- a backticked `folder/file.py: Class.member` is a method or an attribute of a class of this file.

Code blocks are not looked at. The names are found by parsing the files, so nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "torchpeek"
PAGES = sorted(SOURCE.rglob("README.md"))

_REFERENCE = re.compile(r"(?P<path>[\w./-]+\.py)(: (?P<name>[\w.]+))?")


def references(text: str) -> list[str]:
    """The backticked spans of a page that mention a Python file."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [span for span in re.findall(r"`([^`]+)`", without_blocks) if ".py" in span]


def problem(reference: str, folder: Path) -> str | None:
    """What is wrong with a reference of a page in this folder; None if it is right."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return "write `folder/file.py` or `folder/file.py: name`, on one line"
    file = folder / match["path"]
    if not file.is_file():
        return f"{match['path']} does not exist"
    if match["name"] and match["name"] not in names_in(file):
        return f"{match['path']} does not define {match['name']}"
    return None


@cache
def names_in(file: Path) -> frozenset[str]:
    return frozenset(defined_names(ast.parse(file.read_text()).body))


def defined_names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """The names that these statements define: functions, classes with their members, and what is assigned to."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + statement.name
            if prefix:
                yield from assigned_to_self(statement, prefix)
        elif isinstance(statement, ast.ClassDef):
            yield prefix + statement.name
            yield from defined_names(statement.body, f"{prefix}{statement.name}.")
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                yield from (prefix + node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def assigned_to_self(method: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.walk(method):
        is_assigned = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_assigned and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield prefix + node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(SOURCE)))
def test_files_and_names_exist(page: Path) -> None:
    mentioned = references(page.read_text())
    assert mentioned, "the page mentions no file"
    problems = {reference: problem(reference, page.parent) for reference in mentioned}
    assert not {reference: text for reference, text in problems.items() if text}


def test_there_are_pages() -> None:
    assert SOURCE / "hooks" / "README.md" in PAGES


class TestTheCheckItself:
    PAGE = """See `one.py`, `one.py: Class.method`, `Class` and `model(x)`.

```python
import nothing  # `in_a_block.py: name`
```
"""

    def test_finds_the_references(self) -> None:
        assert references(self.PAGE) == ["one.py", "one.py: Class.method"]

    @pytest.mark.parametrize(
        ("reference", "expected"),
        [
            ("one.py", None),
            ("inner/two.py: CONSTANT", None),
            ("one.py: function", None),
            ("one.py: Class", None),
            ("one.py: Class.method", None),
            ("one.py: Class.field", None),
            ("one.py: Class.attribute", None),
            ("three.py", "three.py does not exist"),
            ("two.py", "two.py does not exist"),
            ("one.py: method", "one.py does not define method"),
            ("one.py: local", "one.py does not define local"),
            ("one.py: imported", "one.py does not define imported"),
            ("one.py:function", "write `folder/file.py` or `folder/file.py: name`, on one line"),
            ("one.py:\nfunction", "write `folder/file.py` or `folder/file.py: name`, on one line"),
        ],
    )
    def test_says_what_is_wrong(self, reference: str, expected: str | None, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "two.py").write_text("CONSTANT: int = 1\n")
        (tmp_path / "one.py").write_text(
            "from inner.two import imported\n"
            "def function():\n    local = 1\n"
            "class Class:\n    field: int\n    def method(self):\n        self.attribute = 1\n"
        )
        assert problem(reference, tmp_path) == expected
