"""Which modules are layers that compute, by their structure; and copies without hooks."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from networks import PooledNet, Shared
from torchpeek.hooks import computing_layers, without_hooks
from torchpeek.hooks.module_channels import channels_of


def names(model: nn.Module, **shown: set[str]) -> list[str]:
    by_id = {id(module): name for name, module in model.named_modules()}
    return [by_id[id(layer)] for layer in computing_layers(model, **shown)]


def test_by_structure() -> None:
    assert names(PooledNet()) == ["features.0", "features.1", "features.2", "act", "head"]
    assert names(Shared()) == [name for name, _ in Shared().named_children()]
    assert names(nn.Linear(2, 2)) == [""]
    model = nn.Sequential(
        weight_norm(nn.Conv2d(3, 4, 3)), nn.MultiheadAttention(4, 2), nn.ModuleList([]), nn.ParameterList([])
    )
    assert names(model) == ["0", "1"]


def test_by_what_a_pass_has_shown() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))
    model[0].scale = nn.Parameter(torch.ones(1))
    assert names(model) == ["0", "0.0", "1.0"]
    assert names(model, pass_through={"0"}, own_output={"1"}) == ["0.0", "1", "1.0"]


def test_a_copy_without_hooks_computes_the_same_and_leaves_the_model_alone() -> None:
    model, ran = PooledNet().eval(), []
    model.head.register_forward_hook(lambda *hook_arguments: ran.append("head"))
    model.register_forward_pre_hook(lambda *hook_arguments: ran.append("model"))
    x = torch.randn(2, 3, 6, 6)
    copy = without_hooks(model)
    result = copy(x)
    assert ran == []
    assert torch.equal(model(x), result)
    assert ran == ["model", "head"]
    assert copy.head.weight is model.head.weight
    copy.head.register_forward_hook(lambda *hook_arguments: ran.append("copy"))
    model(x)
    assert "copy" not in ran


@pytest.mark.parametrize("function", [computing_layers, without_hooks, channels_of])
def test_a_model_dies_with_its_last_reference(function) -> None:
    gc.collect()
    gc.disable()
    try:
        model = PooledNet()
        function(model)
        reference = weakref.ref(model)
        parameter = weakref.ref(model.head.weight)
        del model
        assert reference() is None
        assert parameter() is None
    finally:
        gc.enable()
