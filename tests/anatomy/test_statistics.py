"""statistics: running numbers of layers against the same numbers of everything at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, Shared
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound


class TestStatistics:
    def test_against_everything_kept(self) -> None:
        model, batches = PooledNet(), [torch.randn(2, 3, 8, 8), torch.randn(3, 3, 6, 6)]
        found = tp.statistics(model, batches, loss=lambda out: out.square().sum())
        assert [row.name for row in found] == ["features.0", "features.1", "features.2", "act", "head"]
        kept: dict[str, list[tuple[Tensor, Tensor]]] = {row.name: [] for row in found}
        model.eval()
        for batch in batches:
            with tp.record(model, list(kept), gradients=True, snapshot="clone") as tape:
                model(batch).square().sum().backward()
            for name, each in kept.items():
                each.append((tape[name].output, tape[name].grad_output))
        for row in found:
            for position, running in ((0, row.output), (1, row.gradient)):
                values = [pair[position].double().movedim(1, 0).flatten(1) for pair in kept[row.name]]
                truth = torch.cat(values, 1)
                torch.testing.assert_close(running.mean, truth.mean(1), rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(running.var, truth.var(1, correction=0), rtol=1e-4, atol=1e-8)
                torch.testing.assert_close(running.zero_share, (truth == 0).double().mean(1))
                assert torch.equal(running.min, truth.amin(1).double())

    def test_pairs_as_a_loader_gives_them(self) -> None:
        data = torch.utils.data.TensorDataset(torch.randn(6, 3, 6, 6), torch.tensor([0, 1, 2, 3, 4, 0]))
        loader = torch.utils.data.DataLoader(data, batch_size=4)
        model = PooledNet()
        found = tp.statistics(model, loader, "head", loss=F.cross_entropy)
        assert (found.batches, found["head"].output.summary().count) == (2, 30)
        model.zero_grad()
        total = torch.zeros(5)
        for x, y in loader:
            logits = model(x).detach().requires_grad_()
            F.cross_entropy(logits, y).backward()
            total += logits.grad.sum(0)
        torch.testing.assert_close(found["head"].gradient.mean.float(), total / 6, rtol=1e-4, atol=1e-6)

    def test_a_module_in_two_places_and_one_in_none(self) -> None:
        found = tp.statistics(Shared(), [torch.randn(1, 3, 9, 9)] * 2)
        assert [row.name for row in found] == ["one", "act[0]", "two", "act[1]", "unused"]
        assert [found[name].output.channels for name in ("act[0]", "act[1]")] == [4, 6]
        assert found["unused"].output is None
        assert "was not called" in str(found)

    def test_the_first_layer_that_is_not_finite(self) -> None:
        class Logs(nn.Module):
            def forward(self, x):
                return x.log()

        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), Logs(), nn.Conv2d(2, 1, 1))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
            model[0].bias.zero_()
        good, bad = torch.rand(1, 1, 4, 4) + 1, torch.zeros(1, 1, 4, 4)
        assert tp.statistics(model, [good]).first_not_finite is None
        found = tp.statistics(model, [good, bad, bad], loss=lambda out: out.sum())
        assert found.first_not_finite == "2"
        assert found["2"].output.first_not_finite == 1
        assert found["2"].output.inf.tolist() == [32, 32]
        assert "first came out of 2" in str(found)

    def test_the_first_gradient_that_is_not_finite(self) -> None:
        class Root(nn.Module):
            def forward(self, x):
                return x.sqrt()

        model = nn.Sequential(nn.Identity(), nn.ReLU(), Root(), nn.Identity())
        x = torch.zeros(1, 2, 3, 3)  # the gradient of the root is infinite at zero
        found = tp.statistics(model, [x], loss=lambda out: out.sum())
        assert found.first_not_finite is None
        assert found.first_not_finite_gradient == "1"

    def test_channels_are_found_where_they_are(self) -> None:
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.act, self.lstm = nn.Linear(4, 8), nn.ReLU(), nn.LSTM(8, 6, bidirectional=True)

            def forward(self, x):
                return self.lstm(self.act(self.up(x)))[0]

        model = Tokens()
        with torch.no_grad():
            model.up.bias[2] = -100
        found = tp.statistics(model, [torch.randn(2, 5, 4), torch.randn(3, 5, 4)])
        assert {row.name: row.output.channels for row in found} == {
            "up": 8,
            "act": 8,
            "lstm:0": 12,
            "lstm:1.0": 6,
            "lstm:1.1": 6,
        }
        assert found["act"].output.dead.nonzero().flatten().tolist() == [2]

    def test_a_gradient_that_does_not_come_in_the_last_batch(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.main, self.aux = nn.Linear(3, 2), nn.Linear(3, 2)

            def forward(self, x):
                return self.main(x), self.aux(x)

        used = iter([True, True, True, False])
        found = tp.statistics(
            Two(), [torch.randn(2, 3)] * 4, loss=lambda out: out[0].sum() + (out[1].sum() if next(used) else 0)
        )
        assert found["aux"].gradient.calls == 3
        assert found["main"].gradient.calls == 4

    def test_the_first_by_batch_and_not_by_call(self) -> None:
        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

            def forward(self, x):
                y = self.a(x)
                return self.b(y) if x[0, 0] > 10 else y

        good, nan = torch.ones(1, 2), torch.full((1, 2), math.nan)
        late = torch.tensor([[11.0, math.nan]])
        found = tp.statistics(Late(), [good, good, nan, late])
        assert found.first_not_finite == "a"
        assert (found["a"].first_not_finite, found["b"].first_not_finite) == (2, 3)

    def test_of_a_lone_layer(self) -> None:
        found = tp.statistics(nn.Linear(3, 2), [torch.randn(4, 3)])
        assert found[0].output.channels == 2

    def test_dead_channels(self) -> None:
        model = PooledNet()
        with torch.no_grad():
            model.features[2].bias[3] = -1e6
        found = tp.statistics(model, [torch.randn(2, 3, 6, 6)])
        assert found["act"].output.dead.tolist() == [False, False, False, True, False, False]

    def test_of_containers(self) -> None:
        found = tp.statistics(nn.Sequential(nn.LSTM(3, 4)), [torch.randn(5, 2, 3)], "0")
        assert [row.name for row in found] == ["0:0", "0:1.0", "0:1.1"]

    def test_batches_come_as_the_caller_makes_them(self) -> None:
        """A generator that needs gradients of its own has them."""

        def batches() -> Iterator[Tensor]:
            x = torch.randn(1, 3, 6, 6, requires_grad=True)
            x.square().sum().backward()
            yield x.grad

        assert tp.statistics(PooledNet(), batches()).batches == 1
        assert tp.statistics(PooledNet(), torch.randn(2, 3, 6, 6)).batches == 1

    def test_a_printed_table_has_the_columns_that_say_something(self) -> None:
        columns = ["layer", "type", "of", "mean", "std", "min", "max", "zeros", "dead", "NaN"]
        network, inputs = PooledNet(), torch.randn(2, 3, 6, 6)
        found = tp.statistics(network, [inputs])
        assert re.split(" +", str(found).splitlines()[0]) == [*columns[:2], *columns[3:-1]]
        assert found.footer == "1 batch"
        inputs[0, 0, 0, 0] = torch.nan
        found = tp.statistics(network, [inputs, inputs], loss=lambda output: output.nansum())
        assert re.split(" +", str(found).splitlines()[0]) == columns
        assert found.footer.startswith("2 batches; NaN or infinity first came out of ")

    def test_histograms(self) -> None:
        found = tp.statistics(PooledNet(), [torch.randn(2, 3, 6, 6)])
        counts, _ = found["head"].output.histogram(8)
        assert counts.sum() == 10
        with pytest.raises(InputError, match="no histogram"):
            tp.statistics(PooledNet(), [torch.randn(2, 3, 6, 6)], histogram=False)["head"].output.histogram()

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 6, 6)
        with pytest.raises(InputError, match="no batches"):
            tp.statistics(model, [])
        with pytest.raises(InputError, match=r"shape \(1, 5\)"):
            tp.statistics(model, [x], loss=lambda out: out)
        with pytest.raises(GradUnavailable, match="detached"):
            tp.statistics(model, [x], loss=lambda out: out.detach().sum())
        with pytest.raises(LayerNotFound, match="closest: 'head'"):
            tp.statistics(model, [x], "heads")
        with pytest.raises(LayerNotFound, match="closest: 'head'"):
            tp.statistics(model, [x])["heads"]
