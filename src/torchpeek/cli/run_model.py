"""The model of a run: the one that the options name, else the one that the run was made with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchpeek.cli.loading import loaded_model
from torchpeek.cli.options import InputOptions, ModelOptions
from torchpeek.cli.run_options import RunModelOptions
from torchpeek.errors import OptionError
from torchpeek.models import LoadedModel
from torchpeek.runs.spec import RunSpec

_LOADED_AGAIN = ("torchvision:", "timm:", "hf:")
"""Models that a run may name itself: loading them imports no code of whoever made the run."""


def run_model(
    options: RunModelOptions, device: str, inputs: InputOptions, spec: RunSpec | None
) -> tuple[LoadedModel, InputOptions, int]:
    """Load the model of a run.

    Args:
        options: What the user says of it.
        device: Where it runs.
        inputs: How pictures become its input.
        spec: The spec of the run that is continued; None for a new run.

    Returns:
        The model, the input options with what the run has of them, and the seed of the run.

    Raises:
        OptionError: When nobody names the model, or its code or weights have to be named again.
    """
    seed = options.seed if options.seed is not None else 0 if spec is None else spec.seed
    if spec is None:
        if options.model is None:
            raise OptionError(
                "--model is required for a new run; allowed: torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or "
                "package.module:callable. Example: torchpeek run val/ --model torchvision:resnet50 --method gradcam "
                "--out runs/first"
            )
        return loaded_model(_model_options(options, options.model, options.weights, seed), device, inputs), inputs, seed
    inputs = replace(inputs, max_size=spec.max_size) if inputs.max_size is None else inputs
    name = options.model or spec.model
    if options.model is None and not spec.model.startswith(_LOADED_AGAIN):
        raise OptionError(
            f"the run is of the model {spec.model!r}, and no code is imported because a run names it. Next: name the "
            f"model with --model{' ' + spec.model if ':' in spec.model else ' package.module:callable'}"
        )
    weights, weights_seed = (options.weights, seed) if options.weights or name != spec.model else _weights(spec, seed)
    return loaded_model(_model_options(options, name, weights, weights_seed), device, inputs), inputs, seed


def _model_options(options: RunModelOptions, name: str, weights: Path | None, seed: int) -> ModelOptions:
    return ModelOptions(name, weights, seed, options.trust_pickle, options.trust_remote_code)


def _weights(spec: RunSpec, seed: int) -> tuple[Path | None, int]:
    """The weights of a run as the option has them, and the seed of random ones."""
    name, _, drawn = spec.weights.partition(", seed ")
    if name == "random":
        return Path(name), int(drawn) if drawn.isdecimal() else seed
    if Path(name).suffix.lower() in (".pth", ".pt", ".bin", ".ckpt", ".safetensors"):
        raise OptionError(f"the weights of the run are from the file {name!r}. Next: name the file with --weights")
    return (Path(name) if name and spec.model.startswith("torchvision:") else None), seed
