"""How often a pass calls each layer, counted on a copy without the user's hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.several_calls import SharedAct, Tied
from torchpeek.engine import as_model_call, call_counts, hook_free, preserved, with_known_totals
from torchpeek.hooks import select

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def counts_of(model: nn.Module, x: Tensor = X) -> dict[str, int]:
    found = call_counts(model, as_model_call(model, x, any_tensor=True))
    assert found.complete
    return {name: found.by_module.get(id(module), 0) for name, module in model.named_modules()}


def counted_by_hand(model: nn.Module, x: Tensor = X) -> dict[str, int]:
    names = [name for name, _ in model.named_modules()]
    counts = dict.fromkeys(names, 0)

    def count(name: str) -> Any:
        def hook(*hook_arguments: Any) -> None:
            counts[name] += 1

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return counts


class Listed(nn.Module):
    """Calls a layer through a list of its own, which is not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.others = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        return self.others[0](self.conv(self.others[0](x)))


@pytest.mark.parametrize("make", [SharedAct, Tied, Listed], ids=lambda make: make.__name__)
def test_the_counts_are_those_of_hooks(make: Any) -> None:
    model = make().eval()
    assert counts_of(model) == counted_by_hand(model)


def test_a_loop_over_the_samples_is_counted_for_one() -> None:
    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.act(sample) for sample in x])

    assert counts_of(Each())["act"] == 1


def test_a_model_that_takes_one_batch_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x.view(4, 3, 64).sum(-1)))

    with pytest.warns(tp.errors.Notice, match="takes batches of 4 only"):
        assert counts_of(Fixed())["act"] == 2


def test_a_model_that_fails_is_not_counted_to_its_end() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(7, 2)).eval()
    found = call_counts(model, as_model_call(model, X))
    assert not found.complete
    assert found.by_module[id(model[0])] == 1


def test_the_second_time_nothing_runs() -> None:
    class Counts(nn.Module):
        ran: list[int] = []  # noqa: RUF012  # of the class, as the model that runs is a copy

        def forward(self, x: Tensor) -> Tensor:
            self.ran.append(len(x))
            return x

    model, call = Counts(), as_model_call(nn.Identity(), X)
    assert call_counts(model, call) is call_counts(model, call)
    assert Counts.ran == [1]


class TestHookFree:
    def test_none_of_the_users_hooks_is_on_the_copy(self) -> None:
        model, ran = SharedAct().eval(), []
        for module in model.modules():
            module.register_forward_hook(lambda *hook_arguments: ran.append("returned"))
            module.register_forward_pre_hook(lambda *hook_arguments: ran.append("called"))
        with preserved(model):
            free = hook_free(model)
            got = free.copy(X)
        assert ran == []
        assert torch.equal(got, model(X))
        assert ran

    def test_each_module_stands_for_one_of_the_model(self) -> None:
        model = SharedAct()
        free = hook_free(model)
        own = dict(model.named_modules())
        for name, module in free.copy.named_modules():
            assert (module, own[name]) in free.modules
            assert all(mine is theirs for mine, theirs in zip(module.parameters(), own[name].parameters(), strict=True))
        assert all((module, module) in free.modules for module in model.modules())
        assert len(free.modules) == 2 * len(own)

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_a_scripted_part_takes_no_hooks(self) -> None:
        model = nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.Tanh())
        assert {type(module) for module, _ in hook_free(model).modules} == {nn.Sequential, nn.Tanh}


class TestKnownTotals:
    @pytest.mark.parametrize(("name", "index"), [("act[-1]", 2), ("act[-3]", 0), ("act[1]", 1), ("one[-1]", 0)])
    def test_the_number_of_a_call(self, name: str, index: int) -> None:
        model = SharedAct().eval()
        layers = with_known_totals(model, as_model_call(model, X), select(model, name))
        assert layers[name].index == index

    def test_of_a_model_that_needs_its_hooks(self) -> None:
        class Hooked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act = nn.Tanh()

            def forward(self, x: Tensor) -> Tensor:
                return self.act(self.act(x) * self.scale)

        model = Hooked()
        model.register_forward_pre_hook(lambda module, args: setattr(module, "scale", 2))
        layers = with_known_totals(model, as_model_call(model, X), select(model, "act[-1]"))
        assert layers["act[-1]"].index == 1
