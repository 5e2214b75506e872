"""Which tensors have the positions of the picture, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpeek import Arguments
from torchpeek.engine import as_model_call, random_state
from torchpeek.engine.layout_inference.dry_run import dry_run
from torchpeek.engine.layout_inference.position_origin import PositionTracker

X, WORDS = torch.rand(1, 3, 4, 4), torch.rand(1, 5, 3)


class Held(nn.Module):
    """A model with a parameter, a buffer and a plain tensor, which do not depend on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.rand(1, 5, 3))
        self.register_buffer("buffer", torch.rand(1, 5, 3))
        self.plain = torch.rand(1, 5, 3)


def followed(compute: Callable[[Held, Tensor, Tensor], Tensor]) -> tuple[bool, bool]:
    """Whether a result depends on the picture, and whether it has its positions."""
    model = Held()
    call = as_model_call(model, Arguments((X, WORDS))).copied()
    tracker = PositionTracker(model, call)
    with torch.no_grad():
        result = tracker.followed(call, lambda: compute(model, *call.args_and_kwargs()[0]))
    return tracker.depends_on_picture(result), tracker.has_positions_of_picture(result)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT  # (1, 16, 3)


def written(model: Held, x: Tensor, words: Tensor) -> Tensor:
    """The picture in words[0], in place and through a view."""
    words = words.clone()
    first = words[:, 0]
    first.copy_(tokens(x)[:, 0])
    return words.unsqueeze(0)


CASES: dict[str, tuple[Callable[[Held, Any, Any], Tensor], tuple[bool, bool]]] = {
    "the picture": (lambda m, x, w: x, (True, True)),
    "its tokens": (lambda m, x, w: tokens(x), (True, True)),
    "a convolution": (lambda m, x, w: F.conv2d(x, torch.ones(2, 3, 2, 2)), (True, True)),
    "a mean over channels": (lambda m, x, w: x.mean(1), (True, True)),
    "another argument": (lambda m, x, w: w * 2, (False, False)),
    "a parameter": (lambda m, x, w: m.parameter * 2, (False, False)),
    "a buffer": (lambda m, x, w: m.buffer * 2, (False, False)),
    "a plain tensor": (lambda m, x, w: m.plain * 2, (False, False)),
    "zeros": (lambda m, x, w: torch.zeros(1, 5, 3) + torch.tensor([1.0, 2.0, 3.0]), (False, False)),
    "zeros like the picture": (lambda m, x, w: torch.zeros_like(x) + x.new_zeros(4, 4), (False, False)),
    "a position embedding": (lambda m, x, w: tokens(x) + torch.ones(1, 16, 3), (True, True)),
    "a class token": (lambda m, x, w: torch.cat([w[:, :1], tokens(x)], 1), (True, True)),
    "fused attention": (lambda m, x, w: F.scaled_dot_product_attention(w, tokens(x), tokens(x)), (True, False)),
    "of the picture": (lambda m, x, w: F.scaled_dot_product_attention(tokens(x), w, w), (True, True)),
    "attention": (lambda m, x, w: (w @ tokens(x).mT).softmax(-1) @ tokens(x), (True, False)),
    "attention with a residual": (lambda m, x, w: w + (w @ tokens(x).mT).softmax(-1) @ tokens(x), (True, False)),
    "attention of the picture": (lambda m, x, w: (tokens(x) @ w.mT).softmax(-1) @ w, (True, True)),
    "attention weights": (lambda m, x, w: (w @ tokens(x).mT).softmax(-1), (True, False)),
    "the picture by weights": (
        lambda m, x, w: (t := tokens(x) * (w @ tokens(x).mT).softmax(-1)[:, :1].mT) @ t.mT @ t,
        (True, True),
    ),
    "self-attention": (lambda m, x, w: (tokens(x) @ tokens(x).mT).softmax(-1) @ tokens(x), (True, True)),
    "mixed positions": (lambda m, x, w: torch.ones(1, 9, 16) @ tokens(x), (True, True)),
    "the best tokens": (lambda m, x, w: tokens(x)[:, tokens(x).sum(-1)[0].topk(4).indices], (True, False)),
    "masked tokens": (lambda m, x, w: tokens(x)[tokens(x)[..., 0] > 0.5], (True, False)),
    "tokens at constant indices": (lambda m, x, w: tokens(x)[:, torch.arange(16).flip(0)], (True, True)),
    "codes of the tokens": (lambda m, x, w: w[0][(tokens(x)[..., 0] > 0.5).long()], (True, True)),
    "a gate": (lambda m, x, w: x * x.mean((2, 3), keepdim=True).sigmoid(), (True, True)),
    "words and the whole picture": (lambda m, x, w: w + x.mean((2, 3))[:, None], (True, False)),
    "words and one token": (lambda m, x, w: torch.cat([tokens(x)[:, :1], w], 1), (True, False)),
    "tokens one by one": (lambda m, x, w: torch.stack([t * 2 for t in tokens(x).unbind(1)], 1), (True, True)),
    "a write into words": (written, (True, True)),
    "unseen operations": (lambda m, x, w: torch.from_numpy(x.numpy() * 2) + 1, (True, True)),
}


class TestPositionTracker:
    @pytest.mark.parametrize("name", CASES)
    def test_operations(self, name: str) -> None:
        compute, expected = CASES[name]
        assert followed(compute) == expected

    def test_a_model_that_refuses_dispatch_modes_is_run_without(self, monkeypatch) -> None:
        # While other threads run, such as those of pytest-xdist, draws are observed in such a mode, too.
        monkeypatch.setattr(random_state, "is_only_thread", lambda: True)

        class Refusing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                    raise RuntimeError("no torch dispatch mode is supported")
                return self.head(self.conv(x).mean((2, 3)))

        model = Refusing().eval()
        dry = dry_run(model, as_model_call(model, X))
        assert [each.layer for each in dry.candidates] == ["conv"]
        assert dry.calls == {"conv": 1, "head": 1}
