"""Metrics: one number for each heatmap, which says how far it can be trusted."""

from torchpeek.metrics import (
    complexity,
    curves,
    fidelity,
    localization,
    masking,
    road,
    sensitivity,
    stability,
    sufficiency,
)
from torchpeek.metrics.applicable import check_applies
from torchpeek.metrics.baselines import centre, constant_explainer, random_explainer
from torchpeek.metrics.by_method import MeasurementsByMethod
from torchpeek.metrics.case import Case
from torchpeek.metrics.clean_pass import CleanPass
from torchpeek.metrics.explainer import Explainer
from torchpeek.metrics.fills import described_options
from torchpeek.metrics.intervals import Interval, bootstrap
from torchpeek.metrics.measurement import FEWEST, HEADER, Measurement, Measurements, joined, row
from torchpeek.metrics.metric import METRICS, Metric, MetricResult, Needs, find_metric, metric
from torchpeek.metrics.mosaics import Mosaic, mosaic
from torchpeek.metrics.regions import regions_of

__all__ = [
    "FEWEST",
    "HEADER",
    "METRICS",
    "Case",
    "CleanPass",
    "Explainer",
    "Interval",
    "Measurement",
    "Measurements",
    "MeasurementsByMethod",
    "Metric",
    "MetricResult",
    "Mosaic",
    "Needs",
    "bootstrap",
    "centre",
    "check_applies",
    "complexity",
    "constant_explainer",
    "curves",
    "described_options",
    "fidelity",
    "find_metric",
    "joined",
    "localization",
    "masking",
    "metric",
    "mosaic",
    "random_explainer",
    "regions_of",
    "road",
    "row",
    "sensitivity",
    "stability",
    "sufficiency",
]
