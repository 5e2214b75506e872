"""Which layers depend on the picture, and the change of the picture that shows it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchpeek.engine import as_model_call
from torchpeek.engine.layout_inference.input_dependence import changed_picture, digest, unaffected_layers


class TestChangedPicture:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(
        "picture",
        [
            torch.rand(2, 3, 8, 8),
            torch.randn(1, 3, 8, 8),
            torch.zeros(2, 3, 8, 8),
            torch.ones(1, 1, 4, 4),
            255 * torch.rand(1, 3, 8, 8),
            torch.rand(1, 2, 50),
        ],
    )
    def test_stays_in_range_and_changes_nearly_everywhere(self, picture: Tensor, dtype: torch.dtype) -> None:
        picture = picture.to(dtype)
        changed = changed_picture(picture)
        assert changed.dtype == picture.dtype
        assert changed.shape == picture.shape
        assert (changed != picture).double().mean() > 0.9
        highest = picture.max().clamp(min=0) + (0.1 if not picture.any() else 0)
        assert changed.max() <= highest
        assert changed.min() >= picture.min().clamp(max=0)

    def test_indices_are_other_indices_of_the_picture(self) -> None:
        picture = torch.tensor([[[[0, 1], [2, 3]]]])
        changed = changed_picture(picture)
        assert changed.dtype == picture.dtype
        assert not torch.equal(changed, picture)
        assert set(changed.flatten().tolist()) <= set(picture.flatten().tolist())
        assert not torch.equal(changed_picture(torch.full((1, 1, 4, 4), 7)), torch.full((1, 1, 4, 4), 7))

    def test_depends_on_the_picture_alone(self) -> None:
        picture = torch.rand(1, 3, 8, 8)
        torch.manual_seed(1)
        first = changed_picture(picture)
        torch.manual_seed(2)
        assert torch.equal(first, changed_picture(picture))


class TestDigest:
    def test_of_equal_tensors(self) -> None:
        tensor = torch.randn(3, 5, 7)
        assert digest(tensor) == digest(tensor.clone()) == digest(tensor.mT.contiguous().mT)
        assert digest(torch.zeros(4)) == digest(-torch.zeros(4))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
    def test_of_tensors_that_differ_in_one_bit(self, dtype: torch.dtype) -> None:
        tensor = torch.ones(1000).to(dtype)
        digests = {digest(tensor)}
        for index in range(0, 1000, 50):
            other = tensor.clone()
            other[index] = 1 + torch.finfo(dtype).eps
            digests.add(digest(other))
        assert len(digests) == 21

    def test_of_shapes_and_orders(self) -> None:
        tensor = torch.arange(12.0)
        assert digest(tensor) != digest(tensor.view(3, 4))
        assert digest(tensor) != digest(tensor.flip(0))
        assert digest(tensor) != digest(tensor.double())

    @pytest.mark.parametrize("value", [torch.tensor(True), torch.zeros(0), torch.randn(4).to(torch.float8_e4m3fn)])
    def test_of_other_types(self, value: Tensor) -> None:
        assert digest(value) == digest(value.clone())

    @pytest.mark.filterwarnings("ignore::UserWarning")  # torch will remove quantised tensors
    def test_of_quantised_tensors(self) -> None:
        values = torch.tensor([0.1, 0.2, 0.3])
        one, two = (torch.quantize_per_tensor(each, 0.1, 0, torch.qint8) for each in (values, values.flip(0)))
        assert digest(one) == digest(one.clone()) != digest(two)

    def test_of_what_cannot_be_read(self) -> None:
        for tensor in (torch.empty(3, device="meta"), torch.eye(3).to_sparse()):
            assert digest(tensor) != digest(tensor)


class TestUnaffectedLayers:
    def test_by_calls(self) -> None:
        class Siamese(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

            def forward(self, one: Tensor, two: Tensor) -> Tensor:
                return (self.encoder(one) - self.encoder(two)).abs().mean((1, 2, 3))

        from torchpeek import Arguments

        model, pictures = Siamese().eval(), (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
        for index in (0, 1):
            call = as_model_call(model, Arguments(pictures, picture=str(index)))
            other = 1 - index
            expected = {f"encoder[{other}]", f"encoder.0[{other}]", f"encoder.1[{other}]"}
            assert unaffected_layers(model, call) == expected

    def test_leaves_the_model_and_the_random_state_as_they_were(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
        call = as_model_call(model, torch.rand(2, 3, 8, 8))
        before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        assert unaffected_layers(model, call) == frozenset()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(state, torch.get_rng_state())
        assert all(module.training and not module._forward_hooks for module in model.modules())
