"""torchpeek looks inside any PyTorch network, and leaves it as it was.

import torchpeek as tp

loaded = tp.load_model("torchvision:mobilenet_v2")
picture = loaded.read("cat.jpg")
heatmap = tp.explain(loaded, picture, target="tiger cat")
tp.render.overlay(picture, heatmap[0, 0]).save("cat.png")
"""

from torchpeek._version import __version__

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
    "Run",
    "RunSpec",
    "Smoothing",
    "Target",
    "TensorStream",
    "TorchpeekError",
    "Trace",
    "__version__",
    "activations",
    "check_finite",
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
    "open_run",
    "plan",
    "record",
    "record_gradients",
    "render",
    "run",
    "save",
    "statistics",
    "targets",
    "trace",
    "watch",
]

# The modules `typing` and `importlib` take time, in which a Ctrl-C would be a traceback on the command line.
TYPE_CHECKING = False
# Importing torchpeek must not import torch, so each public name is imported when it is first read. Type checkers and
# editors read the imports; Python reads the table. tests/test_public_names.py compares the two.
if TYPE_CHECKING:
    from torchpeek import errors, metrics, render
    from torchpeek.anatomy import activations, gradient_flow, kernels, layers, plan, statistics, watch
    from torchpeek.cam import METHODS, Smoothing
    from torchpeek.engine import Arguments, Layout, Target, Trace, targets
    from torchpeek.errors import Notice, TorchpeekError
    from torchpeek.evaluation import evaluate
    from torchpeek.explanation import compare, explain, trace
    from torchpeek.heatmap import Heatmap
    from torchpeek.hooks import check_finite, edit, edit_gradient, edits, keep, record, record_gradients
    from torchpeek.metrics import METRICS, Measurement, Measurements
    from torchpeek.models import LoadedModel, Preprocess, load_model
    from torchpeek.picture import Geometry, Picture
    from torchpeek.provenance import Provenance
    from torchpeek.runs.api import run
    from torchpeek.runs.run import Run, open_run
    from torchpeek.runs.spec import RunSpec
    from torchpeek.store import TensorStream, load, save
else:
    _MODULES = {
        "torchpeek": ("errors", "metrics", "render"),
        "torchpeek.anatomy": ("activations", "gradient_flow", "kernels", "layers", "plan", "statistics", "watch"),
        "torchpeek.cam": ("METHODS", "Smoothing"),
        "torchpeek.engine": ("Arguments", "Layout", "Target", "Trace", "targets"),
        "torchpeek.errors": ("Notice", "TorchpeekError"),
        "torchpeek.evaluation": ("evaluate",),
        "torchpeek.explanation": ("compare", "explain", "trace"),
        "torchpeek.heatmap": ("Heatmap",),
        "torchpeek.hooks": ("check_finite", "edit", "edit_gradient", "edits", "keep", "record", "record_gradients"),
        "torchpeek.metrics": ("METRICS", "Measurement", "Measurements"),
        "torchpeek.models": ("LoadedModel", "Preprocess", "load_model"),
        "torchpeek.picture": ("Geometry", "Picture"),
        "torchpeek.provenance": ("Provenance",),
        "torchpeek.runs.api": ("run",),
        "torchpeek.runs.run": ("Run", "open_run"),
        "torchpeek.runs.spec": ("RunSpec",),
        "torchpeek.store": ("TensorStream", "load", "save"),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = _MODULE_OF[name]
        if module == __name__:  # a submodule; importing it makes it an attribute
            return import_module(f"{module}.{name}")
        try:
            value = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name not in ("pyarrow", "duckdb"):
                raise
            return _needs_extra(name, error.name)
        globals()[name] = value
        return value

    def _needs_extra(name, package):
        """What a name of an extra is without it: `from torchpeek import *` works, and a call says what to install."""

        def needs_extra(*args, **keywords):
            from torchpeek.errors import TorchpeekError

            raise TorchpeekError(f"{name} needs {package}, which is not installed; next: pip install 'torchpeek[data]'")

        return needs_extra


def __dir__() -> list[str]:
    return list(__all__)
