"""What a layer returned: the captured values, and where the graph begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks import InPlaceNet, PooledNet, SplitNet, state_of
from networks.split import X, by_hand
from torchpeek.engine.targets import Classes, Predicted, TopClasses
from torchpeek.errors import GradUnavailable, NotConnected, Notice
from tracing import traced


class TestGraphStart:
    def test_nothing_before_the_layer_is_recorded(self, net: SplitNet) -> None:
        seen = []
        net.prefix[0].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
        traced(net, X, ["prefix"], Predicted())
        assert seen == [False, False]  # the second pass checks that the layer depends on the picture

    def test_no_parameter_gets_a_gradient(self, net: SplitNet) -> None:
        _ = traced(net, X, ["prefix"], TopClasses(2)).gradients
        assert all(parameter.grad is None for parameter in net.parameters())

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_anywhere(self, net: SplitNet, context, frozen) -> None:
        """Peers: a frozen model, or no_grad, is a crash or a wrong name for the error."""
        net.requires_grad_(not frozen)
        with context():
            trace = traced(net, X, ["prefix"], Classes([1, 2]))
            gradients = trace.gradients
        torch.testing.assert_close(gradients, by_hand(net.requires_grad_(), [[1, 2]] * 2)[1], rtol=1e-12, atol=1e-15)

    def test_an_inference_tensor_as_input(self, net: SplitNet) -> None:
        with torch.inference_mode():
            x = X.clone()
        torch.testing.assert_close(
            traced(net, x, ["prefix"], Classes([1])).gradients,
            by_hand(net, [[1]] * 2)[1],
            rtol=1e-12,
            atol=1e-15,
        )

    def test_a_model_that_turns_gradients_off_in_a_part(self) -> None:
        class Frozen(PooledNet):
            def forward(self, x):
                with torch.no_grad():
                    a = self.act(self.features(x))
                return self.head(a.mean((2, 3)))

        torch.manual_seed(0)
        model = Frozen().eval()
        torch.manual_seed(0)
        plain = PooledNet().eval()
        x = torch.randn(1, 3, 5, 5)
        with pytest.warns(Notice, match="turns gradients off"):
            trace = traced(model, x, ["act"], Classes([2]))
        torch.testing.assert_close(trace.gradients, traced(plain, x, ["act"], Classes([2])).gradients)

    def test_a_model_that_detaches(self) -> None:
        class Detached(PooledNet):
            def forward(self, x):
                return self.head(self.act(self.features(x)).detach().mean((2, 3)))

        with pytest.raises(NotConnected, match="does not depend on 'act'"):
            _ = traced(Detached().eval(), torch.randn(1, 3, 5, 5), ["act"], Classes([2])).gradients
        with pytest.warns(Notice), pytest.raises(NotConnected, match="detaches it"):
            traced(Detached().requires_grad_(False), torch.randn(1, 3, 5, 5), ["act"], Classes([2]))

    def test_an_unused_layer(self) -> None:
        class Auxiliary(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.aux = nn.Conv2d(3, 2, 3)

            def forward(self, x):
                self.aux(x)
                return super().forward(x)

        with pytest.raises(NotConnected, match="'aux'"):
            _ = traced(Auxiliary(), torch.randn(1, 3, 5, 5), ["aux"], Predicted()).gradients


class TestCaptured:
    def test_in_place_operations_after_the_layer(self) -> None:
        """Peers: detach() shares storage, so the map is of what came later."""
        model = InPlaceNet().double().eval()
        x = torch.randn(2, 3, 5, 5).double()
        overwritten = traced(model, x, ["conv"], Classes([0, 3]))
        model.clean = True
        clean = traced(model, x, ["conv"], Classes([0, 3]))
        assert (overwritten.activations < 0).any(), "the ReLU did not reach the capture"
        assert torch.equal(overwritten.activations, clean.activations)
        torch.testing.assert_close(overwritten.gradients, clean.gradients, rtol=1e-13, atol=0)

    def test_in_place_without_gradients(self) -> None:
        model = InPlaceNet().eval()
        x = torch.randn(1, 3, 5, 5)
        trace = traced(model, x, ["conv"], Predicted(), gradients=False)
        torch.testing.assert_close(trace.activations.squeeze(1), model.conv(x).detach())

    def test_a_residual_that_adds_in_place(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.skip, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Identity(), nn.Linear(4, 3)

            def forward(self, x):
                a = self.a(x)
                shortcut = self.skip(a)  # the very tensor that a is
                a += 1
                shortcut = shortcut * 2
                return self.head((a + shortcut).mean((2, 3)))

        model = Residual().eval()
        x = torch.randn(1, 3, 5, 5)
        trace = traced(model, x, ["skip"], Classes([1]))
        torch.testing.assert_close(trace.activations.squeeze(1), model.a(x).detach())

    def test_a_users_hook_that_changes_the_output_comes_first(self) -> None:
        model = PooledNet().eval()
        model.act.register_forward_hook(lambda module, args, output: output + 7)
        trace = traced(model, torch.randn(1, 3, 4, 4), ["act"], Predicted())
        assert trace.activations.min() >= 7


class TestCheckpointing:
    """A part that runs once more on the way back."""

    class Net(PooledNet):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.bn, self.reentrant = nn.BatchNorm2d(6), reentrant

        def forward(self, x):
            a = self.act(self.features(x))
            return self.head(checkpoint(self.bn, a, use_reentrant=self.reentrant).mean((2, 3)))

    def test_runs_as_the_first_time(self) -> None:
        model = self.Net(reentrant=False).train()
        x = torch.randn(2, 3, 5, 5)
        before = state_of(model)
        gradients = traced(model, x, ["act"], TopClasses(2)).gradients
        assert state_of(model) == before
        model.eval()
        a = model.act(model.features(x)).detach().requires_grad_()
        (expected,) = torch.autograd.grad(model.head(model.bn(a).mean((2, 3))).max(1).values.sum(), a)
        torch.testing.assert_close(gradients[:, 0], expected)

    def test_what_torch_cannot_do_is_named(self) -> None:
        model = self.Net(reentrant=True)
        with pytest.raises(GradUnavailable, match="checkpointed part"):
            _ = traced(model, torch.randn(2, 3, 5, 5), ["act"], Predicted()).gradients
