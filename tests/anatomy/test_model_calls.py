"""The functions of anatomy on models that take more than one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.model_calls import FIRST, SECOND, OfOne, Sided, rest


@pytest.fixture(scope="module")
def sided() -> Sided:
    torch.manual_seed(0)
    return Sided().double().eval()


class TestAnatomy:
    """What looks inside takes the same calls, and leaves the caller's tensors as they were."""

    LOOKS: tuple[tuple[str, Callable[[nn.Module, Any], Any]], ...] = (
        ("layers", lambda model, given: [(row.name, row.output) for row in tp.layers(model, given).rows]),
        ("activations", lambda model, given: tp.activations(model, given, "*conv")),
        ("plan", lambda model, given: [(row.output, row.nbytes) for row in tp.plan(model, given, "*conv").rows]),
        ("statistics", lambda model, given: [r.output.summary() for r in tp.statistics(model, [given], "*conv").rows]),
        ("gradient_flow", lambda model, given: tp.gradient_flow(model, given, 1).loss),
    )

    @pytest.mark.parametrize(("name", "look"), LOOKS, ids=[name for name, _ in LOOKS])
    def test_is_the_wrapped_model(self, sided: Sided, name: str, look: Callable[[nn.Module, Any], Any]) -> None:
        sided.writes = name != "gradient_flow"  # such a model cannot be trained
        pair, kept = (FIRST[:1].clone(), SECOND[:1].clone()), rest([0])
        got = look(sided, tp.Arguments(pair, kept))
        expected = look(OfOne(sided, "0", 0).eval(), FIRST[:1])
        if name == "layers":
            assert [(f"model.{layer}", said) for layer, said in got] == expected[1:]
        elif name == "activations":
            assert torch.equal(got["conv"], expected["model.conv"])
        else:
            assert got == expected
        assert torch.equal(pair[0], FIRST[:1])
        assert torch.equal(kept["meta"]["table"], rest([0])["meta"]["table"])

    def test_of_a_plain_tensor_neither(self) -> None:
        class Writes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.my_conv = nn.Conv2d(3, 4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.my_conv(x.mul_(2))

        x = torch.randn(2, 3, 8, 6)
        before = x.clone()
        for _, look in self.LOOKS[:4]:
            look(Writes().eval(), x)
        assert torch.equal(x, before)
