"""The HTML pages of features, kernels, gradients and evaluate: well formed, escaped, complete, with links that lead."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_models import named_as_markup, pooled
from cli_runner import asked, of, run
from images import noise

COMMANDS = ["features", "kernels", "gradients", "evaluate"]
FEW = ("--metric-option", "deletion.steps=4", "--metric-option", "insertion.steps=4")
MORE = {"features": (), "kernels": (), "gradients": (), "evaluate": FEW}
VOID = {"meta", "img", "br", "input", "line", "polyline"}
ODD = "<b>&\"'"


class Page(HTMLParser):
    """A page: its elements, and the words of each kind of element. Every tag has to be closed in turn."""

    def __init__(self, folder: str = "out") -> None:
        super().__init__()
        self.folder = Path(folder)
        self.html = (self.folder / "report.html").read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def values(self, attribute: str, tag: str = "") -> list[str]:
        return [found[attribute] for name, found in self.elements if attribute in found and tag in ("", name)]

    def links(self) -> list[Path]:
        return [self.folder / unquote(link) for link in self.values("href") if not link.startswith("#")]

    def words(self) -> str:
        return " ".join(text for _, text in self.texts)

    def table(self, title: str) -> list[list[str]]:
        """The rows of a table, the header first."""
        found = re.search(rf"<caption>{re.escape(title)}</caption>(.*?)</table>", self.html, re.DOTALL)
        assert found
        rows = re.findall(r"<tr.*?</tr>", found[1], re.DOTALL)
        cells = (re.findall(r"<t[hd][^>]*>(?:<a[^>]*>)?([^<]*)", row) for row in rows)
        return [list(each) for each in cells]


def written(command: str, model: str, *words: str, pictures: str = "pictures") -> Page:
    given = [] if command == "kernels" else [pictures]
    assert run(command, *given, *of(model), *MORE[command], *words, "-o", "out", "--overwrite") == 0
    return Page()


@pytest.mark.parametrize("command", COMMANDS)
class TestEveryPage:
    def test_it_needs_nothing_else_and_its_links_lead_to_files(self, place, command) -> None:
        page = written(command, "pooled")
        assert all(address.startswith("data:image/") for address in page.values("src"))
        assert not re.search(r"url\((?!data:)", page.html)
        assert "://" not in re.sub(r"data:image/[^\"')]*", "", page.html)
        assert {"default-src 'none'; img-src data:; style-src 'unsafe-inline'"} <= {*page.values("content")}
        assert page.links()
        assert all(link.is_file() for link in page.links())
        ids = {f"#{name}" for name in page.values("id")}
        assert {link for link in page.values("href") if link.startswith("#")} <= ids
        assert len(page.values("id")) == len(set(page.values("id")))

    def test_every_image_decodes_and_says_what_it_shows(self, place, command) -> None:
        page = written(command, "pooled")
        images = [found for tag, found in page.elements if tag == "img"]
        assert images or command == "gradients"
        for image in images:
            assert image["alt"]
            Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).load()
        assert all(page.values("aria-label", "svg"))

    def test_names_are_escaped(self, place, command) -> None:
        noise((40, 30)).save(place / "pictures" / f"{ODD}.png")
        page = written(command, "named_as_markup")
        tags = {tag for tag, _ in page.elements}
        assert "script" not in tags
        assert not re.search(r"<b>&(?!amp;|lt;|gt;|#)", page.html)
        assert ODD in page.words()
        assert all(link.is_file() for link in page.links())

    def test_everything_it_depends_on_is_said(self, place, command) -> None:
        page = written(command, "untrained", "--seed", "7") if command != "evaluate" else written(command, "untrained")
        facts = dict(zip(page.of("dt"), page.of("dd"), strict=True))
        assert facts["model"]
        assert facts["weights"].startswith("random")
        assert f"torch {torch.__version__}, torchpeek {tp.__version__}" in facts["computed"]
        assert ("preprocessing" in facts) == (command != "kernels")
        assert re.search('<span class="warning">weights: random', page.html)

    def test_it_is_named_in_the_output(self, place, capsys, command) -> None:
        written(command, "pooled")
        assert "report: out/report.html" in capsys.readouterr().out.splitlines()

    def test_without_out_there_is_none(self, place, capsys, command) -> None:
        given = [] if command == "kernels" else ["pictures"]
        assert run(command, *given, *of("pooled"), *MORE[command]) == 0
        assert "report" not in capsys.readouterr().out
        assert not list(place.rglob("report.html"))

    def test_json_is_as_without_a_page(self, place, capsys, command) -> None:
        given = [] if command == "kernels" else ["pictures"]
        results = asked(capsys, command, *given, *of("pooled"), *MORE[command], "-o", "out")
        assert "report" not in results


class TestFeatures:
    def test_the_grids_and_the_numbers_of_each_picture(self, place, capsys) -> None:
        words = ("features", "pictures", *of("pooled"), "--layer", "features.0,act,head", "-o", "out")
        rows = asked(capsys, *words)["features"]
        page = Page()
        assert page.of("h2")[:3] == ["a.png", "b.png", "c.png"]
        for stem in "abc":
            mine = [row for row in rows if row["picture"] == f"pictures/{stem}.png"]
            header, *cells = page.table(f"what the layers returned for {stem}.png")
            assert header[:3] == ["layer", "shape", "mean"]
            assert [each[0] for each in cells] == ["features.0", "act", "head"]
            assert [each[2] for each in cells] == [f"{row['mean']:.4g}" for row in mine]
            alts = [alt for alt in page.values("alt") if alt.endswith(f"{stem}.png")]
            assert alts == [f"feature maps of {layer} for {stem}.png" for layer in ("features.0", "act")]
        grids = {Path(row["drawn"]) for row in rows if "drawn" in row}
        values = {Path(f"out/{stem}/features.safetensors") for stem in "abc"}
        assert set(page.links()) == {*grids, *values, Path("out/features.json")}
        assert "no grid to draw" in page.words()
        assert set(page.values("loading")) == {"lazy"}

    def test_the_embedded_image_is_the_grid(self, place) -> None:
        page = written("features", "pooled", pictures="pictures/a.png")
        [source] = [found["src"] for tag, found in page.elements if tag == "img"]
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        with Image.open("out/a/act.png") as grid:
            assert abs(shown.width / shown.height - grid.width / grid.height) < 0.02

    def test_a_picture_named_like_the_page(self, place) -> None:
        noise((40, 30)).save(place / "pictures" / "report.html.png")
        assert all(link.is_file() for link in written("features", "pooled").links())

    def test_what_has_no_place_is_linked(self, place, monkeypatch) -> None:
        monkeypatch.setattr("torchpeek.cli.page._IMAGES_PER_PAGE", 4)  # two pictures, each with its grid
        page = written("features", "pooled")
        assert page.of("h2")[:3] == ["a.png", "b.png", "Not on this page"]
        assert "3 pictures" in page.words()
        assert Path("out/c/features.safetensors") in page.links()

    def test_an_interrupt_leaves_the_page_of_what_is_there(self, place, monkeypatch) -> None:
        read = tp.LoadedModel.read

        def interrupted(loaded, file, **more):
            if "c.png" in str(file):
                raise KeyboardInterrupt
            return read(loaded, file, **more)

        monkeypatch.setattr(tp.LoadedModel, "read", interrupted)
        assert run("features", "pictures", *of("pooled"), "-o", "out") == 130
        assert Page().of("h2")[:2] == ["a.png", "b.png"]

    def test_what_was_skipped_is_listed(self, place) -> None:
        (place / "pictures" / "b <i>.png").write_bytes(b"broken")
        assert run("features", "pictures", *of("pooled"), "-o", "out") == 1
        page = Page()
        assert "pictures/b <i>.png" in page.of("dt")
        assert "1 skipped" in page.of("a")

    def test_options_are_said(self, place) -> None:
        page = written("features", "pooled", "--sort", "contribution", "--class", "bee", "--clip", "1", "99")
        facts = dict(zip(page.of("dt"), page.of("dd"), strict=True))
        assert facts["sort"] == "contribution to the score of bee"
        assert facts["clip"] == "percentiles 1 to 99"
        assert "by their contribution to the score" in page.words()


class TestKernels:
    def test_each_layer_with_its_picture_and_numbers(self, place, capsys) -> None:
        layers = asked(capsys, "kernels", *of("pooled"), "-o", "out")["layers"]
        page = Page()
        names = [row["layer"] for row in layers]
        assert page.of("h2")[: len(names)] == names
        header, *cells = page.table("the layers")
        assert header == ["layer", "kernels", "mean", "std", "min", "max", "zeros"]
        weights = tp.kernels(pooled())
        assert [each[2] for each in cells] == [f"{weights[name].double().mean():.4g}" for name in names]
        assert {Path(row["picture"]) for row in layers} <= {*page.links()}
        assert [link for link in page.values("href") if link.startswith("#layer")] == ["#layer-1", "#layer-2"]

    def test_a_layer_that_is_not_drawn_is_there(self, place) -> None:
        page = written("kernels", "waving")
        assert "complex numbers, which are not drawn" in page.words()
        assert not page.values("src")


class TestGradients:
    def test_the_table_and_the_plot(self, place, capsys) -> None:
        results = asked(capsys, "gradients", "pictures", *of("pooled"), "-o", "out")
        page = Page()
        _, *cells = page.table("the parameters")
        assert [(each[0], each[1]) for each in cells] == [
            (row["layer"], row["parameter"]) for row in results["gradients"]
        ]
        assert [each[3] for each in cells] == [f"{row['gradient_norm']:.4g}" for row in results["gradients"]]
        assert f"loss {results['loss']:.4g}" in page.words()
        assert Path("out/gradient-flow.png") in page.links()
        [source] = page.values("src")
        assert base64.b64decode(source.partition(",")[2]) == Path("out/gradient-flow.png").read_bytes()
        assert [each[0] for each in page.table("the pictures of the batch")[1:]] == [f"pictures/{n}.png" for n in "abc"]

    def test_no_picture_can_be_read(self, place) -> None:
        for stem in "abc":
            (place / "pictures" / f"{stem}.png").write_bytes(b"broken")
        assert run("gradients", "pictures", *of("pooled"), "-o", "out") == 1
        page = Page()
        assert "3 skipped" in page.of("a")
        assert not page.values("src")


class TestEvaluate:
    def test_each_picture_with_overlays_curves_and_numbers(self, place, capsys) -> None:
        words = ("--method", "gradcam", "--method", "layercam", "--class", "bee", "--class", "cat", *FEW)
        results = asked(capsys, "evaluate", "pictures", *of("pooled"), *words, "-o", "out")
        page = Page()
        assert [alt for alt in page.values("alt") if alt.endswith("on a.png")] == [
            f"{method} of {name} on a.png" for name in ("bee", "cat") for method in ("gradcam", "layercam")
        ]
        for picture in results["pictures"]:
            name = Path(picture["picture"]).name
            for k, explained in enumerate(("bee", "cat")):
                _, *cells = page.table(f"the values of {explained} on {name}")
                assert len(cells) == 2 * 4
                for method, metric, _, *numbers in cells:
                    measured = picture["values"][metric][method]
                    expected = [measured["values"][k], measured["random"][k], measured["centre"][k]]
                    assert numbers == [f"{number:.4g}" for number in expected]

    def test_the_averages_are_those_of_the_results(self, place, capsys) -> None:
        results = asked(capsys, "evaluate", "pictures", *of("pooled"), *FEW, "-o", "out")["results"]
        page = Page()
        _, *cells = page.table("all pictures, the best method first for each metric")
        assert [(each[0], each[1]) for each in cells] == [(row["method"], row["metric"]) for row in results]
        assert [each[3].split()[0] for each in cells] == [f"{row['mean']:.4g}" for row in results]
        charts = page.values("aria-label", "svg")
        first = next(row for row in results if row["metric"] == "deletion")
        assert charts[0].startswith("probability, mean of 3 pictures over the share of the picture removed")
        ends = f"gradcam from {first['curve'][0]:.3g} to {first['curve'][-1]:.3g}"
        assert ends in charts[0]
        assert len(charts) == 2 + 3 * 2
        assert "of fewer than 6 pictures" in page.words().lower()

    def test_how_to_read_it_is_said(self, six) -> None:
        page = written("evaluate", "pooled")
        words = page.words()
        for part in ("ten random heatmaps", "Gaussian", "too few to tell" if "too few" in words else "better than"):
            assert part in words
        assert re.search(r"deletion: .*better than", words)

    def test_metrics_without_curves_have_no_chart(self, place) -> None:
        assert run("evaluate", "pictures", *of("pooled"), "--metric", "entropy", "-o", "out") == 0
        assert not Page().values("aria-label", "svg")

    def test_an_interrupt_leaves_the_page_of_what_is_there(self, place, monkeypatch) -> None:
        from torchpeek.cli import evaluation_run

        evaluate, calls = evaluation_run.evaluate, []

        def interrupted(*given, **more):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return evaluate(*given, **more)

        monkeypatch.setattr(evaluation_run, "evaluate", interrupted)
        assert run("evaluate", "pictures", *of("pooled"), *FEW, "-o", "out") == 130
        page = Page()
        assert page.of("h2")[:2] == ["a.png", "Not reached"]
        assert "Interrupted: 2 not reached" in page.of("a")
        assert json.loads(Path("out/results.json").read_text())["not_reached"] == page.of("li")[-2:]

    def test_what_has_no_place_is_named(self, place, monkeypatch) -> None:
        monkeypatch.setattr("torchpeek.cli.page._ITEMS_PER_PAGE", 1)
        page = written("evaluate", "pooled")
        assert page.of("li")[-2:] == ["pictures/b.png", "pictures/c.png"]
        assert "Their results are in the files beside it." in page.words()


def test_class_names_with_markup_reach_the_page_as_text(place) -> None:
    page = written("evaluate", "named_as_markup")
    names = named_as_markup().class_names
    assert any(name in text for name in names for text in page.of("h3"))
