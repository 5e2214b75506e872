"""Which model: where it comes from, how a picture becomes its input, and what its classes are called."""

from torchpeek.models.inputs import Inputs, Model, model_call_for, module_of
from torchpeek.models.loaded import LoadedModel
from torchpeek.models.preprocess import Preprocess
from torchpeek.models.sources import load_model

__all__ = ["Inputs", "LoadedModel", "Model", "Preprocess", "load_model", "model_call_for", "module_of"]
