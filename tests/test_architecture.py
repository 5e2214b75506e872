"""Rules of the architecture: import direction, who registers hooks, and who runs the model."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from paths import ROOT

SOURCE = ROOT / "src" / "torchpeek"

# Lowest first. A room imports only rooms below it, and its own files.
ROOMS = [
    "_version",
    "printable",
    "errors",
    "cached",
    "forks",
    "signal_gate",
    "system_errors",
    "undo",
    "argument_types",
    "annotation_checks",
    "interrupts",
    "turns",
    "keywords",
    "tensor_formats",
    "norms",
    "progress",
    "registry",
    "bootstrap",
    "draws",
    "text_table",
    "html",
    "hooks",
    "engine",
    "picture",
    "provenance",
    "render",
    "heatmap",
    "store",
    "models",
    "cam",
    "metrics",
    "anatomy",
    "explanation",
    "evaluation",
    "integrations",
    "runs",
    "viewer",
    "cli",
    "__init__",
    "__main__",
]
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module] if node.module != "torchpeek" else [f"torchpeek.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name and name.startswith("torchpeek.")]
    return found


def inner_imports(tree: ast.AST, room: str) -> list[tuple[int, str]]:
    """Line and module of each import that reaches into a room, past what its `__init__` exports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.startswith(f"torchpeek.{room}.")]
    return found


def imported_files(tree: ast.AST) -> set[Path]:
    """The files of torchpeek that are imported anywhere in the tree, also inside functions and for typing alone."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            targets |= {file_of([*parts, alias.name]) or file_of(parts) for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {file_of(alias.name.split(".")) for alias in node.names}
    return {file for file in targets if file is not None}


def file_of(parts: list[str]) -> Path | None:
    """The file of the module with this dotted name; None where it is no module of torchpeek."""
    path = SOURCE.joinpath(*parts[1:])
    candidates = [path / "__init__.py", path.with_suffix(".py")]
    return next((file for file in candidates if parts[0] == "torchpeek" and file.is_file()), None)


def circle(imports: Mapping[Path, set[Path]]) -> list[str]:
    """Files that import each other in a circle, of any length; empty where there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [str(file) for file in error.args[1]]
    return []


def top_level_imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def called(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of everything that is called: `f(...)` is f, `a.b(...)` is b."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [
        (call.lineno, call.func.id if isinstance(call.func, ast.Name) else call.func.attr)
        for call in calls
        if isinstance(call.func, (ast.Name, ast.Attribute))
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
class TestEveryFile:
    def test_room_is_known_and_imports_only_rooms_below(self, file: Path) -> None:
        room = room_of(file)
        assert room in ROOMS, f"{room} is not a room of the house; add it to ROOMS where it belongs"
        for line, other in imported_rooms(ast.parse(file.read_text())):
            below = ROOMS.index(other) < ROOMS.index(room)
            assert below or other == room, f"line {line}: {room} imports {other}, which is above it"

    def test_only_hooks_registers_hooks(self, file: Path) -> None:
        if room_of(file) == "hooks":
            return
        for line, name in called(ast.parse(file.read_text())):
            assert not (name.startswith("register_") and "hook" in name), f"line {line}: {name} outside hooks/"

    def test_others_import_only_what_hooks_exports(self, file: Path) -> None:
        if room_of(file) != "hooks":
            assert inner_imports(ast.parse(file.read_text()), "hooks") == []

    def test_only_engine_runs_the_model(self, file: Path) -> None:
        if room_of(file) == "engine":
            return
        for line, name in called(ast.parse(file.read_text())):
            assert name not in {"model", "module", "net", "network", "forward"}, f"line {line}: {name}(...)"

    def test_has_a_first_line_that_says_what_it_is(self, file: Path) -> None:
        assert ast.get_docstring(ast.parse(file.read_text()))

    def test_core_imports_no_extra(self, file: Path) -> None:
        extras = {
            "torchvision",
            "timm",
            "transformers",
            "matplotlib",
            "scipy",
            "cv2",
            "pyarrow",
            "duckdb",
            "fsspec",
            "ray",
        }
        if room_of(file) == "runs":  # the whole room needs the extra "data", and nothing below it imports the room
            extras -= {"pyarrow", "duckdb"}
        assert not top_level_imports(ast.parse(file.read_text())) & extras

    def test_no_dumping_ground(self, file: Path) -> None:
        assert file.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_no_files_import_each_other() -> None:
    imports = {file: imported_files(ast.parse(file.read_text())) - {file} for file in FILES}
    assert sum(map(len, imports.values())) > len(FILES)  # they are seen
    assert circle(imports) == []


def test_the_page_of_hooks_names_what_hooks_imports() -> None:
    page = (SOURCE / "hooks" / "README.md").read_text()
    sentence = page.partition("It imports nothing of torchpeek except ")[2].partition(".\n")[0]
    named = re.findall(r"`\.\./(\w+)\.py`", sentence)
    trees = [ast.parse(file.read_text()) for file in FILES if room_of(file) == "hooks"]
    assert named == sorted({room for tree in trees for _, room in imported_rooms(tree)} - {"hooks"})


def test_the_guards_see_what_they_guard_against() -> None:
    """A guard that finds nothing in a bad file guards nothing."""
    bad = ast.parse("from torchpeek.cli import x\nself.model(y)\nlayer.register_forward_hook(f)\nimport timm")
    assert imported_rooms(bad) == [(1, "cli")]
    assert {name for _, name in called(bad)} == {"model", "register_forward_hook"}
    assert top_level_imports(bad) == {"torchpeek", "timm"}
    reaching = ast.parse("import torchpeek.hooks.keep\nfrom torchpeek.hooks.recording import storage")
    assert [line for line, _ in inner_imports(reaching, "hooks")] == [1, 2]
    assert inner_imports(ast.parse("from torchpeek.hooks import keep"), "hooks") == []
    lazy = ast.parse("def f():\n    from torchpeek.engine import trace\n    import torchpeek.errors")
    assert imported_files(lazy) == {SOURCE / "engine" / "trace.py", SOURCE / "errors.py"}
    assert imported_files(ast.parse("from torchpeek.engine import Trace")) == {SOURCE / "engine" / "__init__.py"}
    one, two, three = (Path(name) for name in "abc")
    assert circle({one: {two}, two: {three}, three: set()}) == []
    assert set(circle({one: {two}, two: {three}, three: {one}})) == {"a", "b", "c"}
    engine = "\n".join(file.read_text() for file in FILES if room_of(file) == "engine")
    assert engine.count(" = model(*args, **kwargs)") == 1
