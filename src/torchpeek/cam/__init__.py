"""From a trace to the values of a heatmap; mathematics only."""

from torchpeek.cam import activation, gradient
from torchpeek.cam.method import METHODS, CamMethod, Needs, cam_method, find_method

__all__ = ["METHODS", "CamMethod", "Needs", "activation", "cam_method", "find_method", "gradient"]
