"""Every file and format: pictures in; heatmaps and folders of results out."""

from torchpeek.store.folder import OutputFolder, file_stem
from torchpeek.store.heatmaps import load, save, save_bytes
from torchpeek.store.pictures import find_pictures, read_image, upright_rgb

__all__ = ["OutputFolder", "file_stem", "find_pictures", "load", "read_image", "save", "save_bytes", "upright_rgb"]
