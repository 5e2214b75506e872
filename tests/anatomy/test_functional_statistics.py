"""Statistics of rectifiers that modules call as functions, against the tensors themselves in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp

BATCHES = [
    torch.randn(size, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) for size in (2, 5, 3)
]


class Block(nn.Module):
    """Calls relu twice as a function and clamp once, around two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        first = F.relu(self.one(x))
        second = self.two(first).relu()
        return {"relu()[0]": first, "relu()[1]": second, "clamp()": (second - 1).clamp(min=0)}

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)["clamp()"]


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


def test_each_call_has_the_numbers_of_its_tensor(block: Block) -> None:
    found = tp.statistics(block, BATCHES)
    assert [row.name for row in found] == ["one", "relu()[0]", "two", "relu()[1]", "clamp()"]
    with torch.no_grad():
        parts = [block.parts(x) for x in BATCHES]
    for name in ("relu()[0]", "relu()[1]", "clamp()"):
        values = torch.cat([each[name] for each in parts])
        row = found[name]
        assert (row.type, row.gradient, row.output.calls) == ("function", None, 3)
        torch.testing.assert_close(row.output.mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(row.output.std, values.std((0, 2, 3), correction=0))
        torch.testing.assert_close(row.output.zero_share, (values == 0).double().mean((0, 2, 3)))


def test_with_a_channel_axis_and_without(block: Block) -> None:
    found = tp.statistics(block, BATCHES, channel_axis=1)
    assert [row.output.channels for row in found if row.type == "function"] == [4, 4, 4]
    assert found["relu()[0]"].output.summary() == tp.statistics(block, BATCHES)["relu()[0]"].output.summary()


def test_those_that_excluded_modules_call_are_left_out(block: Block) -> None:
    both = nn.Sequential(block, nn.Conv2d(4, 3, 1).double(), Block().double())
    names = [row.name for row in tp.statistics(both, BATCHES, exclude="0")]
    assert not [name for name in names if name.startswith("0.") and "()" in name]
    assert "2.relu()[0]" in names


def test_named_layers_have_none(block: Block) -> None:
    assert [row.name for row in tp.statistics(block, BATCHES, "one")] == ["one"]


def test_a_part_that_runs_again_in_the_backward_pass_counts_once(block: Block) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False)

    found = tp.statistics(Checkpointed(), BATCHES, loss=lambda output: output.square().sum())
    assert found["block.relu()[0]"].output.calls == len(BATCHES)
    assert "block.relu()[2]" not in [row.name for row in found]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_number_of_calls_that_depends_on_the_batch(batch_size: int) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(len(x)):
                x = F.relu(self.conv(x))
            return x

    found = tp.statistics(Grows().double(), [BATCHES[1][:batch_size], BATCHES[1]])
    calls = [row.output.calls for row in found if row.type == "function"]
    assert calls == [2] * batch_size + [1] * (5 - batch_size)


def test_a_rectifier_in_a_hook_is_the_output_of_its_layer(block: Block) -> None:
    block.one.register_forward_hook(lambda module, args, output: F.relu(output) - 0.1)
    found = tp.statistics(block, BATCHES)
    assert [row.name for row in found] == ["one", "relu()[0]", "two", "relu()[1]", "clamp()"]
    assert found["one"].output.summary().min == pytest.approx(-0.1)
