"""The table of layers: what each returns, and how often it is called."""

from __future__ import annotations

import torch

from networks import PooledNet
from torchpeek.engine import as_model_call, layer_calls


def test_layer_calls_say_what_every_layer_returns() -> None:
    model = PooledNet()
    rows = {row.name: row for row in layer_calls(model, as_model_call(model, torch.randn(2, 3, 8, 7)))}
    assert rows["act"].output == "(N, 6, 8, 7)"
    assert rows["head"].output == "(N, 5)"
    assert rows["head"].parameters == 6 * 5 + 5
    assert rows["features"].parameters == rows["features.0"].parameters + rows["features.2"].parameters
    assert rows["act"].calls == 1
    assert all(row.output is None for row in layer_calls(model, None))
