"""statistics(), plan(), layers() and kernels() where a layer is called several times."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks.several_calls import Frames, SharedAct, Siamese
from torchpeek.errors import InputError, LayerNotFound, NotFired

BATCHES = [
    torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
]


@pytest.fixture
def net() -> SharedAct:
    torch.manual_seed(0)
    return SharedAct().double().eval()


class TestStatistics:
    @pytest.mark.parametrize(("call", "index"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
    def test_of_one_call(self, net: SharedAct, call: int, index: int) -> None:
        table = tp.statistics(net, BATCHES, f"act[{call}]", loss=lambda output: output.pow(2).sum())
        assert [row.name for row in table] == [f"act[{call}]"]
        values, gradients = [], []
        for x in BATCHES:
            with tp.record(net, "act", gradients=True) as tape:
                net(x).pow(2).sum().backward()
            values.append(tape["act"][index].output)
            gradients.append(tape["act"][index].grad_output)
        found = table[f"act[{call}]"]
        assert found.output.summary().mean == pytest.approx(float(torch.cat(values).mean()), rel=1e-9)
        assert found.gradient.summary().mean == pytest.approx(float(torch.cat(gradients).mean()), rel=1e-9)

    def test_a_call_from_the_end_must_be_the_same_in_each_batch(self) -> None:
        frames = [torch.randn(1, count, 3, 8, 8) for count in (3, 2)]
        with pytest.raises(InputError, match=r"batch 1 called 'encoder' 2 times and one sample of batch 0 3 times"):
            tp.statistics(Frames(), frames, "encoder[-1]")
        assert len(tp.statistics(Frames(), frames, "encoder[1]")) == 1

    def test_a_call_that_does_not_exist(self, net: SharedAct) -> None:
        with pytest.raises(NotFired, match=r"'act\[0\]' to 'act\[2\]'"):
            tp.statistics(net, BATCHES, "act[-4]")
        (row,) = tp.statistics(net, BATCHES, "act[3]")
        assert row.output is None
        assert "'act[0]' to 'act[2]'" in row.remark


class TestTables:
    def test_plan_of_single_calls(self, net: SharedAct) -> None:
        rows = {row.layer: row for row in tp.plan(net, BATCHES[0], ["act", "act[0]", "act[-1]", "act[7]"])}
        assert [rows[name].calls for name in ("act", "act[0]", "act[-1]", "act[7]")] == [3, 1, 1, 0]
        assert (rows["act[0]"].output, rows["act[-1]"].output) == ("(N, 4, 8, 8)", "(N, 6, 4, 4)")
        assert rows["act"].nbytes == rows["act[0]"].nbytes + 2 * rows["act[-1]"].nbytes
        assert "allowed: 'act[0]' to 'act[2]'" in rows["act[7]"].remark

    def test_layers_shows_what_each_call_returns_and_how_to_name_it(self, net: SharedAct) -> None:
        table = tp.layers(net, BATCHES[0])
        row = next(row for row in table if row.name == "act")
        assert list(row.outputs) == ["(N, 4, 8, 8)", "(N, 6, 4, 4)", "(N, 6, 4, 4)"]
        assert "[0] (N, 4, 8, 8), [1] (N, 6, 4, 4), [2] (N, 6, 4, 4)" in str(table)
        assert "'act[0]' to 'act[2]', or 'act[-1]' for the last" in table.footer
        assert all(tp.activations(net, BATCHES[0], f"act[{call}]") for call in range(row.calls))
        assert "brackets" not in tp.layers(Siamese().backbone, BATCHES[0].float()).footer

    def test_kernels_and_parameters_have_no_calls(self, net: SharedAct) -> None:
        with pytest.raises(InputError, match=r"'one\[0\]' selects a single call.*name the layer alone, 'one'"):
            tp.kernels(net, "one[0]")
        with pytest.raises(InputError, match="name the layer alone, 'one'"):
            tp.gradient_flow(net, BATCHES[0], layers="one[0]")
        with pytest.raises(LayerNotFound, match=r"re\.compile"):
            tp.kernels(net, "[ot]*")
