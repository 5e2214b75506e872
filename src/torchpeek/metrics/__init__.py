"""From heatmaps to one number each: whether they can be trusted."""

from torchpeek.metrics import complexity, curves, fidelity, localization, masking, road, stability
from torchpeek.metrics.applicable import check_applies
from torchpeek.metrics.baselines import always, at_random, centre
from torchpeek.metrics.case import Case, Clean, Explainer
from torchpeek.metrics.measurement import FEWEST, HEADER, Interval, Measurement, Measurements, bootstrap, joined, row
from torchpeek.metrics.metric import METRICS, Metric, Needs, Scored, find_metric, metric
from torchpeek.metrics.mosaics import Mosaic, mosaic
from torchpeek.metrics.regions import regions_of

__all__ = [
    "FEWEST",
    "HEADER",
    "METRICS",
    "Case",
    "Clean",
    "Explainer",
    "Interval",
    "Measurement",
    "Measurements",
    "Metric",
    "Mosaic",
    "Needs",
    "Scored",
    "always",
    "at_random",
    "bootstrap",
    "centre",
    "check_applies",
    "complexity",
    "curves",
    "fidelity",
    "find_metric",
    "joined",
    "localization",
    "masking",
    "metric",
    "mosaic",
    "regions_of",
    "road",
    "row",
    "stability",
]
