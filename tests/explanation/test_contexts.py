"""Heatmaps of transformers in every gradient mode, under autocast, after Ctrl-C, and in two threads."""

from __future__ import annotations

import copy
import signal
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import state_of
from networks.transformers import hooked, inputs, made
from torchpeek.errors import Notice

# Other packages' own, as they are imported and made; what is done with the networks is under errors again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]

ATTENTION = ("rollout", "legrad", "transformer-attribution")


def everything(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Methods of all kinds."""
    methods = ["gradcam", "layercam", "eigencam", "recipro-cam", *ATTENTION]
    found = tp.compare(model, x, methods=methods, target=[[0, 3]] * len(x))
    return {name: heatmap.values for name, heatmap in found.items()}


class TestContexts:
    """Whatever the model and the caller are in the middle of."""

    @pytest.fixture(scope="class", params=["vit", "torchvision vit", "hf vit"])
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    def expected(self, name: str) -> dict[str, Tensor]:
        return everything(made(name), inputs(name))

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradient_modes(self, name: str, expected: dict[str, Tensor], context: Any, frozen: bool) -> None:
        model = copy.deepcopy(made(name)).requires_grad_(not frozen)
        with context():
            found = everything(model, inputs(name))
        for method, values in found.items():
            torch.testing.assert_close(values, expected[method], rtol=1e-8, atol=1e-12)
        assert all(parameter.requires_grad is not frozen for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_in_train_mode_and_left_as_found(self, name: str, expected: dict[str, Tensor]) -> None:
        model = copy.deepcopy(made(name)).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        model.register_forward_hook(lambda module, args, output: None)
        before = state_of(model)
        found = everything(model, inputs(name))
        assert state_of(model) == before
        for method, values in found.items():
            torch.testing.assert_close(values, expected[method], rtol=1e-8, atol=1e-12)

    def test_autocast(self, name: str) -> None:
        """To bfloat16's 8 bits; the maps are float32."""
        model, x = copy.deepcopy(made(name)).float(), inputs(name).float()
        full = everything(model, x)
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # a replay may round otherwise than a whole pass, which is then run
            half = everything(model, x)
        for method, values in half.items():
            assert values.dtype == torch.float32
            cosine = torch.cosine_similarity(values.flatten(2), full[method].flatten(2), dim=2)
            assert float(cosine.min()) > 0.9, method

    @pytest.mark.parametrize("method", ["gradcam", "recipro-cam", *ATTENTION])
    def test_ctrl_c(self, name: str, method: str) -> None:
        """Inside of the last block; the next call is as if nothing had been."""
        model, x = copy.deepcopy(made(name)), inputs(name)
        expected = tp.explain(model, x, method=method, target=1).values
        before, calls = state_of(model), []

        def interrupt(module: nn.Module, args: Any, output: Any) -> None:
            calls.append(module)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)

        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        with hooked(norms[-2], interrupt), pytest.raises(KeyboardInterrupt):
            for _ in range(3):
                tp.explain(model, x, method=method, target=1)
        assert state_of(model) == before
        assert torch._C._len_torch_function_stack() == 0
        torch.testing.assert_close(tp.explain(model, x, method=method, target=1).values, expected)

    def test_two_threads(self, name: str, expected: dict[str, Tensor]) -> None:
        """At one model, with different pictures; a third runs the model itself."""
        model, x = copy.deepcopy(made(name)), inputs(name)
        with torch.no_grad():
            said = model(x)
        found: dict[int, dict[str, Tensor]] = {}
        wrong: list[object] = []
        done = threading.Event()

        def explain(number: int) -> None:
            try:
                found[number] = everything(model, x if number == 0 else x.flip(0))
            except BaseException as error:
                wrong.append(error)

        def run() -> None:
            while not done.is_set():
                with torch.no_grad():
                    now = model(x)
                same = now if isinstance(now, Tensor) else now.logits
                if not torch.allclose(same, said if isinstance(said, Tensor) else said.logits):
                    wrong.append("another output")

        threads = [threading.Thread(target=explain, args=(number,)) for number in range(2)]
        other = threading.Thread(target=run)
        for thread in (other, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        other.join()
        assert not wrong
        for method, values in expected.items():
            torch.testing.assert_close(found[0][method], values, rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(found[1][method], values.flip(0), rtol=1e-8, atol=1e-12)
