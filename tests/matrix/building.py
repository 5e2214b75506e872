"""Networks of other people's families, small, in float64, with random weights that let everything through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """One network: where it comes from, how it is made, and the size of its input."""

    source: str  # "timm", "torchvision" or "transformers"
    family: str  # timm's module, torchvision's and transformers' own name of it
    name: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)  # of the constructor, or of the configuration
    # An embedding in place of class scores: the path of the tensor (N, D) in what the model returns.
    embedding: str | None = None
    quick: bool = False  # whether `make test` looks at it, too
    gridless: str = ""  # why no layer has a grid of the picture, where none has
    mixed: str = ""  # why, with random weights, a grid cannot be seen to lie on the picture

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"


def built(architecture: Architecture, *, revived: bool = True) -> nn.Module:
    """In eval mode and float64, with the same random weights every time."""
    torch.manual_seed(0)
    model: nn.Module = _MAKERS[architecture.source](architecture).double().eval()
    if revived:
        revive(model)
    normalise(model, pictures(architecture, 4))
    return model


def pictures(architecture: Architecture, count: int) -> Tensor:
    """(count, 3, size, size): random numbers, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, architecture.size, architecture.size, generator=generator, dtype=torch.float64)


def available(architecture: Architecture) -> bool:
    """Whether its package is installed, in a version that has it."""
    try:
        package = import_module(architecture.source)
    except ImportError:
        return False
    if architecture.source == "transformers":
        return hasattr(package, architecture.name)
    return bool(architecture.name in (package.list_models() if architecture.source == "timm" else vars(package.models)))


def _timm(architecture: Architecture) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(
        architecture.name, pretrained=False, **{"num_classes": CLASSES, **architecture.options}
    )
    return model


def _torchvision(architecture: Architecture) -> nn.Module:
    from torchvision.models import get_model

    model: nn.Module = get_model(architecture.name, weights=None, **{"num_classes": CLASSES, **architecture.options})
    return model


def _transformers(architecture: Architecture) -> nn.Module:
    transformers = import_module("transformers")
    options = dict(architecture.options)
    config = getattr(transformers, options.pop("config"))(**options)
    if architecture.embedding is None:
        config.num_labels = CLASSES
    model: nn.Module = getattr(transformers, architecture.name)(config)
    return model


_MAKERS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


@torch.no_grad()
def revive(model: nn.Module) -> None:
    """Draw anew what starts at zero, or next to it, so that nothing after it would depend on what comes before.

    Heads, the last normalisation or gain of a residual branch, the gammas of LayerScale, position biases and tokens.
    """
    for name, parameter in model.named_parameters():
        largest = float(parameter.abs().max()) if parameter.numel() else 1.0
        constant = parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all())
        if parameter.ndim >= 2 and largest == 0:
            nn.init.normal_(parameter, std=0.02)
        elif constant and largest <= 0.2 and not name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.0)
        elif largest == 0:
            nn.init.normal_(parameter, std=0.02)


def normalise(model: nn.Module, images: Tensor) -> None:
    """One pass in which each batch normalisation learns what comes: a signal neither dies nor explodes."""
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    norms = [each for each in norms if each.track_running_stats]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.momentum = None  # the average over all that was seen
        each.reset_running_stats()
        each.train()
    with torch.no_grad():
        model(images)  # also without any: some networks make buffers of their own in the first pass
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
        each.eval()


class Float64Throughout(TorchFunctionMode):
    """Where a network turns to float32 whatever its parameters are, as some normalisations do, it turns to float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if each is torch.float32 else each for each in args]
        given = {key: torch.float64 if each is torch.float32 else each for key, each in (kwargs or {}).items()}
        return function(*args, **given)


@contextmanager
def hooked(modules: dict[str, nn.Module], hook: Any) -> Iterator[None]:
    """`hook(name, output)` after each call of the modules; what it returns, if anything, is used instead."""
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: hook(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
