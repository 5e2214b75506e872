"""torchpeek looks inside any PyTorch network, and leaves it as it was.

import torchpeek as tp

loaded = tp.load_model("torchvision:mobilenet_v2")
picture = loaded.read("cat.jpg")
heatmap = tp.explain(loaded, picture, target="tiger cat")
tp.render.overlay(picture, heatmap[0, 0]).save("cat.png")
"""

from torchpeek import errors, metrics, render
from torchpeek._version import __version__
from torchpeek.anatomy import activations, gradient_flow, kernels, layers, plan, statistics
from torchpeek.cam import METHODS, Smoothing
from torchpeek.engine import Arguments, Layout, Target, Trace, targets
from torchpeek.errors import Notice, TorchpeekError
from torchpeek.evaluation import evaluate
from torchpeek.explanation import compare, explain, trace
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.hooks import edit, edit_gradient, edits, keep, record, record_gradients
from torchpeek.metrics import METRICS, Measurement, Measurements
from torchpeek.models import LoadedModel, Preprocess, load_model
from torchpeek.picture import Geometry, Picture
from torchpeek.store import TensorStream, load, save

__all__ = [
    "METHODS",
    "METRICS",
    "Arguments",
    "Geometry",
    "Heatmap",
    "Layout",
    "LoadedModel",
    "Measurement",
    "Measurements",
    "Notice",
    "Picture",
    "Preprocess",
    "Provenance",
    "Smoothing",
    "Target",
    "TensorStream",
    "TorchpeekError",
    "Trace",
    "__version__",
    "activations",
    "compare",
    "edit",
    "edit_gradient",
    "edits",
    "errors",
    "evaluate",
    "explain",
    "gradient_flow",
    "keep",
    "kernels",
    "layers",
    "load",
    "load_model",
    "metrics",
    "plan",
    "record",
    "record_gradients",
    "render",
    "save",
    "statistics",
    "targets",
    "trace",
]
