"""kernels, activations, statistics, gradient_flow and plan: against plain torch, and leaving everything as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import InPlaceNet, MessyNet, PooledNet, messy, state_of
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotFired, TargetError


class Shared(nn.Module):
    """One ReLU for two places with different channels, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.two(self.act(self.one(x)))).mean((2, 3))


# Every function of this room, on a network in the middle of a training.
EVERY: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "layers": lambda model, x: tp.layers(model, x),
    "kernels": lambda model, x: tp.kernels(model),
    "activations": lambda model, x: tp.activations(model, x, ["bn", "head"]),
    "activations, stopped": lambda model, x: tp.activations(model, x, "conv"),
    "statistics": lambda model, x: tp.statistics(model, [x, x]),
    "statistics with gradients": lambda model, x: tp.statistics(model, [x], loss=lambda out: out.sum()),
    "gradient_flow": lambda model, x: tp.gradient_flow(model, x),
    "plan": lambda model, x: tp.plan(model, x),
}


class TestLeavesTheModelAsFound:
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
    def test_on_every_exit(self, name: str, error: BaseException | None) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        model.fail_with = error
        before = state_of(model)
        if error is None or name in ("kernels", "activations, stopped"):
            EVERY[name](model, x)
        else:
            with pytest.raises(type(error)):
                EVERY[name](model, x)
        assert state_of(model) == before

    @pytest.mark.parametrize("name", EVERY)
    def test_in_the_callers_inference_mode_or_frozen(self, name: str) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        before = state_of(model)
        with torch.inference_mode():
            EVERY[name](model, x)
        assert state_of(model) == before
        if name != "gradient_flow":
            model.requires_grad_(False)
            EVERY[name](model, x)


class TestKernels:
    def test_of_every_convolution(self) -> None:
        model = PooledNet()
        found = tp.kernels(model)
        assert list(found) == ["features.0", "features.2"]
        assert torch.equal(found["features.0"], model.features[0].weight)
        found["features.0"].zero_()
        assert model.features[0].weight.any()

    def test_alexnet_grouped_by_shape(self) -> None:
        from torchvision.models import alexnet

        model = alexnet()
        groups = tp.kernels(model).by_shape()
        shapes = {size: [tuple(weight.shape) for weight in each.values()] for size, each in groups.items()}
        assert shapes == {
            (11, 11): [(64, 3, 11, 11)],
            (5, 5): [(192, 64, 5, 5)],
            (3, 3): [(384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)],
        }
        assert sum(len(each) for each in groups.values()) == 5

    def test_selected_transposed_and_computed(self) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Linear(4, 5), nn.ReLU())
        nn.utils.parametrizations.weight_norm(model[0])
        found = tp.kernels(model, "*")
        assert {name: tuple(weight.shape) for name, weight in found.items()} == {"0": (3, 4, 2, 2), "1": (5, 4)}
        torch.testing.assert_close(found["0"], model[0].weight)

    def test_leaves_buffers_alone_that_computing_a_weight_changes(self) -> None:
        model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))).train()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        tp.kernels(model)
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    def test_refusals(self) -> None:
        with pytest.raises(LayerNotFound, match="has a weight"):
            tp.kernels(PooledNet(), nn.ReLU)
        with pytest.raises(LayerNotFound, match="closest: 'head'"):
            tp.kernels(PooledNet(), "heads")


