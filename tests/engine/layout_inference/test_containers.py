"""Layers that return several tensors: which one is read, and how another is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchpeek as tp
from networks.layouts import Two, layer_output
from torchpeek.errors import NoSpatialLayer

pytestmark = pytest.mark.usefixtures("one_thread")


class TestContainers:
    @pytest.mark.parametrize(
        ("returned", "taken", "parts"),
        [
            (lambda a, b: (a, b), lambda both: both[0], ("0", "1")),
            (lambda a, b: {"fine": a, "more": [b]}, lambda both: both["fine"], ("fine", "more.0")),
        ],
    )
    def test_several_are_named(self, returned: Any, taken: Any, parts: tuple[str, str]) -> None:
        model, x = Two(returned, taken).eval(), torch.randn(2, 3, 32, 48)
        with pytest.raises(NoSpatialLayer) as caught:
            tp.trace(model, x, layer="both")
        for text in ("'channels-first 8x12' (of its part '", "'channels-first 4x6'", "a layer that returns one tensor"):
            assert text in str(caught.value)
        assert all(repr(part) in str(caught.value) for part in parts)
        # The layout says which, where it fits one alone.
        trace = tp.trace(model, x, layer="both", layout="channels-first 8x12", target=0)
        assert trace.at["both"].layout.part == parts[0]
        assert torch.equal(trace.activations.squeeze(1), layer_output(model, "one", x))
        changed = trace.ablate(lambda activation, rows, trials: activation * 2, 1)
        with torch.no_grad():
            expected = model.head(torch.tanh(2 * model.one(x)).mean((2, 3)))[:, :1]
        torch.testing.assert_close(changed[:, 0], expected)

    def test_of_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        output = transformers.modeling_outputs.BaseModelOutput

        def returned(a: Tensor, b: Tensor) -> Any:
            return output(last_hidden_state=a)

        model, x = Two(returned, lambda both: both.last_hidden_state).eval(), torch.randn(2, 3, 32, 48)
        trace = tp.trace(model, x, layer="both", target=1)
        assert trace.at["both"].layout == tp.Layout("channels-first", (8, 12), part="last_hidden_state")
        torch.testing.assert_close(trace.gradients, tp.trace(model, x, layer="one", target=1).gradients)
        scores = trace.ablate(lambda activation, rows, trials: activation * 0, 1)
        torch.testing.assert_close(scores[:, 0, 0], (model.head.bias[1]).detach().expand(2))

    def test_nothing_to_look_at(self) -> None:
        model = Two(lambda a, b: (a.flatten(), "more"), lambda both: both[0].view(-1, 6, 8, 12)).eval()
        x = torch.randn(2, 3, 32, 48)
        with pytest.raises(NoSpatialLayer, match=r"tuple of \(1152\), str"):
            tp.trace(model, x, layer="both")
        indices = Two(lambda a, b: (a, a.argmax(1, keepdim=True))[1], lambda both: both.float().expand(-1, 6, -1, -1))
        with pytest.raises(NoSpatialLayer, match=r"of torch.int64; a heatmap needs floating-point"):
            tp.trace(indices.eval(), x, layer="both")
