"""record() of one call of a layer, against a recording of all its calls and plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks.several_calls import Frames, SharedAct, Siamese
from replicas.calls import outputs_and_gradients
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, NotFired

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> SharedAct:
    torch.manual_seed(0)
    return SharedAct().double()


class TestOneCall:
    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("call", range(-3, 3))
    def test_values_and_gradients(self, net: SharedAct, call: int, frozen: bool) -> None:
        expected = outputs_and_gradients(net, (X,), net.act, lambda y: y[:, 1].sum())
        net.requires_grad_(not frozen)
        with tp.record(net, [f"act[{call}]", "two"], inputs=True, gradients=True) as tape:
            net(X)[:, 1].sum().backward()
        assert list(tape) == [f"act[{call}]", "two"] or list(tape) == ["two", f"act[{call}]"]
        (found,) = tape[f"act[{call}]"]
        torch.testing.assert_close(found.output, expected[call][0])
        torch.testing.assert_close(found.grad_output, expected[call][1])
        torch.testing.assert_close(found.output, torch.nn.functional.softplus(found.input))
        if frozen and call % 3 == 0:  # what comes in needs no gradient
            assert found.grad_input is None
        else:
            torch.testing.assert_close(found.grad_input, found.grad_output * torch.sigmoid(found.input))

    @pytest.mark.parametrize("call", range(-3, 3))
    def test_grad_after_the_block(self, net: SharedAct, call: int) -> None:
        expected = outputs_and_gradients(net, (X,), net.act, lambda y: y[:, 1].sum())
        with tp.record(net, f"act[{call}]", gradients=True) as tape:
            y = net(X)
        gradients = tape.grad(y[:, 1].sum())
        assert list(gradients) == [f"act[{call}]"]
        torch.testing.assert_close(gradients[f"act[{call}]"], expected[call][1])

    def test_with_the_whole_layer(self, net: SharedAct) -> None:
        with tp.record(net, ["act", "act[2]", "act[-2]"]) as tape:
            net(X)
        assert [len(tape[name]) for name in tape] == [3, 1, 1]
        assert torch.equal(tape["act[2]"].output, tape["act"][2].output)
        assert torch.equal(tape["act[-2]"].output, tape["act"][1].output)

    def test_a_glob_selects_that_call_of_each(self) -> None:
        model = Siamese().double()
        with tp.record(model, "backbone.layer*.0[1]") as tape:
            model(X, -X)
        assert list(tape) == ["backbone.layer1.0[1]", "backbone.layer4.0[1]"]
        assert torch.equal(tape["backbone.layer1.0[1]"].output, model.backbone.layer1[0](-X))

    def test_only_that_call_is_stored(self, net: SharedAct) -> None:
        sizes = {}
        for layers in ("act[1]", "act[-1]", "act"):
            with torch.no_grad(), tp.record(net, layers) as tape:
                net(X)
            sizes[layers] = tape.nbytes
        small, large = 2 * 6 * 4 * 4 * 8, 2 * 4 * 8 * 8 * 8
        assert sizes == {"act[1]": small, "act[-1]": small, "act": large + 2 * small}


class TestPasses:
    @pytest.mark.parametrize("call", [1, -2])
    def test_calls_are_counted_anew_in_each_pass(self, net: SharedAct, call: int) -> None:
        inputs = [X, 2 * X, 3 * X]
        with tp.record(net, f"act[{call}]") as last, tp.record(net, f"act[{call}]", passes="all") as every:
            outputs = []
            for x in inputs:
                net(x)
                outputs.append(last[f"act[{call}]"].output)
        assert len(last[f"act[{call}]"]) == 1
        assert len(every[f"act[{call}]"]) == 3
        for x, one, of_all in zip(inputs, outputs, every[f"act[{call}]"], strict=True):
            expected = net.act(net.two(net.act(net.one(x))))
            torch.testing.assert_close(one, expected)
            torch.testing.assert_close(of_all.output, expected)

    def test_passes_of_another_number_of_calls(self) -> None:
        model, tapes = Frames().double(), {}
        frames = [torch.randn(1, count, 3, 8, 8, dtype=torch.float64) for count in (4, 2, 3)]
        with tp.record(model, ["encoder.layer4[-1]", "encoder.layer4[2]"], passes="all") as tape:
            for each in frames:
                model(each)
        tapes = {name: [call.output for call in tape[name]] for name in tape}
        whole = [[model.encoder.layer4(model.encoder.layer1(frame)) for frame in each.unbind(1)] for each in frames]
        # In train mode the statistics of the batch are used, so the values do not depend on the order of passes.
        for found, expected in zip(tapes["encoder.layer4[-1]"], [each[-1] for each in whole], strict=True):
            torch.testing.assert_close(found, expected)
        for found, expected in zip(tapes["encoder.layer4[2]"], [whole[0][2], whole[2][2]], strict=True):
            torch.testing.assert_close(found, expected)

    def test_a_pass_stops_after_the_call(self, net: SharedAct) -> None:
        with tp.record(net, ["act[1]", "three"], stop=True) as tape:
            net(X)
        assert tape["three"].output is not None
        with tp.record(net, ["act[0]"], stop=True) as tape:
            net(X)
            pytest.fail("the pass went on")
        for _ in range(2):
            with tp.record(net, "act[-1]", stop=True) as tape:
                y = net(X)
        assert y.shape == (2, 5)
        torch.testing.assert_close(net.head(tape["act[-1]"].output.mean((2, 3))), y)

    def test_a_call_that_raises_counts(self, net: SharedAct) -> None:
        with tp.record(net, "act[0]", inputs=True) as tape:
            with pytest.raises(RuntimeError):
                net(X[:, :1])
            net(X)
        torch.testing.assert_close(tape["act[0]"].input, net.one(X))

    def test_parts_of_the_model_without_a_pass(self, net: SharedAct) -> None:
        with tp.record(net, "act[1]") as tape:
            net.act(X)
            net.act(2 * X)
        torch.testing.assert_close(tape["act[1]"].output, net.act(2 * X))


class TestKeep:
    def test_a_policy_for_a_layer_is_for_its_calls(self, net: SharedAct) -> None:
        with tp.record(net, ["act[0]", "act[-1]"], keep={"act[-1]": tp.keep.gap, "act": lambda tensor: 7}) as tape:
            net(X)
        assert tape["act[-1]"].output.shape == (2, 6)
        assert tape["act[0]"].output == 7
        with pytest.raises(LayerNotFound, match="no layer of that selection is recorded"):
            tp.record(net, "act[0]", keep={"act[1]": tp.keep.gap})

    def test_running_statistics_of_one_call(self, net: SharedAct) -> None:
        with tp.record(net, ["act[1]", "act"], keep=tp.keep.Running()) as tape:
            net(X)
            net(2 * X)
        found, expected = tape["act[1]"].output, tape["act"][1].output
        assert torch.equal(found.mean, expected.mean)
        assert found.calls == expected.calls == 2

    @pytest.mark.parametrize("keep", [tp.keep.Running(), tp.keep.Callback(lambda captured: 1)])
    def test_what_reads_at_once_cannot_count_from_the_end(self, net: SharedAct, keep) -> None:
        with pytest.raises(InputError, match=r"act\[-1\].*Count from the start: 'act\[0\]'"):
            tp.record(net, "act[-1]", keep=keep)


class TestErrors:
    @pytest.mark.parametrize("call", [3, -4])
    @pytest.mark.parametrize("gradients", [False, True])
    def test_a_call_that_did_not_take_place(self, net: SharedAct, call: int, gradients: bool) -> None:
        with tp.record(net, f"act[{call}]", gradients=gradients) as tape:
            net(X)
        with pytest.raises(NotFired, match=r"'act' was called 3 times in the pass; allowed: 'act\[0\]' to 'act\[2\]'"):
            _ = tape[f"act[{call}]"].output

    def test_a_call_of_a_layer_that_is_recorded_whole(self, net: SharedAct) -> None:
        with tp.record(net, "act") as tape:
            net(X)
        with pytest.raises(LayerNotFound, match=r"read that call as \['act'\]\[1\]"):
            _ = tape["act[1]"]

    def test_a_checkpointed_part_runs_twice(self) -> None:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act, self.lin = nn.Tanh(), nn.Linear(3, 3)

            def forward(self, x):
                x = self.act(self.lin(x))
                return checkpoint(lambda x: self.lin(self.act(self.lin(x))), x, use_reentrant=False)

        model, x = Checkpointed().double(), torch.randn(2, 3, dtype=torch.float64)
        for call in (0, 1, -1):
            with tp.record(model, f"act[{call}]", gradients=True) as tape:
                model(x).sum().backward()
            hidden = model.act(model.lin(x)).detach().requires_grad_()
            last = model.act(model.lin(hidden))
            last.retain_grad()
            model.lin(last).sum().backward()
            torch.testing.assert_close(tape[f"act[{call}]"].grad_output, hidden.grad if call == 0 else last.grad)
        model.requires_grad_(False)
        with tp.record(model, "act[1]", gradients=True), pytest.raises(GradUnavailable, match="checkpointed"):
            model(x).sum().backward()
