"""The state of modules: small buffers are saved together, and each is restored by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchpeek.engine.saved_modules import SavedModules


def with_buffers() -> nn.Module:
    model = nn.BatchNorm1d(3)
    for name, value in {
        "special": torch.tensor([float("nan"), -0.0]),
        "resized": torch.zeros(2, 3),
        "converted": torch.arange(3),
        "differentiable": torch.ones(4, requires_grad=True) * 2,
        "overlapping": torch.ones(1).expand(3),
        "empty": torch.empty(0),
        "large": torch.arange(5000.0),
    }.items():
        model.register_buffer(name, value)
    return model


def state(model: nn.Module) -> dict[str, tuple[int, int, torch.dtype, Tensor]]:
    return {name: (id(each), each._version, each.dtype, each.detach().clone()) for name, each in model.named_buffers()}


def assert_same(model: nn.Module, before: dict[str, tuple[int, int, torch.dtype, Tensor]]) -> None:
    for name, (identity, version, dtype, value) in state(model).items():
        assert (identity, version, dtype) == before[name][:3], name
        assert torch.equal(value.nan_to_num(7.0), before[name][3].nan_to_num(7.0)), name
        if dtype.is_floating_point:
            assert torch.equal(value.signbit(), before[name][3].signbit()), name


def test_changed_buffers_are_restored_with_their_versions() -> None:
    model = with_buffers()
    before = state(model)
    saved = SavedModules([model])
    buffers = dict(model.named_buffers())
    buffers["running_mean"].add_(1)
    buffers["num_batches_tracked"].add_(1)
    buffers["special"].zero_()
    buffers["resized"].resize_(6).add_(1)
    buffers["converted"].data = torch.zeros(3)
    buffers["large"][17] = 0
    for _ in range(2):
        saved.restore()
        assert_same(model, before)


def test_a_sign_of_zero_is_a_change() -> None:
    model = with_buffers()
    before = state(model)
    saved = SavedModules([model])
    model.get_buffer("special")[1] = 0.0
    saved.restore()
    assert_same(model, before)


def test_unchanged_buffers_are_not_written() -> None:
    model = with_buffers()
    saved = SavedModules([model])
    pointers = [each.data_ptr() for each in model.buffers()]
    before = state(model)
    saved.restore()
    assert_same(model, before)
    assert pointers == [each.data_ptr() for each in model.buffers()]


def test_buffers_saved_in_inference_mode_are_restored_outside_of_it() -> None:
    model = with_buffers()
    before = state(model)
    with torch.inference_mode():
        saved = SavedModules([model])
    model.get_buffer("running_var").mul_(2)
    saved.restore()
    assert_same(model, before)


def test_a_single_buffer_has_a_copy_of_its_own() -> None:
    model = nn.ReLU()
    model.register_buffer("only", torch.zeros(3))
    saved = SavedModules([model])
    model.get_buffer("only").add_(1)
    saved.restore()
    assert model.get_buffer("only").tolist() == [0, 0, 0]
