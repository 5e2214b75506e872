"""Small networks that the tests look into."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitNet(nn.Module):
    """Smooth everywhere; `prefix` ends in the layer to look at, (N, 5, 4, 3) for an (N, 3, 8, 6) input."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.prefix = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Softplus())
        self.mix = nn.Conv2d(5, 6, 2)
        self.head = nn.Linear(6 * 3 * 2, classes)

    def suffix(self, activation: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(activation)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))


class Attending(nn.Module):
    """Attention of the positions of (N, C, *grid) to each other, added to it, `depth` times."""

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(channels, 2, batch_first=True) for _ in range(depth))

    def forward(self, a: Tensor) -> Tensor:
        tokens = a.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.mT.reshape(a.shape)


class PooledNet(nn.Module):
    """Convolution, ReLU, global average pooling and a linear head: where class activation mapping is exact.

    Not if there is attention in between.
    """

    def __init__(self, channels: int = 6, classes: int = 5, *, bias: bool = True, attention: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, channels, 3, padding=1))
        self.act = nn.ReLU()
        self.mix = Attending(channels) if attention else None
        self.head = nn.Linear(channels, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.features(x))
        return self.head((a if self.mix is None else self.mix(a)).mean((2, 3)))


class InPlaceNet(nn.Module):
    """The layer's output is overwritten at once; `clean` is the same network without that."""

    def __init__(self, *, attention: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = Attending(6) if attention else None
        self.head = nn.Linear(6, 4)
        self.clean = False

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        a = F.relu(a, inplace=not self.clean)
        return self.head((a if self.mix is None else self.mix(a)).mean((2, 3)))


class MessyNet(nn.Module):
    """All that a careless tool changes: train mode, BatchNorm, Dropout, buffers that forward writes or replaces."""

    def __init__(self, *, attention: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = Attending(6) if attention else None
        self.bn = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.often_on = nn.Dropout(0.5)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last_mean", torch.zeros(6))
        self.register_buffer("nothing", None)
        self.register_buffer("written_through_data", torch.zeros(2))
        self.register_buffer("dropped", torch.ones(1), persistent=False)
        self.fail_with: BaseException | None = None
        self.user_calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # written in place, also in eval mode
        a = self.act(self.bn(self.conv(x)))
        self.last_mean = a.mean((0, 2, 3)).detach()  # replaced
        self.nothing = torch.ones(1)  # filled
        self.written_through_data.data.add_(1)  # behind the version counter's back
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(3))  # new
        if "dropped" in self._buffers:
            del self.dropped
        torch.rand(1)  # draws from the global generator
        self.often_on.train()  # whatever mode it was in
        if self.fail_with is not None:
            raise self.fail_with
        a = a if self.mix is None else self.mix(a)
        return self.head(self.drop(a).mean((2, 3)))


def messy(*, attention: bool = False) -> MessyNet:
    """A MessyNet in the middle of a training, with a user's own hooks and gradients."""
    model = MessyNet(attention=attention).train()
    model.bn.eval()  # a user may well keep this one frozen
    model.conv.register_forward_hook(lambda module, args, output: model.user_calls.append("conv"))
    model.bn.register_forward_hook(lambda module, args, output: None)
    model.register_forward_pre_hook(lambda module, args: None)
    model.head.register_full_backward_hook(lambda module, given, got: None)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.often_on.eval()
    model.nothing = None
    del model._buffers["late"]
    model.register_buffer("dropped", torch.ones(1), persistent=False)
    return model


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that has to be as it was, in a form that `==` compares."""
    parameters = dict(model.named_parameters())
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "values": {name: p.detach().clone().tolist() for name, p in parameters.items()},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "grad": {name: None if p.grad is None else (id(p.grad), p.grad.tolist()) for name, p in parameters.items()},
        "buffers": {name: (id(b), b.tolist()) for name, b in model.named_buffers()},
        "buffer names": {name: list(module._buffers) for name, module in model.named_modules()},
        "empty buffers": {name: [k for k, b in m._buffers.items() if b is None] for name, m in model.named_modules()},
        "not saved": {name: sorted(module._non_persistent_buffers_set) for name, module in model.named_modules()},
        "hooks": {
            f"{name}.{kind}": [(key, id(hook)) for key, hook in getattr(module, kind).items()]
            for name, module in model.named_modules()
            for kind in _HOOKS
        },
        "own forward": {name: module.__dict__.get("forward") for name, module in model.named_modules()},
        "random state": torch.get_rng_state().tolist(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


class TwoKernels(nn.Module):
    """A convolution with kernels of ones and of twos, and a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)
        with torch.no_grad():
            self.conv.weight[0] = 1
            self.conv.weight[1] = 2
            self.conv.bias.zero_()

    def forward(self, x):
        return self.pool(self.conv(x))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


class TwoGrids(nn.Module):
    """(N, 4, 8, 6) at `fine`, (N, 5, 4, 3) at `coarse`, for an (N, 3, 8, 6) input; smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus())
        self.coarse = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Softplus())
        self.head = nn.Linear(5 * 4 * 3, 4)

    def after_coarse(self, a: Tensor) -> Tensor:
        return self.head(torch.tanh(a).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.after_coarse(self.coarse(self.fine(x)))

    def layers(self) -> list[tuple[object, object]]:
        """For the replicas: (input to activation, activation to logits), the finest first."""
        return [
            (self.fine, lambda a: self.after_coarse(self.coarse(a))),
            (lambda x: self.coarse(self.fine(x)), self.after_coarse),
        ]


class Shared(nn.Module):
    """One ReLU for two places with different channels, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.two(self.act(self.one(x)))).mean((2, 3))
