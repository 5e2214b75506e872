"""The inside of a network: its layers, kernels, activations, statistics and gradients."""

from torchpeek.anatomy.activations import activations
from torchpeek.anatomy.flow import GradientFlow, gradient_flow
from torchpeek.anatomy.kernels import Kernels, kernels
from torchpeek.anatomy.layers import LayerTable, layers
from torchpeek.anatomy.plan import Plan, plan
from torchpeek.anatomy.statistics import statistics
from torchpeek.anatomy.statistics_table import Statistics
from torchpeek.anatomy.table import Table
from torchpeek.anatomy.training_flow import BlockStep, TrainingFlow
from torchpeek.anatomy.watch import watch

__all__ = [
    "BlockStep",
    "GradientFlow",
    "Kernels",
    "LayerTable",
    "Plan",
    "Statistics",
    "Table",
    "TrainingFlow",
    "activations",
    "gradient_flow",
    "kernels",
    "layers",
    "plan",
    "statistics",
    "watch",
]
