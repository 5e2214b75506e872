"""Layouts that the user names: layout= decides, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchpeek as tp
from networks.layouts import Case, Turned, layer_output
from torchpeek.errors import InputError, NoSpatialLayer

pytestmark = pytest.mark.usefixtures("one_thread")


class TestUserLayout:
    def test_what_is_said_decides(self) -> None:
        """Of 30 tokens it may be said that 6 come first, or none."""
        model, x = Case("tokens", (24, 16), (4, 4), 6).made(), torch.randn(2, 3, 24, 16).double()
        assert str(tp.trace(model, x, layer="layer").at["layer"].layout) == "tokens 6+6x4"
        trace = tp.trace(model, x, layer="layer", layout="tokens 6x5")
        tokens = layer_output(model, "layer", x)
        assert torch.equal(trace.activations.squeeze(1), tokens.mT.unflatten(2, (6, 5)))
        trace = tp.trace(model, x, layer="layer", layout=tp.Layout("tokens", (5, 5), 3, 2))
        assert torch.equal(trace.activations.squeeze(1), tokens[:, 3:28].mT.unflatten(2, (5, 5)))
        heatmap = tp.explain(model, x, layer="layer", layout="tokens 6x5")
        assert heatmap.provenance.layout == "tokens 6x5"

    @pytest.mark.parametrize(
        "layout",
        [
            "tokens 7x4",
            "tokens 2+6x4",
            "channels-first",
            "channel-tokens 6x4",
            "sequence-first 6x4",
            "channels-last 6x4",
        ],
    )
    def test_what_does_not_fit(self, layout: str) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        with pytest.raises(NoSpatialLayer, match=rf"\(N, 25, 6\), which is not {layout.replace('+', '.')}") as caught:
            tp.trace(model, x, layer="layer", layout=layout)
        assert "do not fit" in str(caught.value)

    @pytest.mark.parametrize("layout", ["", "tokens 4", "token 4x4", "tokens 1+", "tokens 4x4 5", 7, "tokens -1+4x4"])
    def test_what_is_no_layout(self, layout: Any) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        expected = NoSpatialLayer if layout == "tokens 4" else InputError  # which one is, of a signal
        with pytest.raises(expected):
            tp.trace(model, x, layer="layer", layout=layout)

    def test_without_a_layer(self) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        with pytest.raises(InputError, match="layer= is missing"):
            tp.explain(model, x, layout="tokens 1+6x4")

    def test_of_several_layers_it_is_for_all(self) -> None:
        model, x = Turned(8, norm=False).eval(), torch.randn(1, 3, 64, 64)
        trace = tp.trace(model, x, layer=["embed", "lin"], layout="channels-last")
        for layer in ("embed", "lin"):
            expected = layer_output(model, layer, x).permute(0, 3, 1, 2)
            assert torch.equal(trace.at[layer].activation, expected)
