"""CAM methods: from a trace to the values of a heatmap. Mathematics only."""

from torchpeek.cam import activation, attention, gradient, input_gradients, input_masks, perturbation
from torchpeek.cam.fusion import FUSIONS, Fusion, fused, fusion_in, fusion_step
from torchpeek.cam.method import METHODS, CamMethod, Layers, Needs, cam_method, find_method
from torchpeek.cam.smoothing import Smoothing, smoothed, without_unsuitable_flip

__all__ = [
    "FUSIONS",
    "METHODS",
    "CamMethod",
    "Fusion",
    "Layers",
    "Needs",
    "Smoothing",
    "activation",
    "attention",
    "cam_method",
    "find_method",
    "fused",
    "fusion_in",
    "fusion_step",
    "gradient",
    "input_gradients",
    "input_masks",
    "perturbation",
    "smoothed",
    "without_unsuitable_flip",
]
