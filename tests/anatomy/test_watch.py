"""watch: norms, updates and their ratio, against plain autograd and the optimizers' own formulas in float64."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, LayerNotFound, Notice, OptionError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 2)
    ).double()


X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def backward(model: nn.Module, x: Tensor = X) -> None:
    model(x).square().sum().backward()


def size(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


class TestNumbers:
    def test_sgd_by_hand(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with tp.watch(model, every=1) as seen:
            for _ in range(3):
                optimizer.zero_grad()
                backward(model)
                before = {name: weights(model.get_submodule(name)) for name in ("0", "2.0", "3")}
                gradients = {
                    name: [each.grad.clone() for each in model.get_submodule(name).parameters()] for name in before
                }
                optimizer.step()
                assert [row.layer for row in seen.latest] == list(before)
                for row in seen.latest:
                    assert row.gradient_norm == pytest.approx(size(gradients[row.layer]), rel=1e-12)
                    assert row.weight_norm == pytest.approx(size(before[row.layer]), rel=1e-12)
                    assert row.update_norm == pytest.approx(0.01 * size(gradients[row.layer]), rel=1e-9)
                    assert row.update_ratio == pytest.approx(row.update_norm / row.weight_norm, rel=1e-12)
                    assert row.numel == sum(each.numel() for each in before[row.layer])
                everything = [each for group in gradients.values() for each in group]
                assert seen.total_norm(seen.steps[-1]) == pytest.approx(size(everything), rel=1e-12)
        assert seen.steps == (0, 1, 2)
        assert len(seen) == 9

    @pytest.mark.parametrize(
        "make",
        [
            lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
            lambda parameters: torch.optim.Adam(parameters, lr=0.003),
            lambda parameters: torch.optim.AdamW(parameters, lr=0.003, foreach=False),
            lambda parameters: torch.optim.RMSprop(parameters, lr=0.003),
        ],
        ids=["momentum", "Adam", "AdamW", "RMSprop"],
    )
    def test_against_the_weights_of_a_twin(self, make) -> None:  # type: ignore[no-untyped-def]
        model, twin = network(), network()
        optimizer, other = make(model.parameters()), make(twin.parameters())
        with tp.watch(model, every=2, layers=["0", "2"]) as seen:
            for step in range(5):
                for net, each in ((model, optimizer), (twin, other)):
                    each.zero_grad()
                    backward(net)
                    if net is twin:
                        before = {name: weights(twin.get_submodule(name)) for name in ("0", "2")}
                    each.step()
                if step % 2 == 0:
                    for row in seen.latest:
                        after = weights(twin.get_submodule(row.layer))
                        changed = size([a - b for a, b in zip(after, before[row.layer], strict=True)])
                        assert row.step == step
                        assert row.update_norm == pytest.approx(changed, rel=1e-9)
                        assert row.update_ratio == pytest.approx(changed / size(before[row.layer]), rel=1e-9)
        assert seen.steps == (0, 2, 4)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))

    def test_adam_s_first_update_is_the_learning_rate(self) -> None:
        model = nn.Linear(8, 1, bias=False).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, eps=0)
        with tp.watch(model) as seen:
            model(torch.ones(1, 8, dtype=torch.float64)).sum().backward()
            optimizer.step()
        assert seen[0].update_norm == pytest.approx(0.1 * math.sqrt(8), rel=1e-9)  # m / sqrt(v) is 1 everywhere

    @pytest.mark.parametrize("scale", [1e-25, 1e25])
    def test_gradients_whose_squares_float32_cannot_hold(self, scale: float) -> None:
        model = nn.Linear(4, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with tp.watch(model) as seen:
            model.weight.grad = torch.full((1, 4), scale)
            optimizer.step()
        assert seen[0].gradient_norm == pytest.approx(2 * scale, rel=1e-5)
        assert seen[0].update_norm == seen[0].update_ratio == 0

    def test_the_training_is_the_same_bit_by_bit(self) -> None:
        trained = []
        for watched in (False, True):
            model = network().train()
            model.insert(1, nn.Dropout(0.5))
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            torch.manual_seed(3)

            def train(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
                for _ in range(4):
                    optimizer.zero_grad()
                    backward(model)
                    optimizer.step()

            if watched:
                with tp.watch(model, every=1):
                    train()
            else:
                train()
            trained.append(model.state_dict())
        assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


class TestSteps:
    def test_every(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with tp.watch(model, every=3) as seen:
            for _ in range(8):
                backward(model)
                optimizer.step()
        assert seen.steps == (0, 3, 6)
        assert seen.step_count == 8

    def test_accumulated_batches_are_one_step_and_validation_is_none(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with tp.watch(model, every=1) as seen:
            backward(model, X[:3])
            backward(model, X[3:])
            whole = size([each.grad for each in model[0].parameters()])
            optimizer.step()
            with torch.no_grad():
                model(X)
            model(X)
        assert seen.steps == (0,)
        assert seen[0].gradient_norm == pytest.approx(whole, rel=1e-12)

    def test_several_optimizers_share_a_step(self) -> None:
        model = network()
        first = torch.optim.SGD(model[0].parameters(), lr=0.01)
        second = torch.optim.Adam([*model[2].parameters(), *model[3].parameters()], lr=0.01)
        with tp.watch(model, every=1) as seen:
            for _ in range(2):
                backward(model)
                first.step()
                second.step()
            backward(model)
            first.step()  # a step of its own
            first.step()
        assert seen.steps == (0, 1, 2, 3)
        assert all(row.update_norm for row in seen if row.step < 2)
        assert [row.remark for row in seen.latest] == ["", *["in no optimizer that stepped"] * 2]

    def test_another_model_s_optimizer_is_not_counted(self) -> None:
        generator, critic = network(), network(1)
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (generator, critic)]
        with tp.watch(critic, every=1) as seen:
            for net, optimizer in zip((generator, critic), optimizers, strict=True):
                backward(net)
                optimizer.step()
        assert seen.step_count == 1

    def test_an_optimizer_inside_another(self) -> None:
        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner: torch.optim.Optimizer) -> None:
                super().__init__(inner.param_groups, {})
                self.inner = inner

            def step(self, closure=None):  # type: ignore[no-untyped-def,override]
                self.inner.step(closure)

        model = network()
        optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        with tp.watch(model, every=1) as seen:
            for _ in range(2):
                optimizer.zero_grad()
                backward(model)
                optimizer.step()
        assert seen.steps == (0, 1)
        assert seen[0].update_norm == pytest.approx(0.01 * seen[0].gradient_norm, rel=1e-9)

    def test_a_closure_s_gradients(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(X).square().sum()
            loss.backward()
            return loss

        with tp.watch(model, every=1) as seen:
            optimizer.step(closure)
            optimizer.step(closure)
        for row in seen:
            assert row.update_norm == pytest.approx(0.01 * row.gradient_norm, rel=1e-9)

    def test_a_step_that_raises(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def broken() -> float:
            raise KeyboardInterrupt

        with tp.watch(model, every=1) as seen:
            with pytest.raises(KeyboardInterrupt):
                optimizer.step(broken)
            for _ in range(2):
                backward(model)
                optimizer.step()
        assert seen.steps == (0, 1)
        assert seen[0].update_norm == pytest.approx(0.01 * seen[0].gradient_norm, rel=1e-9)

    def test_a_step_that_raises_and_another_optimizer_after_it(self) -> None:
        model = network()

        def broken() -> float:
            raise ValueError

        with tp.watch(model, every=1) as seen:
            with pytest.raises(ValueError):
                torch.optim.SGD(model.parameters(), lr=0.01).step(broken)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
            for _ in range(2):
                backward(model)
                optimizer.step()
        assert seen.step_count == 3  # the first has no rows
        assert seen.steps == (1, 2)
        assert seen[0].update_norm == pytest.approx(0.02 * seen[0].gradient_norm, rel=1e-9)

    def test_clipped_and_scaled_gradients(self) -> None:
        model = network().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with tp.watch(model, every=1) as seen:
            loss = model(X.float()).square().sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            scaler.step(optimizer)
            scaler.update()
            scaler.scale(model(X.float() * torch.inf).sum()).backward()
            scaler.step(optimizer)  # skipped
        assert seen.steps == (0,)
        assert seen.total_norm(0) == pytest.approx(0.25, rel=1e-4)
        assert math.hypot(*(row.update_norm for row in seen)) == pytest.approx(0.125, rel=1e-4)

    def test_the_scale_that_an_optimizer_takes_out_itself(self) -> None:
        model = network().float()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        loss = model(X.float()).square().sum()
        plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        with tp.watch(model, every=1) as seen:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
        assert seen.total_norm(0) == pytest.approx(size(list(plain)), rel=1e-5)


class TestBlocks:
    def test_frozen_unused_and_zero(self) -> None:
        model = network()
        model[0].requires_grad_(False)
        model[2][0].bias.requires_grad_(False)
        model.append(nn.Linear(2, 2).double())
        nn.init.zeros_(model[3].weight)
        nn.init.zeros_(model[3].bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model) as seen:
            model[:4](X).sum().backward()
            optimizer.step()
        rows = {row.layer: row for row in seen}
        assert rows["0"].remark == "frozen"
        assert rows["0"].gradient_norm is None
        assert rows["0"].update_norm is None
        assert rows["0"].weight_norm == pytest.approx(size(weights(model[0])), rel=1e-12)
        assert rows["2.0"].remark == "gradient zero everywhere"  # the last layer's weights are zero
        assert rows["3"].remark == "weights were zero"
        assert rows["3"].update_ratio is None
        assert rows["3"].update_norm > 0
        assert rows["4"].remark == "no gradient"
        assert "frozen" in str(seen)
        assert "step 0" in str(seen)

    def test_a_shared_parameter_counts_once_in_a_block(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
        model[1].weight = model[0].weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model, layers=["", "0", "1"]) as seen:
            backward(model)
            optimizer.step()
        assert len({row.gradient_norm for row in seen}) == len({row.weight_norm for row in seen}) == 1
        assert seen.total_norm(0) == pytest.approx(seen[0].gradient_norm, rel=1e-12)

    def test_selection_and_exclusion(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model, layers=["2", "3"], exclude="3") as seen, tp.watch(model, exclude=["2", "3"]) as other:
            backward(model)
            optimizer.step()
        assert [(row.layer, row.numel) for row in seen] == [("2", 24)]
        assert [row.layer for row in other] == ["0"]

    def test_lazy_layers(self) -> None:
        model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model) as seen:
            backward(model, torch.ones(2, 3))
            optimizer.step()
        assert [(row.layer, row.numel) for row in seen] == [("0", 8), ("1", 3)]

    def test_a_replaced_layer_is_followed(self) -> None:
        model = network()
        with tp.watch(model, every=1, layers="2") as seen:
            for width in (4, 4):
                model[2][0] = nn.Linear(5, width).double()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                backward(model)
                optimizer.step()
        assert seen.steps == (0, 1)
        assert all(row.update_norm for row in seen)

    def test_data_parallel_sparse_and_frozen_mode(self) -> None:
        embedding = nn.Embedding(5, 3, sparse=True)
        model = nn.DataParallel(nn.Sequential(embedding, nn.Linear(3, 1)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model) as seen:
            model(torch.tensor([1, 1, 2])).sum().backward()
            expected = size([embedding.weight.grad.to_dense()])
            optimizer.step()
        assert [row.layer for row in seen] == ["module.0", "module.1"]
        assert seen[0].gradient_norm == pytest.approx(expected, rel=1e-5)


class TestTheTable:
    def test_columns_and_text(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model, every=1) as seen:
            assert str(seen).endswith("no step yet")
            assert not len(seen)
            for _ in range(2):
                backward(model)
                optimizer.step()
        columns = seen.to_dict()
        assert columns["step"] == [0, 0, 0, 1, 1, 1]
        assert columns["layer"] == ["0", "2.0", "3"] * 2
        assert columns["update_ratio"] == [row.update_ratio for row in seen.rows]
        assert len(str(seen).splitlines()) == 6
        assert ".rows has all 2 watched steps, of 2 that were taken" in seen.footer
        assert ">2.0</td>" in seen._repr_html_()

    def test_errors(self) -> None:
        model = network()
        for every in (0, -1, 1.5, True, "10"):
            with pytest.raises(OptionError, match="every is"), tp.watch(model, every=every):
                pass
        with pytest.raises(LayerNotFound), tp.watch(model, layers="layr"):
            pass
        with pytest.raises(LayerNotFound, match="no parameters"), tp.watch(model, layers=nn.Tanh):
            pass
        with pytest.raises(InputError, match="model is"), tp.watch("resnet18"):  # type: ignore[arg-type]
            pass
        with pytest.warns(Notice, match="no optimizer took a step"), tp.watch(model) as seen:
            pass
        with pytest.raises(InputError, match="step 3 was not watched"):
            seen.total_norm(3)
        with pytest.warns(Notice, match="thrown away before it was opened"):
            tp.watch(model)

    def test_nothing_stays_behind(self) -> None:
        from torch.optim import optimizer as hooks

        model = network()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ZeroDivisionError), tp.watch(model):
            _ = 1 / 0
        assert not hooks._global_optimizer_pre_hooks
        assert not hooks._global_optimizer_post_hooks
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(KeyboardInterrupt), tp.watch(model):
                raise KeyboardInterrupt
        assert not hooks._global_optimizer_pre_hooks
