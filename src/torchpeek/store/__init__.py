"""Every file and format: pictures in; heatmaps, tensors and folders of results out."""

from torchpeek.store.folder import OutputFolder, file_stem
from torchpeek.store.heatmaps import load, save, save_bytes
from torchpeek.store.pictures import figure_bytes, find_pictures, png_bytes, read_image, upright_rgb
from torchpeek.store.tensors import TensorStream, tensor_bytes

__all__ = [
    "OutputFolder",
    "TensorStream",
    "figure_bytes",
    "file_stem",
    "find_pictures",
    "load",
    "png_bytes",
    "read_image",
    "save",
    "save_bytes",
    "tensor_bytes",
    "upright_rgb",
]
