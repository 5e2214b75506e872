"""Models: where they come from, how a picture becomes their input, and the names of their classes."""

from torchpeek.models.inputs import Inputs, Model, model_call_for, module_of, with_picture_read
from torchpeek.models.loaded import LoadedModel
from torchpeek.models.preprocess import Preprocess, PreprocessChanges
from torchpeek.models.sources import load_model

__all__ = [
    "Inputs",
    "LoadedModel",
    "Model",
    "Preprocess",
    "PreprocessChanges",
    "load_model",
    "model_call_for",
    "module_of",
    "with_picture_read",
]
