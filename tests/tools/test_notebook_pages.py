"""tools/notebook_pages.py: what a cell shows, as Markdown with pictures in files."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import torchpeek as tp
from notebook_pages import executed, read_html, with_links_from_page, write_page
from torchpeek.html import bar, collapsed, html_table, image_tag, side_by_side


def png(colour: str, size: tuple[int, int] = (20, 10)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shown(folder: Path, *outputs: nbformat.NotebookNode) -> str:
    """The page of a notebook with one cell that shows these outputs, without its first lines."""
    notebook = new_notebook(cells=[new_code_cell("run()", outputs=list(outputs))])
    text = write_page(notebook, Path("examples/a.ipynb"), folder).read_text()
    return text.partition("```python\nrun()\n```")[2].strip()


def test_text_is_a_block(tmp_path: Path) -> None:
    outputs = [new_output("stream", text="one\n"), new_output("stream", text="two  \n")]
    assert shown(tmp_path, *outputs) == "```text\none\ntwo\n```"
    assert shown(tmp_path, new_output("execute_result", {"text/plain": "3"})) == "```text\n3\n```"
    assert shown(tmp_path, new_output("display_data", {"text/plain": ""})) == ""


def test_a_picture_is_a_file(tmp_path: Path) -> None:
    assert shown(tmp_path, new_output("display_data", {"image/png": png("red")})) == "![picture 1](images/a-1.png)"
    with Image.open(tmp_path / "images" / "a-1.png") as image:
        assert image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_a_wide_picture_is_reduced(tmp_path: Path) -> None:
    shown(tmp_path, new_output("display_data", {"image/png": png("red", (1680, 100))}))
    with Image.open(tmp_path / "images" / "a-1.png") as image:
        assert image.size == (840, 50)


def test_pictures_of_a_page_before_are_removed(tmp_path: Path) -> None:
    shown(tmp_path, *[new_output("display_data", {"image/png": png("red")})] * 2)
    (tmp_path / "images" / "b-1.png").touch()  # of another notebook
    shown(tmp_path, new_output("display_data", {"image/png": png("blue")}))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["a-1.png", "b-1.png"]


def test_embedded_pictures_are_a_row_without_bars_and_folded_parts(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "teal")
    figures = [image_tag(image, "cat|dog") + bar(image, 8, ["0", "1"]), image_tag(image, "fox")]
    html = side_by_side(figures) + collapsed("more", image_tag(image, "folded") + html_table(("a",), [["1"]]))
    assert shown(tmp_path, new_output("execute_result", {"text/html": html, "text/plain": "Two()"})) == (
        "| cat\\|dog | fox |\n|---|---|\n| ![cat\\|dog](images/a-1.png) | ![fox](images/a-2.png) |"
    )


def test_a_table_beside_pictures_is_text(tmp_path: Path) -> None:
    html = html_table(("a",), [["1"]]) + image_tag(Image.new("RGB", (8, 8)), "curve")
    page = shown(tmp_path, new_output("execute_result", {"text/html": html, "text/plain": "a\n1"}))
    assert page.startswith("```text\na\n1\n```\n\n| curve |")


def test_html_of_a_real_heatmap() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=[[1, 2]])
    images, has_table = read_html(heatmap._repr_html_())
    assert len(images) == 2
    assert not has_table
    for alt, content in images:
        assert alt
        Image.open(io.BytesIO(content)).verify()
    assert read_html("") == ([], False)


def test_a_warning_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: a cell warns: UserWarning"):
        shown(tmp_path, new_output("stream", name="stderr", text="UserWarning"))


@pytest.mark.parametrize(
    ("in_notebook", "in_page"),
    [
        ("[a](2-next.ipynb)", "[a](2-next.md)"),
        ("[a](../docs/hooks.md#outputs) and [b](../README.md)", "[a](../hooks.md#outputs) and [b](../../README.md)"),
        ("![a](images/cat.png)", "![a](../../examples/images/cat.png)"),
        ("[a](https://arxiv.org/abs/1512.04150) [b](#here)", "[a](https://arxiv.org/abs/1512.04150) [b](#here)"),
    ],
)
def test_links(in_notebook: str, in_page: str) -> None:
    assert with_links_from_page(in_notebook) == in_page


def test_text_and_order(tmp_path: Path) -> None:
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("run()"), new_markdown_cell("End.")])
    text = write_page(notebook, Path("examples/a.ipynb"), tmp_path).read_text()
    assert text == (
        "<!-- Made from examples/a.ipynb by `make notebooks`. Change the notebook, not this. -->\n\n"
        "# Title\n\n```python\nrun()\n```\n\nEnd.\n"
    )


def test_a_notebook_runs_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "beside.txt").write_text("here")
    nbformat.write(new_notebook(cells=[new_code_cell("print(open('beside.txt').read())")]), tmp_path / "a.ipynb")
    notebook = executed(tmp_path / "a.ipynb")
    assert [output.text for output in notebook.cells[0].outputs] == ["here\n"]
