"""Rules of the architecture: import direction, who registers hooks, and who runs the model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paths import ROOT

SOURCE = ROOT / "src" / "torchpeek"

# Lowest first. A room imports only rooms below it, and its own files.
ROOMS = [
    "_version",
    "errors",
    "interrupts",
    "progress",
    "registry",
    "bootstrap",
    "hooks",
    "engine",
    "picture",
    "heatmap",
    "store",
    "models",
    "render",
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

    def test_only_engine_runs_the_model(self, file: Path) -> None:
        if room_of(file) == "engine":
            return
        for line, name in called(ast.parse(file.read_text())):
            assert name not in {"model", "module", "net", "network", "forward"}, f"line {line}: {name}(...)"

    def test_has_a_first_line_that_says_what_it_is(self, file: Path) -> None:
        assert ast.get_docstring(ast.parse(file.read_text()))

    def test_core_imports_no_extra(self, file: Path) -> None:
        extras = {"torchvision", "timm", "transformers", "matplotlib", "scipy", "cv2", "pyarrow"}
        assert not top_level_imports(ast.parse(file.read_text())) & extras

    def test_no_dumping_ground(self, file: Path) -> None:
        assert file.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_the_guards_see_what_they_guard_against() -> None:
    """A guard that finds nothing in a bad file guards nothing."""
    bad = ast.parse("from torchpeek.cli import x\nself.model(y)\nlayer.register_forward_hook(f)\nimport timm")
    assert imported_rooms(bad) == [(1, "cli")]
    assert {name for _, name in called(bad)} == {"model", "register_forward_hook"}
    assert top_level_imports(bad) == {"torchpeek", "timm"}
    engine = "\n".join(file.read_text() for file in FILES if room_of(file) == "engine")
    assert engine.count(" = model(*args, **kwargs)") == 1
