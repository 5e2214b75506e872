"""edit() of one call of a layer, against the network with that call written out."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.several_calls import SharedAct, Siamese, Tied
from replicas.calls import changing
from torchpeek.errors import InputError, Notice

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> SharedAct:
    torch.manual_seed(0)
    return SharedAct().double()


class TestOneCall:
    @pytest.mark.parametrize("call", range(3))
    def test_outputs(self, net: SharedAct, call: int) -> None:
        expected = []
        for x in (X, 3 * X):
            with changing(net.act, call, lambda output: output * 2):
                expected.append(net(x))
        clean = net(X)
        with tp.edit(net, outputs={f"act[{call}]": lambda output: output * 2}):
            torch.testing.assert_close([net(X), net(3 * X)], expected)
        assert torch.equal(net(X), clean)

    @pytest.mark.parametrize("call", range(3))
    def test_inputs(self, net: SharedAct, call: int) -> None:
        with changing(net.act, call, lambda output: torch.zeros_like(output)):
            expected = net(X)
        with tp.edit(net, inputs={f"act[{call}]": lambda x: torch.full_like(x, -1e9)}):
            torch.testing.assert_close(net(X), expected)

    @pytest.mark.parametrize("call", range(3))
    def test_gradients(self, call: int) -> None:
        """A gradient of zero is that of the network that detaches there."""
        torch.manual_seed(0)
        net, x = Tied().double(), X.clone().requires_grad_()
        with changing(net.block, call, lambda output: output.detach()):
            (expected,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
        (clean,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
        with tp.edit(net, gradients={f"block[{call}]": torch.zeros_like}):
            (found,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, clean)

    def test_several_calls_and_the_whole_layer(self, net: SharedAct) -> None:
        numbers: list[int] = []

        def noting(number: int):
            return lambda output: (numbers.append(number), output)[1]

        edits = {"act[2]": noting(2), "act[0]": noting(0), "act": noting(9)}
        with tp.edit(net, outputs=edits):
            net(X)
            net(X)
        assert numbers == [0, 9, 9, 2, 9] * 2

    def test_one_picture_of_a_siamese_network(self) -> None:
        model = Siamese().double().eval()
        with tp.edit(model, outputs={"backbone[0]": torch.zeros_like}):
            found = model(X, -X)
        embedded = torch.cat([torch.zeros(2, 8, dtype=torch.float64), model.backbone(-X)], 1)
        torch.testing.assert_close(found, model.fc(torch.tanh(embedded)))


class TestPasses:
    def test_after_a_pass_that_raised(self, net: SharedAct) -> None:
        with changing(net.act, 0, lambda output: output * 2):
            expected = net(X)
        with tp.edit(net, outputs={"act[0]": lambda output: output * 2}):
            with pytest.raises(RuntimeError):
                net(X[:, :1])
            torch.testing.assert_close(net(X), expected)

    def test_a_model_that_calls_itself(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act = nn.Identity()

            def forward(self, x: Tensor, again: bool = True) -> Tensor:
                x = self.act(x)
                return self(x, again=False) if again else x

        with tp.edit(model := Twice(), outputs={"act[1]": lambda output: output + 1}):
            assert [model(torch.zeros(1)).item() for _ in range(2)] == [1, 1]

    def test_threads_count_for_themselves(self, net: SharedAct) -> None:
        with changing(net.act, 1, lambda output: output * 2):
            expected = net(X)
        found: list[Tensor] = []
        with tp.edit(net, outputs={"act[1]": lambda output: output * 2}):
            threads = [threading.Thread(target=lambda: found.extend(net(X) for _ in range(5))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 20
        for each in found:
            torch.testing.assert_close(each, expected)


class TestErrors:
    def test_a_call_that_did_not_take_place_is_noticed(self, net: SharedAct) -> None:
        message = r"did nothing: there is no call 'act\[3\]'.*'act\[0\]' to 'act\[2\]'"
        with pytest.warns(Notice, match=message), tp.edit(net, outputs={"act[3]": torch.zeros_like}):
            net(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with tp.edit(net, outputs={"act[2]": torch.zeros_like}):
                net(X)

    def test_a_call_cannot_be_counted_from_the_end(self, net: SharedAct) -> None:
        message = r"'act\[-1\]' is counted from the end.*'act\[0\]' is the first"
        with pytest.raises(InputError, match=message), tp.edit(net, outputs={"act[-1]": torch.zeros_like}):
            pytest.fail("opened")
        assert not any(module._forward_hooks for module in net.modules())


def test_calls_are_counted_anew_after_a_pass_that_no_hook_saw_the_end_of() -> None:
    """An early stop and Ctrl-C are no Exceptions, so no hook of the model is told that its pass ended."""
    interrupted = [True]

    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if interrupted[0]:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Interrupted()).double()
    x = torch.ones(1, 2, dtype=torch.float64)
    with tp.edit(model, outputs={"0[0]": lambda output: output * 0 + 7}):
        for _ in range(3):
            with tp.record(model, "1", stop=True) as tape:
                model(x)
            assert tape["1"].output.tolist() == [[7, 7]]
        with pytest.raises(KeyboardInterrupt):
            model(x)
        interrupted[0] = False
        assert model(x).tolist() == [[7, 7]]
        assert model(x).tolist() == [[7, 7]]