class TestActivations:
    def test_are_what_the_layers_return(self) -> None:
        model, x = InPlaceNet().eval(), torch.randn(2, 3, 8, 8)
        found = tp.activations(model, x, nn.Conv2d)
        for name, activation in found.items():
            kept: list[Tensor] = []
            handle = model.get_submodule(name).register_forward_hook(lambda m, a, out, k=kept: k.append(out.clone()))
            with torch.no_grad():
                model(x)
            handle.remove()
            assert torch.equal(activation, kept[0]), name

    def test_nothing_runs_after_the_last_layer_asked_for(self) -> None:
        model, ran = PooledNet().eval(), []
        model.head.register_forward_hook(lambda *given: ran.append("head"))
        model.act.register_forward_hook(lambda *given: ran.append("act"))
        tp.activations(model, torch.randn(1, 3, 4, 4), ["features.2", "features.0"])
        assert ran == []

    def test_a_tail_that_cannot_run_does_not_matter(self) -> None:
        """A head that is made for another size, say."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
        assert tp.activations(model, torch.randn(1, 3, 9, 9), "0")["0"].shape == (1, 4, 7, 7)

    def test_of_alexnet(self) -> None:
        from torchvision.models import alexnet

        found = tp.activations(alexnet(), torch.randn(1, 3, 224, 224), nn.Conv2d)
        assert [tuple(each.shape[1:]) for each in found.values()] == [
            (64, 55, 55),
            (192, 27, 27),
            (384, 13, 13),
            (256, 13, 13),
            (256, 13, 13),
        ]

    def test_refusals(self) -> None:
        x = torch.randn(1, 3, 12, 12)
        with pytest.raises(NotFired, match="'unused'"):
            tp.activations(Shared(), x, ["one", "unused"])
        with pytest.raises(AmbiguousCall, match="2 times"):
            tp.activations(Shared(), x, ["act", "two", "unused"])
        with pytest.raises(LayerNotFound, match="closest: 'one'"):
            tp.activations(Shared(), x, "ones")


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
        x = torch.zeros(1, 2, 3)  # the gradient of the root is infinite at zero
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


class TestGradientFlow:
    @pytest.mark.parametrize("training", [True, False])
    def test_against_a_plain_step(self, training: bool) -> None:
        model, x, y = MessyNet().train(training), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
        model.often_on.train(training)
        torch.manual_seed(7)
        found = tp.gradient_flow(model, x, y)
        torch.manual_seed(7)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        assert found.loss == pytest.approx(loss.item())
        assert [row.layer for row in found] == ["conv", "conv", "bn", "bn", "head", "head", "frozen", "frozen"]
        for row in found:
            parameter = model.get_submodule(row.layer).get_parameter(row.parameter)
            assert row.weight_norm == pytest.approx(parameter.norm().item())
            if parameter.grad is None:
                assert (row.gradient_norm, row.remark) == (None, "frozen")
                continue
            gradient = parameter.grad
            assert row.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-4)
            assert row.gradient_mean_abs == pytest.approx(gradient.abs().mean().item(), rel=1e-4)
            assert row.gradient_max_abs == pytest.approx(gradient.abs().max().item(), rel=1e-4)
        total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert found.total_norm == pytest.approx(total.item(), rel=1e-4)

    def test_by_hand(self) -> None:
        model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
            model[1].weight.fill_(2.0)
        found = tp.gradient_flow(model, torch.tensor([[1.0, 2.0]]), loss=lambda out: out.sum())
        # out = 2 (3 * 1 + 4 * 2): d / d first = 2 (1, 2), d / d second = 11
        assert [row.gradient_norm for row in found] == pytest.approx([2 * math.sqrt(5), 11])
        assert [row.weight_norm for row in found] == pytest.approx([5, 2])
        assert found.loss == 22

    def test_without_a_target_it_is_the_predicted_class(self) -> None:
        model, x = PooledNet().eval(), torch.randn(3, 3, 6, 6)
        predicted = model(x).argmax(1)
        assert tp.gradient_flow(model, x).total_norm == tp.gradient_flow(model, x, predicted).total_norm

    def test_parameters_of_the_model_itself_and_tied_ones(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.randn(3))
                self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)
                self.down.weight = self.up.weight

            def forward(self, x):
                return self.down(self.up(x + self.token))

        model, x = Net(), torch.randn(4, 3)
        found = tp.gradient_flow(model, x, loss=lambda out: out.square().sum())
        model(x).square().sum().backward()
        truth = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        assert found.total_norm == pytest.approx(truth.item(), rel=1e-5)
        rows = {(row.layer, row.parameter): row for row in found}
        assert rows["", "token"].gradient_norm == pytest.approx(model.token.grad.norm().item(), rel=1e-5)
        assert rows["down", "weight"].remark == "tied to one above"

    def test_a_lone_layer_and_a_sparse_gradient(self) -> None:
        found = tp.gradient_flow(nn.Linear(3, 2), torch.randn(4, 3))
        assert [row.parameter for row in found] == ["weight", "bias"]
        sparse = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
        found = tp.gradient_flow(sparse, torch.tensor([[0, 1], [2, 0]]), loss=lambda out: out.sum())
        assert all(row.gradient_norm is not None for row in found)

    def test_what_has_no_gradient_says_why(self) -> None:
        model = Shared()
        with torch.no_grad():
            model.two.weight.zero_()
            model.two.bias.fill_(-1)
        found = {(row.layer, row.parameter): row.remark for row in tp.gradient_flow(model, torch.randn(1, 3, 9, 9))}
        assert found["unused", "weight"] == "layer not called"
        assert found["one", "weight"] == "zero everywhere"

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 6, 6)
        with pytest.raises(TargetError, match="0 to 4"):
            tp.gradient_flow(model, x, 5)
        with pytest.raises(LayerNotFound, match="parameters of its own"):
            tp.gradient_flow(model, x, layers=nn.ReLU)
        with pytest.raises(TargetError, match="class scores"):
            tp.gradient_flow(model.features, x)
        with pytest.raises(InputError, match="one number"):
            tp.gradient_flow(model, x, loss=lambda out: out)
        with pytest.raises(GradUnavailable, match="frozen"):
            tp.gradient_flow(
                model.requires_grad_(False), x, loss=lambda out: out.sum() * torch.ones((), requires_grad=True)
            )


class TestPlan:
    def test_says_what_recording_would_give(self) -> None:
        found = {row.layer: row for row in tp.plan(Shared(), torch.randn(2, 3, 9, 9))}
        assert (found["one"].calls, found["one"].output, found["one"].nbytes) == (1, "(N, 4, 7, 7)", 2 * 4 * 49 * 4)
        assert found["act"].calls == 2
        assert found["act"].nbytes == (2 * 4 * 49 + 2 * 6 * 25) * 4
        assert found["unused"].calls == 0
        assert "another way" in found["unused"].remark

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
