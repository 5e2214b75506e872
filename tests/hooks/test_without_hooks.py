"""The copy of a model without hooks: what it shares with the model, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchpeek.hooks import without_hooks


def hooked(model: nn.Module, events: list[str]) -> nn.Module:
    """The model with a hook of each sort on each of its modules."""
    for name, module in model.named_modules():

        def note(*args: Any, name: str = name, **kwargs: Any) -> None:
            events.append(name)

        module.register_forward_pre_hook(note)
        module.register_forward_pre_hook(note, with_kwargs=True)
        module.register_forward_hook(note)
        module.register_forward_hook(note, always_call=True)
        module.register_full_backward_hook(note)
        module.register_full_backward_pre_hook(note)
    return model


class TestWithoutHooks:
    def test_no_hook_runs_and_the_values_are_the_same(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2))).double()
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        expected = model(x)
        events: list[str] = []
        copy = without_hooks(hooked(model, events))
        output = copy(x)
        output.sum().backward()
        assert torch.equal(output, expected)
        assert events == []

    def test_the_model_keeps_its_hooks(self) -> None:
        events: list[str] = []
        model = hooked(nn.Sequential(nn.ReLU()), events)
        without_hooks(model)(torch.ones(1))
        model(torch.ones(1))
        assert events.count("0") == 4

    def test_hooks_of_the_copy_are_not_the_models(self) -> None:
        model = nn.Sequential(nn.ReLU())
        copy = without_hooks(model)
        copy[0].register_forward_hook(lambda *args: args[2] + 1)
        assert copy(torch.ones(1)).item() == 2
        assert model(torch.ones(1)).item() == 1

    def test_parameters_and_buffers_are_shared(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2))
        copy = without_hooks(model)
        assert all(one is other for one, other in zip(model.parameters(), copy.parameters(), strict=True))
        assert all(one is other for one, other in zip(model.buffers(), copy.buffers(), strict=True))

    def test_what_is_replaced_in_the_copy_stays_in_the_model(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2))
        copy = without_hooks(model)
        copy[0].running_mean = torch.ones(2)
        copy[0].weight = nn.Parameter(torch.zeros(2))
        copy.add_module("1", nn.ReLU())
        copy.eval()
        assert model[0].running_mean.tolist() == [0, 0]
        assert model[0].weight.tolist() == [1, 1]
        assert len(model) == 1
        assert model.training
        assert model[0].training

    def test_a_shared_module_is_copied_once(self) -> None:
        relu = nn.ReLU()
        copy = without_hooks(nn.Sequential(relu, nn.Linear(1, 1), relu))
        assert copy[0] is copy[2]
        assert copy[0] is not relu

    def test_an_absent_child_stays_absent(self) -> None:
        model = nn.Sequential(nn.ReLU())
        model.register_module("downsample", None)
        assert without_hooks(model)._modules["downsample"] is None

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
    def test_a_scripted_part_is_that_of_the_model(self) -> None:
        model = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Linear(1, 1))
        copy = without_hooks(model)
        assert copy[0] is model[0]
        assert copy[1] is not model[1]

    def test_a_class_with_arguments_and_attributes(self) -> None:
        class Scaled(nn.Module):
            def __init__(self, factor: float) -> None:
                super().__init__()
                self.factor = factor

            def forward(self, x: Tensor) -> Tensor:
                return x * self.factor

        assert without_hooks(Scaled(3))(torch.ones(1)).item() == 3
