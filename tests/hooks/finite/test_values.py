"""What is remembered of a tensor, and how it is written: as in all other tables and texts."""

from __future__ import annotations

import math

import pytest
import torch

from torchpeek.hooks.finite.values import Value, contents, extremes
from torchpeek.tensor_formats import shape_text, type_text


class TestTexts:
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 1, 1)])
    def test_a_shape_is_written_as_everywhere(self, shape: tuple[int, ...]) -> None:
        tensor = torch.full(shape, 2.0, dtype=torch.float64)
        assert str(Value(tensor, None)) == f"{shape} float64 in [2, 2]"
        assert contents(tensor).startswith(f"{shape} float64 ")

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
    def test_of_a_nested_tensor(self, layout: torch.layout) -> None:
        nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=layout)
        assert str(Value(nested, None)) == "nested (2, *, 3) float32 in [0, 1]"
        assert contents(nested).startswith(f"{shape_text(nested)} {type_text(nested)}")

    def test_of_a_sparse_tensor(self) -> None:
        assert contents(torch.eye(2).to_sparse()).startswith("(2, 2) float32, sparse_coo ")

    def test_of_what_is_not_finite(self) -> None:
        tensor = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 3.0])
        assert contents(tensor) == "(5,) float32 with 1 NaN, 1 +inf, 1 -inf of 5 elements, the others in [1, 3]"


@pytest.mark.parametrize("kind", ["dense", "complex", "sparse", "nested"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_extremes_take_no_part_in_autograd(kind: str) -> None:
    """Without a `no_grad` block, which an exception from outside could leave on."""
    tensor = torch.tensor([[1.0, -2.0]], requires_grad=True)
    made = {
        "dense": lambda: tensor * 1,
        "complex": lambda: torch.complex(tensor, tensor),
        "sparse": lambda: (tensor * 1).to_sparse(),
        "nested": lambda: torch.nested.as_nested_tensor([tensor[0]], layout=torch.jagged),
    }[kind]()
    assert made.requires_grad
    low, high = extremes(made) or (tensor, tensor)
    assert (low.item(), high.item(), low.requires_grad) == (-2.0, 1.0, False)


class TestValue:
    def test_a_view_has_the_range_and_its_own_shape(self) -> None:
        tensor = torch.tensor([[1.0, -2.0]])
        view = Value(tensor, None).view(tensor.T)
        assert (view.range, view.sizes) == ((-2.0, 1.0), (2, 1))
