"""gradient_flow: gradient norms against a plain training step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchpeek as tp
from networks import MessyNet, PooledNet, Shared
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, TargetError


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

    @pytest.mark.parametrize(
        ("dtype", "exponent"),
        [
            *((torch.float32, exponent) for exponent in (-120, -83, -1, 66, 110)),
            *((torch.float64, exponent) for exponent in (-700, -83, 700)),
        ],
    )
    def test_gradients_of_any_size(self, dtype: torch.dtype, exponent: int) -> None:
        factor = 2.0**exponent  # a power of two, so that the gradients are those of the plain step times it
        model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype), torch.randn(6, 5).to(dtype)
        plain = tp.gradient_flow(model, x, loss=lambda out: out.square().sum())
        # The loss is the same, and its gradient is multiplied on the way back.
        with tp.edit(model, gradients={"2": lambda gradient: gradient * factor}):
            found = tp.gradient_flow(model, x, loss=lambda out: out.square().sum())
        for ours, theirs in zip(found, plain, strict=True):
            assert ours.remark == ""
            for number in ("gradient_norm", "gradient_mean_abs", "gradient_max_abs"):
                expected = getattr(theirs, number) * factor
                assert getattr(ours, number) == pytest.approx(expected, rel=1e-4, abs=0)
        assert found.total_norm == pytest.approx(plain.total_norm * factor, rel=1e-4, abs=0)

    def test_weights_of_any_size(self) -> None:
        for size in (1e-30, 1e-200, 1e200):
            model = nn.Linear(3, 1, bias=False).double()
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[3.0, 0.0, 4.0]]).double() * size)
            found = tp.gradient_flow(model, torch.zeros(1, 3).double(), loss=lambda out: out.sum())
            assert found[0].weight_norm == pytest.approx(5 * size, rel=1e-12, abs=0)
            assert found[0].remark == "zero everywhere"

    def test_a_block_stands_for_all_parameters_inside_it(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(1.5))
                self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                return self.down(self.up(x).relu()) * self.scale

        torch.manual_seed(0)
        model, x, y = nn.Sequential(Block(), Block(), nn.Linear(3, 5)), torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
        F.cross_entropy(model(x), y).backward()

        def norm(*modules: nn.Module) -> float:
            parameters = {id(each): each for module in modules for each in module.parameters()}
            return math.sqrt(sum(float(each.grad.double().square().sum()) for each in parameters.values()))

        found = tp.gradient_flow(model, x, y, layers="0")
        assert [(row.layer, row.parameter) for row in found] == [
            ("0.up", "weight"),
            ("0.up", "bias"),
            ("0.down", "weight"),
            ("0.down", "bias"),
            ("0", "scale"),
        ]
        assert found.total_norm == pytest.approx(norm(model[0]), rel=1e-6)
        # A layer inside a block that is selected, too, counts once.
        nested = tp.gradient_flow(model, x, y, layers=["0", "0.up", "0.*", "1"])
        assert nested.total_norm == pytest.approx(norm(model[0], model[1]), rel=1e-6)
        assert tp.gradient_flow(model, x, y, exclude="0").total_norm == pytest.approx(norm(model[1], model[2]))
        whole = tp.gradient_flow(model, x, y)
        assert whole.norm_of("1") == pytest.approx(norm(model[1]), rel=1e-6)
        assert whole.norm_of("") == whole.total_norm == pytest.approx(norm(model), rel=1e-6)
        with pytest.raises(LayerNotFound, match="no parameter of"):
            whole.norm_of("3")

    def test_a_block_whose_parameters_are_those_of_another(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
        model[1][0].weight = model[0].weight
        x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        F.cross_entropy(model(x), y).backward()
        found = tp.gradient_flow(model, x, y)
        inside = torch.nn.utils.get_total_norm([each.grad for each in model[1].parameters()])
        assert found.norm_of("1") == pytest.approx(float(inside), rel=1e-6)
        total = torch.nn.utils.get_total_norm([each.grad for each in model.parameters()])
        assert found.total_norm == pytest.approx(float(total), rel=1e-6)

    def test_a_block_with_a_layer_that_is_also_in_another_one(self) -> None:
        shared = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), shared), nn.Sequential(shared, nn.Linear(3, 4)))
        x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
        F.cross_entropy(model(x), y).backward()
        found = tp.gradient_flow(model, x, y)
        for block in ("0", "1", "0.1", "1.0", "1.0.0"):
            inside = torch.nn.utils.get_total_norm([each.grad for each in model.get_submodule(block).parameters()])
            assert found.norm_of(block) == pytest.approx(float(inside), rel=1e-6), block
        assert [row.layer for row in found] == ["0.0"] * 2 + ["0.1.0"] * 2 + ["1.1"] * 2
        assert found.norm_of("") == found.total_norm

    def test_a_lazy_layer_that_is_not_called(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2))
        model[0].unused = nn.LazyLinear(4)
        with pytest.raises(InputError, match=r"'0\.unused'.* take it out"):
            tp.gradient_flow(model, torch.randn(2, 3), torch.tensor([0, 1]))
        assert nn.parameter.is_lazy(model[0].unused.weight)
        model[0].unused = nn.LazyLinear(4)
        model[0].unused(torch.rand(1, 2))
        found = tp.gradient_flow(model, torch.randn(2, 3), torch.tensor([0, 1]))
        remarks = {(row.layer, row.parameter): row.remark for row in found}
        assert remarks["0.unused", "weight"] == remarks["0.unused", "bias"] == "layer not called"
        assert remarks["0", "weight"] == ""

    def test_weights_that_a_layer_around_them_uses(self) -> None:
        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.attention(x, x, x)[0].mean(1))

        found = tp.gradient_flow(Attends(), torch.randn(2, 3, 4), torch.tensor([0, 1]))
        assert [row.layer for row in found] == ["attention"] * 2 + ["attention.out_proj"] * 2 + ["head"] * 2
        assert all(row.gradient_norm is not None and not row.remark for row in found)

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
