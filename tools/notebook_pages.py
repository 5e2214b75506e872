"""Run the notebooks of examples/, and write each as a page of docs/notebooks, with its pictures beside it.

The notebooks are committed without outputs. A page has the text, the code, and what the code shows: text in blocks, and
each picture as a file, because a picture inside a page is not shown everywhere. `make notebooks` runs this.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbclient
import nbformat
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "examples"
PAGES = ROOT / "docs" / "notebooks"
WIDEST = 840  # pixels; what a page has room for
TIMEOUT = 300  # seconds for a cell


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="what the notebooks' names contain; all if omitted")
    names = parser.parse_args(arguments).names
    os.environ.setdefault("TORCH_HOME", str(ROOT / ".cache" / "torch"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or any(name in path.name for name in names):
            page = write_page(executed(path), path, PAGES)
            print(page.relative_to(ROOT))
    return 0


def executed(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its folder, and return it with its outputs. A cell that fails raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    return nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=folder).execute()


def write_page(notebook: nbformat.NotebookNode, path: Path, folder: Path) -> Path:
    """Write the page of an executed notebook, and its pictures in place of those that were there. Return the page."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob(f"{path.stem}-*"):
        old.unlink()
    page = Page(folder, path.stem)
    page.parts.append(f"<!-- Made from examples/{path.name} by `make notebooks`. Change the notebook, not this. -->")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            page.parts.append(with_links_from_page(cell.source))
            continue
        page.parts.append(f"```python\n{cell.source}\n```")
        for output in _joined(cell.outputs):
            page.add_output(output)
    target = folder / f"{path.stem}.md"
    target.write_text("\n\n".join(page.parts) + "\n")
    return target


def _joined(outputs: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join what a cell prints in several pieces."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before is not None and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def with_links_from_page(text: str) -> str:
    """Rewrite links, which are relative to examples/ in a notebook, so that they are right in docs/notebooks."""

    def moved(match: re.Match[str]) -> str:
        target = match[1]
        if "://" in target or target.startswith("#"):
            return match[0]
        if target.endswith(".ipynb"):  # the pages lie beside each other, as the notebooks do
            return f"]({target.removesuffix('.ipynb')}.md)"
        file, hash_sign, anchor = target.partition("#")
        return f"]({Path(os.path.relpath(NOTEBOOKS / file, PAGES)).as_posix()}{hash_sign}{anchor})"

    return re.sub(r"\]\(([^)]+)\)", moved, text)


@dataclass
class Page:
    """A page in the making."""

    folder: Path
    name: str
    parts: list[str] = field(default_factory=list)
    images: int = 0

    def add_output(self, output: nbformat.NotebookNode) -> None:
        """Add what a cell shows: its pictures, or its text where it has none."""
        if output.output_type == "stream":
            if output.name == "stderr":
                raise ValueError(f"{self.name}: a cell warns: {output.text}")
            self._add_text(output.text)
            return
        data = output.data
        shown, has_table = read_html(data.get("text/html", ""))
        if shown and has_table:
            self._add_text(data["text/plain"])  # a table is text there
        if "image/png" in data:
            self.parts.append(self._saved(base64.b64decode(data["image/png"])))
        elif shown:
            shown = [(_escaped(caption), content) for caption, content in shown]
            captions = " | ".join(caption for caption, _ in shown)
            row = " | ".join(self._saved(content, caption) for caption, content in shown)
            self.parts.append(f"| {captions} |\n|{'---|' * len(shown)}\n| {row} |")
        elif "text/plain" in data:
            self._add_text(data["text/plain"])

    def _add_text(self, text: str) -> None:
        if text.strip():
            self.parts.append("```text\n" + "\n".join(line.rstrip() for line in text.strip("\n").split("\n")) + "\n```")

    def _saved(self, content: bytes, caption: str = "") -> str:
        """Write a picture in the smaller of two formats, and return the Markdown that shows it."""
        self.images += 1
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
        if image.width > WIDEST:
            image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
        packed = {
            "png": _packed(image.quantize(256) if _has_few_colours(image) else image, "PNG", optimize=True),
            "jpg": _packed(image, "JPEG", quality=88, optimize=True),
        }
        ending = min(packed, key=lambda each: len(packed[each]))
        file = f"images/{self.name}-{self.images}.{ending}"
        (self.folder / file).write_bytes(packed[ending])
        return f"![{caption or f'picture {self.images}'}]({file})"


def _escaped(text: str) -> str:
    """Text as Markdown shows it, on one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _has_few_colours(image: Image.Image) -> bool:
    return image.getcolors(256) is not None


def _packed(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read_html(html: str) -> tuple[list[tuple[str, bytes]], bool]:
    """Return the (alternative text, content) of each picture in the HTML of an output, and whether it has a table.

    A picture without alternative text, such as a colour bar, does not count, nor does what is folded.
    """
    parser = _Parser()
    parser.feed(html)
    return [(alt, _content(source)) for alt, source in parser.images], parser.has_table


def _content(source: str) -> bytes:
    with urlopen(source) as opened:  # a data URI: nothing is downloaded
        content: bytes = opened.read()
    return content


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, str]] = []
        self.has_table = False
        self._folded = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        alt, source = values.get("alt") or "", values.get("src") or ""
        if tag == "details":
            self._folded += 1
        elif tag == "table" and not self._folded:
            self.has_table = True
        elif tag == "img" and alt and source.startswith("data:image/") and not self._folded:
            self.images.append((alt, source))

    def handle_endtag(self, tag: str) -> None:
        self._folded -= tag == "details"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
