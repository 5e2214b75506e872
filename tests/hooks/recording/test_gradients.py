"""Recorded gradients: tape.grad, and which layer a gradient belongs to."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import PooledNet, Scale
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, NotConnected, NotFired


class TestGrad:
    def test_of_several_scores_after_the_block_without_touching_anything(self) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 4, 4)
        with tp.record(model, ["features", "act"], gradients=True) as tape:
            scores = model(x)
        for k in (0, 3):
            truth = model.head.weight[k].detach()[None, :, None, None].expand(2, 6, 4, 4) / 16
            found = tape.grad(scores[:, k].sum())
            torch.testing.assert_close(found["act"], truth)
            torch.testing.assert_close(tape["act"].grad_output, truth)
            torch.testing.assert_close(found["features"], truth * (tape["features"].output > 0))
        assert list(found) == ["features", "act"]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_inside_the_block_it_arrives_once(self) -> None:
        model, seen = PooledNet(), []
        keep = tp.keep.Callback(lambda captured: seen.append(captured.part))
        with tp.record(model, "act", gradients=True, keep=keep) as tape:
            tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert seen == ["output", "grad_output"]

    def test_goes_no_further_down_than_the_layer(self) -> None:
        model, below = PooledNet(), []
        model.features.register_full_backward_hook(lambda *given: below.append(given))
        with tp.record(model, "act", gradients=True) as tape:
            tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert not below

    def test_of_a_frozen_model_and_of_a_layer_called_twice(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = Scale(3.0)

            def forward(self, x):
                return self.scale(self.scale(x))

        model = Twice().requires_grad_(False)
        with tp.record(model, "scale", gradients=True) as tape:
            found = tape.grad(model(torch.ones(1)).sum())
        assert (found["scale", 0].item(), found["scale", 1].item()) == (3, 1)
        with pytest.raises(AmbiguousCall, match=r"\['scale', 0\]"):
            found["scale"]

    def test_of_a_layer_that_the_score_does_not_depend_on(self) -> None:
        class Aside(PooledNet):
            def forward(self, x):
                self.features(x * 2)
                return self.head(self.act(x.mean(1, keepdim=True).expand(-1, 6, -1, -1)).mean((2, 3)))

        model = Aside()
        with tp.record(model, ["features", "act"], gradients=True) as tape:
            scores = model(torch.randn(1, 3, 4, 4))
        found = tape.grad(scores.sum())
        assert found["features"] is None
        assert found["act"] is not None
        with tp.record(model, "features", gradients=True) as tape:
            scores = model(torch.randn(1, 3, 4, 4))
        with pytest.raises(NotConnected, match="'features'"):
            tape.grad(scores.sum())

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 4, 4)
        with tp.record(model, "act") as tape:
            scores = model(x)
        with pytest.raises(InputError, match="gradients=True"):
            tape.grad(scores.sum())
        with tp.record(model, "act", gradients=True) as tape:
            with pytest.raises(GradUnavailable, match="no layer has been called"):
                tape.grad(scores.sum())
            scores = model(x)
        with pytest.raises(InputError, match=r"shape \(2, 5\)"):
            tape.grad(scores)
        with pytest.raises(GradUnavailable, match="detached"):
            tape.grad(scores.sum().detach())


class TestGradientOwner:
    """A layer's own, before whatever is written in later, also where tensors are passed on or are views."""

    @staticmethod
    def chain(inplace: bool) -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Identity(),
            nn.ReLU(inplace),
            nn.Dropout(0.0),
            nn.Conv2d(4, 4, 1),
            nn.Flatten(),
            nn.Hardtanh(-0.2, 0.5, inplace),
            nn.Linear(4 * 36, 5),
            nn.Unflatten(1, (5, 1)),
            nn.LeakyReLU(0.1, inplace),
        ).double()

    def test_in_place_layers_after_layers_that_only_pass_on_or_view(self) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        tapes = []
        for inplace in (True, False):
            model = self.chain(inplace)
            with tp.record(model, "*", gradients=True, inputs=True) as tape:
                model(x).square().sum().backward()
            tapes.append(tape)
        # The truth: the same layers one by one, none in place, none passing a tensor on, retain_grad on each result.
        outputs = [x]
        for layer in self.chain(inplace=False):
            outputs.append(layer(outputs[-1]) * 1)
            outputs[-1].retain_grad()
        outputs[-1].square().sum().backward()
        for name in tapes[0]:
            for tape in tapes:
                torch.testing.assert_close(tape[name].grad_output, outputs[int(name) + 1].grad, msg=name)
                torch.testing.assert_close(tape[name].grad_input, outputs[int(name)].grad, msg=name)

    def test_of_several_outputs_each_its_own(self) -> None:
        class Two(nn.Module):
            def forward(self, x):
                half = x * 2
                return half, half * 3

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two, self.same = Two(), nn.Identity()

            def forward(self, x):
                a, b = self.two(x)
                return (self.same(a) * 7 + a * 5 + b).sum()

        for frozen in (False, True):
            model, x = Net(), torch.ones(1, requires_grad=not frozen)
            with tp.record(model, ["two", "same"], gradients=True) as tape:
                score = model(x)
                found = tape.grad(score)
                assert [each.item() for each in tape["two"].grad_output] == [12, 1]
                assert tape["same"].grad_output.item() == 7
            again = tape.grad(score)
            for gradients in (found, again):
                assert [each.item() for each in gradients["two"]] == [12, 1]
                assert gradients["same"].item() == 7

    def test_an_input_that_is_passed_on_and_not_used_has_no_gradient(self) -> None:
        """As the hidden states of a transformer: that the input has other uses is not this layer's."""

        class States(nn.Module):
            def forward(self, x):
                return x * 2, (x, x * 3)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.states = States()

            def forward(self, x):
                return (self.states(x)[0] + 100 * x).sum()

        model, x = Net(), torch.ones(1, requires_grad=True)
        with tp.record(model, "states", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        for _ in range(2):
            assert tape["states"].at("0").grad_output.item() == 1
            assert tape["states"].at("1.0").grad_output is None
            assert tape["states"].grad_input.item() == 2
            tape.grad(score)

    @pytest.mark.parametrize(
        "view",
        [
            lambda y: y[:, 0],
            lambda y: y.narrow(-1, 1, 3),
            lambda y: y.transpose(1, 2),
            lambda y: y.permute(2, 0, 1),
            lambda y: y.flatten(1),
        ],
    )
    def test_of_a_view_of_any_kind_that_is_then_written_into(self, view) -> None:
        class Views(nn.Module):
            def forward(self, x):
                return view(x)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.views = nn.Linear(6, 6), Views()

            def forward(self, x):
                return (self.views(self.linear(x)).relu_() ** 2).sum()

        model, x = Net(), torch.randn(2, 4, 6)
        truth = view(model.linear(x)).clone().detach().requires_grad_()
        (truth.clone().relu_() ** 2).sum().backward()
        with tp.record(model, "views", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        torch.testing.assert_close(tape["views"].grad_output, truth.grad)
        torch.testing.assert_close(tape.grad(score)["views"], truth.grad)
        plain = model.linear.weight.grad.clone()
        model.zero_grad()
        with tp.edit(model, gradients={"views": lambda gradient: gradient * 100}):
            model(x).backward()
        torch.testing.assert_close(model.linear.weight.grad, plain * 100)

    def test_a_residual_that_is_added_in_place(self) -> None:
        """x += f(drop(x)): the way around is not the dropout's."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)
                self.f = nn.Linear(3, 3).requires_grad_(False)  # else it needs what is then written into

            def forward(self, x):
                x = self.first(x)
                x += self.f(self.drop(x))
                return x.sum()

        model, x = Net().eval(), torch.randn(1, 3)
        truth = model.f.weight.detach().sum(0, keepdim=True)
        with tp.record(model, "drop", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        torch.testing.assert_close(tape["drop"].grad_output, truth)
        torch.testing.assert_close(tape.grad(score)["drop"], truth)

    def test_a_layer_that_returns_its_parameter_and_an_edit_that_does_not_stay_on_it(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.ones(2))

            def forward(self):
                return self.w

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.own = Own()

            def forward(self):
                return (self.own() + 10 * self.own.w).sum()

        model = Net()
        with tp.record(model, "own", gradients=True) as tape:
            model().backward()
        assert tape["own"].grad_output.tolist() == [1, 1]
        model.zero_grad()
        with tp.edit(model, gradients={"own": lambda gradient: gradient * 0}):
            model().backward()
        assert model.own.w.grad.tolist() == [10, 10]
        model.zero_grad()
        model().backward()
        assert model.own.w.grad.tolist() == [11, 11]

    @pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Flatten(), nn.Identity()])
    @pytest.mark.parametrize("inplace", [False, True])
    def test_gradients_meet_the_block_that_was_opened_first_last(self, layer: nn.Module, inplace: bool) -> None:
        model = nn.Sequential(nn.Linear(2, 2), layer, nn.ReLU(inplace), nn.Linear(2, 1))
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.Linear):
                    module.weight.fill_(1)
                    module.bias.fill_(1)
        with (
            tp.record(model, "1", gradients=True) as outside,
            tp.edit(model, gradients={"1": lambda gradient: gradient * 2}),
            tp.record(model, "1", gradients=True) as inside,
            tp.edit(model, gradients={"1": lambda gradient: gradient * 10}),
        ):
            model(torch.ones(1, 2)).backward()
        assert inside["1"].grad_output.unique().tolist() == [10]
        assert outside["1"].grad_output.unique().tolist() == [20]

    def test_a_frozen_part_that_is_checkpointed(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).requires_grad_(False)
                self.head = nn.Linear(3, 1)

            def forward(self, x):
                return self.head(checkpoint(self.body, x, use_reentrant=False)).sum()

        model = Net()
        with tp.record(model, "*", gradients=True) as tape:
            model(torch.randn(2, 3)).backward()
        torch.testing.assert_close(tape["body"].grad_output, model.head.weight.detach().expand(2, -1))
        assert model.head.weight.grad is not None

    def test_one_loss_over_two_passes(self) -> None:
        model = nn.Sequential(Scale(3.0))
        with tp.record(model, "0", gradients=True, passes="all") as tape:
            score = model(torch.ones(1)).sum() + 5 * model(torch.ones(1)).sum()
        found = tape.grad(score)
        assert [found["0", i].item() for i in range(2)] == [1, 5]

    def test_layers_that_return_nothing_or_raise_do_not_matter_to_the_others(self) -> None:
        class Nothing(nn.Module):
            def forward(self, x):
                return None

        class Raises(nn.Module):
            def forward(self, x):
                raise RuntimeError

        class Net(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.nothing, self.raises = Nothing(), Raises()

            def forward(self, x):
                self.nothing(x)
                with contextlib.suppress(RuntimeError):
                    self.raises(x)
                return super().forward(x)

        model = Net()
        with tp.record(model, ["nothing", "raises", "act"], gradients=True) as tape:
            found = tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert set(found) == {"nothing", "act"}
        assert tape["nothing"].output is None
        assert tape["nothing"].grad_output is None
        with pytest.raises(NotFired, match="did not return"):
            _ = tape["raises"].grad_output

    def test_an_edit_of_a_gradient_that_is_then_written_into(self) -> None:
        for after in ([nn.ReLU(inplace=True)], [nn.Identity(), nn.ReLU(inplace=True)]):
            model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), *after)
            nn.init.ones_(model[0].weight)
            layers = {"0": lambda gradient: gradient * 100} if len(after) == 1 else {"1": lambda g: g * 100}
            with tp.edit(model, gradients=layers):
                model(torch.ones(1, 1, 1, 2)).sum().backward()
            assert model[0].weight.grad.item() == 200

    def test_of_what_is_given_by_name(self) -> None:
        class Add(nn.Module):
            def forward(self, a, *, b):
                return a + 2 * b

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.add = Add()

            def forward(self, x):
                return self.add(x, b=x.clone())

        with tp.record(Net(), "add", gradients=True) as tape:
            model = tape._model
            model(torch.ones(1, requires_grad=True)).backward()
        assert tape["add"].grad_input.item() == 1
        assert tape["add"].grad_kwargs["b"].item() == 2
