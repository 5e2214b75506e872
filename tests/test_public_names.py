"""What `import torchpeek` offers: the public names, each loaded on first use, typed, and shadowed by nothing."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import torchpeek as tp

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "torchpeek" / "__init__.py"


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def typed_imports() -> dict[str, str]:
    """Name -> module, from the imports that type checkers and editors read."""
    tree = ast.parse(SOURCE.read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_read_what_python_reads() -> None:
    assert typed_imports() == tp._MODULE_OF
    assert sorted([*typed_imports(), "__version__"]) == sorted(tp.__all__)


def test_the_import_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, torchpeek; print(torchpeek.__version__, *({'torch', 'numpy', 'PIL'} & sys.modules.keys()))"
    assert in_new_process(code) == tp.__version__


def test_star_import() -> None:
    names = dict.fromkeys(tp.__all__, "")
    exec("from torchpeek import *", names)
    assert all(names[name] is getattr(tp, name) for name in tp.__all__)


def test_without_the_extra_for_runs() -> None:
    """`from torchpeek import *` works, and a call says what to install."""
    code = """
import sys
sys.modules["duckdb"] = sys.modules["pyarrow"] = None
from torchpeek import *
try:
    open_run("runs/first")
except TorchpeekError as error:
    print(error)
"""
    package = "pyarrow|duckdb"
    said = in_new_process(code)
    assert re.fullmatch(rf"open_run needs ({package}), which is not installed; next: .*'torchpeek\[data\]'", said), said


def test_dir_is_the_public_names() -> None:
    assert dir(tp) == sorted(tp.__all__)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'torchpeek' has no attribute 'explian'"):
        _ = tp.explian  # type: ignore[attr-defined]


def test_no_submodule_takes_the_place_of_a_public_name() -> None:
    """Importing a submodule sets it on its package. Here all are imported before any public name is read."""
    code = """
import importlib, pkgutil, types, torchpeek as tp
for module in pkgutil.walk_packages(tp.__path__, "torchpeek."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*(name for name in tp.__all__ if isinstance(getattr(tp, name), types.ModuleType)))
"""
    assert in_new_process(code).split() == ["edits", "errors", "keep", "metrics", "render", "targets"]
    for module in pkgutil.walk_packages(tp.__path__, "torchpeek."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in typed_imports().items():
        value = getattr(tp, name)
        assert value is getattr(importlib.import_module(module), name)
        if isinstance(value, ModuleType):
            assert value.__name__.rpartition(".")[2] == name


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/torchpeek/_version.py"
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()
