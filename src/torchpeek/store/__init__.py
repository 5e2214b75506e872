"""Files and formats: reads pictures and regions; writes heatmaps, tensors, records and folders of results."""

from torchpeek.store.class_names import read_class_names
from torchpeek.store.folder import OutputFolder, check_folder, file_stem, write_whole
from torchpeek.store.heatmaps import load, save, save_bytes
from torchpeek.store.json_values import parsed_json, read_json
from torchpeek.store.pictures import (
    figure_bytes,
    find_pictures,
    is_picture,
    other_files,
    png_bytes,
    read_image,
    read_mask,
)
from torchpeek.store.records import encodable, json_text, parquet_bytes
from torchpeek.store.regions import find_masks, read_boxes
from torchpeek.store.regular_files import open_regular, read_regular
from torchpeek.store.tensor_files import read_safetensors
from torchpeek.store.tensors import TensorStream, tensor_bytes
from torchpeek.store.upright_images import reduced_size, upright_rgb

__all__ = [
    "OutputFolder",
    "TensorStream",
    "check_folder",
    "encodable",
    "figure_bytes",
    "file_stem",
    "find_masks",
    "find_pictures",
    "is_picture",
    "json_text",
    "load",
    "open_regular",
    "other_files",
    "parquet_bytes",
    "parsed_json",
    "png_bytes",
    "read_boxes",
    "read_class_names",
    "read_image",
    "read_json",
    "read_mask",
    "read_regular",
    "read_safetensors",
    "reduced_size",
    "save",
    "save_bytes",
    "tensor_bytes",
    "upright_rgb",
    "write_whole",
]
