"""What evaluate returns for several methods: one table, and the curves of all methods by each metric."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp

CURVES = {"gradcam": torch.tensor([[[0.8, 0.4, 0.0]]]), "<mine>": torch.tensor([[[0.8, 0.6, 0.4]]])}


@pytest.fixture
def measured() -> tp.metrics.MeasurementsByMethod:
    baselines = {"random": torch.tensor([[0.5]]), "centre": torch.tensor([[0.25]])}
    return tp.metrics.MeasurementsByMethod(
        {
            name: tp.Measurements(
                "gradcam",
                {
                    "deletion": tp.Measurement("deletion", curve.mean(2), False, baselines, curve),
                    "iou": tp.Measurement("iou", torch.tensor([[0.75]]), True, baselines),
                },
            )
            for name, curve in CURVES.items()
        }
    )


def test_the_rows_are_metric_by_metric_under_the_keys(measured: tp.metrics.MeasurementsByMethod) -> None:
    assert [row[:6] for row in measured.rows()] == [
        ("gradcam", "deletion", "lower", "0.4", "0.5", "0.25"),
        ("<mine>", "deletion", "lower", "0.6", "0.5", "0.25"),
        ("gradcam", "iou", "higher", "0.75", "0.5", "0.25"),
        ("<mine>", "iou", "higher", "0.75", "0.5", "0.25"),
    ]


def test_it_prints_one_table(measured: tp.metrics.MeasurementsByMethod) -> None:
    lines = str(measured).splitlines()
    assert lines[0].split()[:3] == ["method", "metric", "better"]
    assert len(lines) == 5


def test_a_notebook_shows_the_table_and_one_plot_for_each_metric_with_a_curve(
    measured: tp.metrics.MeasurementsByMethod,
) -> None:
    pytest.importorskip("matplotlib")
    html = measured._repr_html_()
    assert html.count("<img") == 1
    assert 'alt="the curves of deletion"' in html
    assert "&lt;mine&gt;" in html
    assert "<mine>" not in html


def test_it_is_a_dict_and_may_be_empty(measured: tp.metrics.MeasurementsByMethod) -> None:
    assert isinstance(measured, dict)
    assert list(measured) == ["gradcam", "<mine>"]
    assert measured["gradcam"]["iou"].values.item() == 0.75
    assert tp.metrics.MeasurementsByMethod().rows() == []
    assert tp.metrics.MeasurementsByMethod()._repr_html_()
    assert repr(tp.metrics.MeasurementsByMethod())


@pytest.mark.parametrize("as_list", [False, True])
def test_evaluate_returns_it(as_list: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = [torch.rand(1, 3, 8, 8)] * 2 if as_list else torch.rand(2, 3, 8, 8)
    maps = tp.compare(model, inputs, methods=["gradcam", "eigencam"], layer="0", target=1)
    measured = tp.evaluate(model, inputs, maps, metrics=["sparseness"])
    assert isinstance(measured, tp.metrics.MeasurementsByMethod)
    assert [row[:2] for row in measured.rows()] == [("gradcam", "sparseness"), ("eigencam", "sparseness")]
