"""Recording compiled, scripted and vmapped models, and nested tensors: the eager fallback and the errors."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError


class TestUnsupported:
    def test_compiled_models_are_edited_eagerly_and_closed_in_any_order(self) -> None:
        torch._dynamo.reset()
        model, x = PooledNet().eval(), torch.randn(1, 3, 4, 4)
        with torch.no_grad():
            plain = model(x)
        model.compile(backend="eager")
        with torch.no_grad():
            model(x)
            with (
                pytest.warns(tp.Notice, match="while it is edited"),
                tp.edit(model, outputs={"act": tp.edits.zero()}),
            ):
                assert torch.allclose(model(x), model.head.bias.expand(1, -1))
            first, second = tp.record(model, "act"), tp.record(model, "act")
            with pytest.warns(tp.Notice, match="while it is recorded"):
                first.__enter__()
            with pytest.warns(tp.Notice, match="while it is recorded"):
                second.__enter__()
            first.__exit__(None, None, None)
            model(x)
            second.__exit__(None, None, None)
            assert second["act"].output is not None
            # Compiled again from here on: the graph is there still, and nobody is told to run eagerly.
            counters.clear()
            torch._dynamo.reset()
            torch.testing.assert_close(model(x), plain)
        assert counters["stats"]["unique_graphs"] >= 1

    def test_in_vmap(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        for gradients in (False, True):
            with pytest.raises(InputError, match=r"torch\.vmap"), tp.record(model, "0", gradients=gradients):
                torch.vmap(model)(torch.ones(3, 2))

    def test_a_scripted_part(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
        for named in ("1", model[1], ["0", "1"], re.compile("1")):
            with pytest.raises(InputError, match="layer '1' is scripted"):
                tp.record(model, named)
        with pytest.warns(tp.Notice, match="take no hooks and are left out: '1'"), tp.record(model, "*") as tape:
            model(torch.ones(1, 2))
        assert list(tape) == ["0"]
        assert tape["0"].output.shape == (1, 2)

    def test_a_nested_tensor(self) -> None:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        model = nn.TransformerEncoder(layer, 2).eval()
        mask = torch.tensor([[False, False, True], [False, False, False]])
        with torch.no_grad(), tp.record(model, "*") as tape, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(torch.randn(2, 3, 4), src_key_padding_mask=mask)
        assert repr(tape)
