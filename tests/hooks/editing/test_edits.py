"""The ready-made edits: zero, scale and patch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError


class TestEdits:
    def test_zero_and_scale_of_channels(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 4, 4)
        with tp.record(model, "act") as plain:
            model(x)
        expected = plain["act"].output.clone()
        expected[:, [1, 3]] = 0
        with tp.edit(model, outputs={"act": tp.edits.zero(channels=[1, 3])}), tp.record(model, "act") as tape:
            model(x)
        assert torch.equal(tape["act"].output, expected)
        with tp.edit(model, outputs={"act": tp.edits.scale(0.5, channels=[-1])}), tp.record(model, "act") as tape:
            model(x)
        assert torch.equal(tape["act"].output[:, 5], plain["act"].output[:, 5] * 0.5)
        assert torch.equal(tape["act"].output[:, :5], plain["act"].output[:, :5])

    def test_zero_is_zero_also_of_infinity_and_nan(self) -> None:
        model = nn.Sequential(nn.Identity())
        with tp.edit(model, outputs={"0": tp.edits.zero()}):
            assert model(torch.tensor([[float("inf"), float("nan"), 1.0]])).tolist() == [[0, 0, 0]]

    def test_channels_of_tokens(self) -> None:
        model = nn.Sequential(nn.Identity())
        with tp.edit(model, outputs={"0": tp.edits.zero(channels=[0], axis=-1)}):
            assert model(torch.ones(1, 2, 3))[0].tolist() == [[0, 1, 1], [0, 1, 1]]

    def test_patch_from_another_recording(self) -> None:
        model = PooledNet().eval()
        a, b = torch.randn(2, 2, 3, 4, 4)
        with tp.record(model, "act") as tape:
            expected = model(a)
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"])}):
            torch.testing.assert_close(model(b), expected)
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"], channels=[2])}), tp.record(model, "act") as new:
            model(b)
        assert torch.equal(new["act"].output[:, 2], tape["act"].output[:, 2])
        assert not torch.equal(new["act"].output[:, 1], tape["act"].output[:, 1])
        corner = torch.zeros(4, 4, dtype=torch.bool)
        corner[0, 0] = True
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"], where=corner)}), tp.record(model, "act") as new:
            model(b)
        assert torch.equal(new["act"].output[..., 0, 0], tape["act"].output[..., 0, 0])
        assert not torch.equal(new["act"].output[..., 1, 1], tape["act"].output[..., 1, 1])

    def test_gradients_flow_around_what_was_zeroed(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        with (
            tp.edit(model, outputs={"act": tp.edits.zero(channels=[0])}),
            tp.record(model, "features", gradients=True) as tape,
        ):
            model(x).sum().backward()
        assert not tape["features"].grad_output[:, 0].any()
        assert tape["features"].grad_output[:, 1:].any()

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        for change, match in (
            (tp.edits.zero(channels=[6]), r"channels are \[6\].* has 6 on axis 1; allowed: 0 to 5"),
            (tp.edits.zero(channels=[0], axis=7), "axis is 7"),
            (tp.edits.patch(torch.ones(2, 6, 5, 5)), r"\(2, 6, 5, 5\) does not fit an output of \(1, 6, 4, 4\)"),
        ):
            with pytest.raises(InputError, match=match) as caught, tp.edit(model, outputs={"act": change}):
                model(x)
            assert caught.value.__notes__ == ["in the edit of layer 'act'"]
        pair = nn.Sequential(nn.LSTM(2, 2))
        with pytest.raises(InputError, match="which tensor"), tp.edit(pair, outputs={"0": tp.edits.zero()}):
            pair(torch.ones(1, 1, 2))
