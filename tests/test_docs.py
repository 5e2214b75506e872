"""The documentation: its code runs, its tables are the registries, and its links lead to files."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import torchpeek as tp
from paths import ROOT
from torchpeek.cli.methods import methods_markdown


@pytest.mark.parametrize(
    "page", ["README.md", "docs/guide.md", "docs/methods.md", "docs/metrics.md", "docs/models.md", "docs/runs.md"]
)
def test_the_code_runs(page: str, mobilenet, in_folder: Path, photograph: Path) -> None:
    with Image.open(photograph) as image:
        image.convert("RGB").save(in_folder / "cat.jpg")
    (in_folder / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert list(in_folder.glob("*.png")) or page in ("docs/methods.md", "docs/metrics.md")


def test_the_readmes_table_is_the_registry() -> None:
    assert methods_markdown() in (ROOT / "README.md").read_text()


def test_methods_are_documented() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"| `{name}` |" in page for name in tp.METHODS)


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_error_tree_in_the_docstring_is_the_real_one() -> None:
    drawn = {line.strip("│├└─ ").split()[0] for line in tp.errors.__doc__.splitlines() if "──" in line}
    real = {
        name
        for name, value in vars(tp.errors).items()
        if isinstance(value, type) and issubclass(value, tp.TorchpeekError) and value is not tp.TorchpeekError
    }
    assert drawn == real


def test_public_names_have_docstrings() -> None:
    for name in tp.__all__:
        value = getattr(tp, name)
        if not isinstance(value, (str, dict)):
            assert value.__doc__, name


def test_importing_it_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        done = subprocess.run([sys.executable, "-W", "error", "-c", "import torchpeek"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_core_needs_no_extra() -> None:
    """Importing it brings in neither torchvision, timm, matplotlib nor SciPy."""
    extras = ("torchvision", "timm", "matplotlib", "scipy", "cv2")
    code = f"import sys, torchpeek; print([name for name in {extras} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
