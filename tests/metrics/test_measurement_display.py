"""Measurements: how they print, show themselves and plot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import torchpeek as tp
from torchpeek.errors import InputError
from torchpeek.metrics import curve_images


def deletion() -> tp.Measurement:
    """Two samples, whose curves fall linearly from 1 and from 0.5 to 0: areas of 1/2 and 1/4."""
    line = torch.linspace(1, 0, 5, dtype=torch.float64)
    curve = torch.stack([line, line / 2])[:, None]  # (2, 1, 5)
    flat = torch.full_like(curve, 0.75)
    values = torch.tensor([[0.5], [0.25]], dtype=torch.float64)
    baselines = {"random": torch.full((2, 1), 0.75), "centre": torch.full((2, 1), 0.5)}
    return tp.Measurement("deletion", values, False, baselines, curve, {"random": flat})


def iou(**baselines: float) -> tp.Measurement:
    values = torch.tensor([[0.25], [0.75]])
    return tp.Measurement("iou", values, True, {name: torch.full((2, 1), each) for name, each in baselines.items()})


class TestText:
    def test_a_measurement_is_a_line(self) -> None:
        text = repr(deletion())
        assert text.startswith("Measurement(deletion, lower is better: 0.375 [")
        assert text.endswith("random 0.75, centre 0.5; values (2, 1), curve (2, 1, 5))")

    @pytest.mark.parametrize("baselines", [{}, {"random": 0.125}, {"random": 0.125, "centre": 0.5}])
    def test_a_table_has_a_cell_for_each_baseline(self, baselines) -> None:
        results = tp.Measurements("gradcam", {"iou": iou(**baselines)})
        [cells] = results.rows()
        assert len(cells) == len(tp.metrics.HEADER)
        found = dict(zip(tp.metrics.HEADER, cells, strict=True))
        assert {name: found[name] for name in baselines} == {name: f"{each}" for name, each in baselines.items()}
        header = str(results).splitlines()[0].split("  ")
        assert ("centre" in header) == ("centre" in baselines)


class TestPlot:
    def test_the_mean_curve_and_its_area(self) -> None:
        ax = Figure().subplots()
        assert deletion().plot(ax) is ax
        lines = {line.get_label().split("  ")[1]: line for line in ax.lines}
        assert np.allclose(lines["heatmap"].get_ydata(), np.linspace(0.75, 0, 5))
        assert lines["heatmap"].get_label() == "0.375  heatmap"
        assert lines["random"].get_label() == "0.750  random"
        assert ax.get_title() == "deletion: lower is better"

    def test_without_a_curve_means_and_intervals(self) -> None:
        ax = iou(random=0.125).plot(Figure().subplots())
        points = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
        assert points == pytest.approx([0.5, 0.125])

    def test_several_metrics(self) -> None:
        results = tp.Measurements("gradcam", {"deletion": deletion(), "iou": iou()})
        ax = results.plot(Figure().subplots())
        assert [line.get_label() for line in ax.lines] == ["0.750  deletion, random", "0.375  deletion"]
        with pytest.raises(InputError, match=r"no metric here has a curve. Next: .*m\['iou'\].plot\(\)"):
            tp.Measurements("gradcam", {"iou": iou()}).plot()


class TestHtml:
    def test_table_and_curves(self) -> None:
        results = tp.Measurements("<b>cam", {"deletion": deletion(), "iou": iou()})
        html = results._repr_html_()
        assert html.count("<img") == 1
        assert "&lt;b&gt;cam" in html
        assert "0.375 [" in html
        assert deletion()._repr_html_().count("<img") == 1

    def test_the_legend_names_the_method_and_the_title_the_metric(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []
        plot = curve_images.curve_plot
        monkeypatch.setattr(curve_images, "curve_plot", lambda *args, **more: drawn.append(plot(*args, **more)))
        tp.Measurements("gradcam", {"deletion": deletion()})._repr_html_()
        deletion()._repr_html_()
        tp.metrics.MeasurementsByMethod(cam=tp.Measurements("cam", {"deletion": deletion()}))._repr_html_()
        names = [[line.get_label().split("  ")[1] for line in axes.lines] for axes in drawn]
        assert names == [["random", "gradcam"], ["random", "heatmap"], ["random", "cam"]]
        assert {axes.get_title() for axes in drawn} == {"deletion: lower is better"}
