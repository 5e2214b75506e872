"""Replays of what follows a layer, against whole passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, messy, state_of
from networks.replay import CallsForward, Containers, Counted, OverwritesEarly, SequenceFirst, Shared, WritesInPlace
from replicas.ablation import by_whole_passes, other


def assert_replayed(model: nn.Module, layer: str, x: Tensor, replays: list[int], *, rtol: float = 1e-5) -> None:
    """Three times over, the third being what the second left behind, in chunks that split samples unevenly."""
    labels = [0, 1]
    trace = tp.trace(model, x, layer=layer, target=tp.targets.Classes(labels), gradients=False)
    expected = by_whole_passes(model, layer, x, labels, 5)
    for _ in range(3):
        got = trace.ablate(other, 5, batch=3)
        torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
    assert not torch.allclose(expected, trace.scores.unsqueeze(1))  # it does make a difference
    assert len(replays) >= 3 * 2 * len(x)


ARCHITECTURES = {
    "resnet18": ["layer4", "layer4.0.conv1", "layer3.1.bn1", "layer2"],
    "densenet121": ["features.denseblock4.denselayer8.conv1", "features.denseblock4", "features.transition2"],
    "googlenet": ["inception5a.branch2", "inception5b", "inception4b.branch3.0"],
    "mobilenet_v3_small": ["features.9.block.1", "features.12", "features.8.block.2"],
    "efficientnet_b0": ["features.6.1.block.1", "features.8", "features.7"],
    "convnext_tiny": ["features.7.1", "features.5.3", "features.7"],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_architectures(name: str, replays: list[int]) -> None:
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():  # as initialised, some barely let the picture through
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    x = torch.randn(2, 3, 64, 64)
    for layer in ARCHITECTURES[name]:
        replays.clear()
        assert_replayed(model, layer, x, replays, rtol=1e-4)
    first = Counted(next(module for module in model.modules() if isinstance(module, nn.Conv2d)))
    layer = ARCHITECTURES[name][0]
    trace = tp.trace(model, x, layer=layer, gradients=False, ablations=True)
    trace.ablate(other, 5, batch=3)
    trace.with_target(tp.targets.Classes([1, 2])).ablate(other, 5, batch=3)
    assert first.count == 1  # for the trace, two questions and all of their chunks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Shared, "block"),
        (Shared, "block.2"),
        (WritesInPlace, "layer"),
        (OverwritesEarly, "layer"),
        (Containers, "layer"),
        (SequenceFirst, "layer"),
        (CallsForward, "layer"),
        (PooledNet, "act"),
        (PooledNet, "features.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", value),
)
def test_networks_made_to_break_it(make: Callable[[], nn.Module], layer: str, size: int, replays: list[int]) -> None:
    x = torch.randn(size, 3, 8, 8, dtype=torch.float64)
    assert_replayed(make().double().eval(), layer, x, replays, rtol=1e-10)


class TestHooksAndForwards:
    def test_a_users_hook_upstream_is_applied_once(self, replays: list[int]) -> None:
        model = PooledNet().double().eval()
        model.features[0].register_forward_hook(lambda module, args, output: output * 3 + 1)
        model.features[2].register_forward_hook(lambda module, args, output: output.mul_(2).sub_(0.1))
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)

    def test_a_users_hook_on_the_layer_itself(self, replays: list[int]) -> None:
        """It has edited what the trace holds; what ablate says the layer returns is not edited again."""
        model = PooledNet().double().eval()
        model.act.register_forward_hook(lambda module, args, output: output.mul_(2))
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)

    def test_an_instances_own_forward_is_used_and_stays(self, replays: list[int]) -> None:
        model = PooledNet().double().eval()
        own = lambda x: torch.tanh(x) * 2  # noqa: E731
        model.features[1].forward = own
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)
        assert model.features[1].forward is own
        assert "forward" not in model.features[0].__dict__

    def test_the_model_is_left_as_found(self) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        trace = tp.trace(model, x, layer="bn", gradients=False, ablations=True)
        trace.ablate(other, 4)
        assert state_of(model) == before
        for error in (RuntimeError("broken"), KeyboardInterrupt()):

            def edit(given: Tensor, rows: Tensor, trials: Tensor, error: BaseException = error) -> Tensor:
                raise error

            with pytest.raises(type(error)):
                trace.ablate(edit, 4)
            assert state_of(model) == before

    def test_the_model_fails_in_the_middle_of_a_replay(self) -> None:
        model = messy().eval()
        trace = tp.trace(model, torch.randn(1, 3, 8, 8), layer="bn", gradients=False, ablations=True)
        trace.ablate(other, 4)
        before = state_of(model)
        model.fail_with = RuntimeError("broken")
        with pytest.raises(RuntimeError, match="broken"):
            trace.ablate(other, 4)
        assert state_of(model) == before
        model.fail_with = None
        trace.ablate(other, 4)  # and it is not held against the replay
