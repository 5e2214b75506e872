"""plan: what recording would return, and what is written into."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, Shared


class TestPlan:
    def test_says_what_recording_would_give(self) -> None:
        found = {row.layer: row for row in tp.plan(Shared(), torch.randn(2, 3, 9, 9))}
        assert (found["one"].calls, found["one"].output, found["one"].nbytes) == (1, "(N, 4, 7, 7)", 2 * 4 * 49 * 4)
        assert found["act"].calls == 2
        assert found["act"].nbytes == (2 * 4 * 49 + 2 * 6 * 25) * 4
        assert found["unused"].calls == 0
        assert "path without it" in found["unused"].remark

    def test_what_is_written_into(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

            def forward(self, x):
                return self.two(self.one(x).relu_())

        model, x = Net(), torch.randn(1, 3, 4, 4)
        found = {row.layer: row.written_into for row in tp.plan(model, x)}
        assert found == {"one": True, "two": False}
        with tp.record(model, "*", snapshot="alias") as tape:
            model(x)
        assert tape["two"].output is not None
        with pytest.raises(tp.errors.StaleCapture):
            _ = tape["one"].output

    def test_gradients_begin_where_something_is_not_frozen(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
        assert [row.gradient for row in tp.plan(model, torch.randn(1, 2))] == [False, True]

    def test_prints(self) -> None:
        found = tp.plan(PooledNet(), torch.randn(1, 3, 4, 4), re.compile("features"))
        assert f"{found.nbytes:,} bytes" in str(found)
        assert found._repr_html_().count("<tr>") == 5
