"""The notebooks of examples/: committed without outputs, true when they run, and the same as their pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest

import notebook_pages
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"
ALEXNET = "alexnet-features.safetensors"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def page_of(path: Path) -> Path:
    return PAGES / f"{path.stem}.md"


def test_there_are_four() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["1-", "2-", "3-", "4-"]
    assert {path.name for path in PAGES.glob("*.md")} == {f"{path.stem}.md" for path in NOTEBOOKS}


@each_notebook
def test_it_is_valid_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None and not cell.metadata for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert any("assert " in cell.source for cell in code)


@each_notebook
def test_it_runs_and_warns_of_nothing(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ.get("TORCH_HOME", ROOT / ".cache" / "torch"))
    source = "\n".join(cells(path, "code"))
    if "mobilenet_v2" in source:
        request.getfixturevalue("mobilenet")  # skips without the weights
    if ALEXNET in source and not (home / "hub" / "checkpoints" / ALEXNET).is_file():
        pytest.skip(f"no real weights: {ALEXNET} is not in TORCH_HOME; make test fetches it")
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for cell in notebook_pages.executed(path).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output.text
            assert "Warning" not in str(output.get("data", {}).get("text/plain", ""))


@each_notebook
def test_its_page_has_the_same_code_and_text(path: Path) -> None:
    page = page_of(path).read_text()
    assert re.findall(r"^```python\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE) == cells(path, "code"), (
        "the page is not the notebook's; make notebooks writes it again"
    )
    position = 0
    for text in cells(path, "markdown"):
        position = page.find(notebook_pages.with_links_from_page(text), position)
        assert position >= 0, f"the page lacks: {text}"


@each_notebook
def test_its_page_stands_alone(path: Path) -> None:
    page = page_of(path).read_text()
    assert "data:image" not in page
    assert str(ROOT) not in page
    assert "Traceback" not in page
    images = re.findall(r"\]\((images/[^)]+)\)", page)
    there = {f"images/{file.name}" for file in (PAGES / "images").glob(f"{path.stem}-*")}
    assert set(images) == there
    assert len(images) == len(there)


def test_the_pictures_are_small() -> None:
    sizes = [file.stat().st_size for file in (PAGES / "images").iterdir()]
    assert max(sizes) < 150_000
    assert sum(sizes) < 2_500_000


def test_the_photographs_that_they_read_are_there() -> None:
    for path in NOTEBOOKS:
        for name in re.findall(r"[\w-]+\.(?:png|jpg)", "\n".join(cells(path, "code"))):
            assert (ROOT / "examples" / "images" / name).is_file(), name
