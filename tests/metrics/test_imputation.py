"""Imputation against dense solutions of its definition, identities, and a peer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchpeek.errors import InputError, OptionError
from torchpeek.metrics import imputation
from torchpeek.metrics.imputation import imputed

# By how many axes the neighbour is off: the paper's for pictures, the module's own choice for the others.
WEIGHTS = {1: {1: 1 / 2}, 2: {1: 1 / 6, 2: 1 / 12}, 3: {1: 4 / 56, 2: 2 / 56, 3: 1 / 56}}


pytestmark = pytest.mark.usefixtures("one_thread")


def neighbours(at: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
    for offset in product((-1, 0, 1), repeat=len(shape)):
        other = tuple(a + o for a, o in zip(at, offset, strict=True))
        if any(offset) and all(0 <= o < size for o, size in zip(other, shape, strict=True)):
            yield other, WEIGHTS[len(shape)][sum(map(abs, offset))]


def dense(picture: Tensor, removed: Tensor) -> np.ndarray:
    """The definition, an equation for each removed position: (C, *grid) and (*grid) to (C, *grid)."""
    values, holes = picture.double().numpy().copy(), removed.numpy()
    index = {tuple(map(int, at)): row for row, at in enumerate(np.argwhere(holes))}
    matrix, right = np.zeros((len(index), len(index))), np.zeros((len(index), len(values)))
    for at, row in index.items():
        for other, weight in neighbours(at, holes.shape):
            matrix[row, row] += weight
            if other in index:
                matrix[row, index[other]] -= weight
            else:
                right[row] += weight * values[(slice(None), *other)]
    values[:, holes] = np.linalg.solve(matrix, right).T
    return values


def residuals(pictures: Tensor, removed: Tensor, found: Tensor) -> Tensor:
    """(b, C): norm(A x - b) / norm(b) of pictures (b, C, H, W), in float64, shift by shift."""
    height, width = removed.shape[1:]
    holes = removed.unsqueeze(1).double()
    x, known = F.pad(found.double(), (1, 1, 1, 1)), F.pad(pictures.double() * (1 - holes), (1, 1, 1, 1))
    inside = F.pad(torch.ones_like(holes), (1, 1, 1, 1))
    rest, right = torch.zeros_like(found, dtype=torch.float64), torch.zeros_like(found, dtype=torch.float64)
    for down, aside in product((0, 1, 2), repeat=2):
        if (down, aside) != (1, 1):
            weight = 1 / 6 if 1 in (down, aside) else 1 / 12
            there = (..., slice(down, down + height), slice(aside, aside + width))
            rest += weight * inside[there] * (found.double() - x[there])
            right += weight * known[there]
    return (rest * holes).flatten(2).norm(dim=2) / (right * holes).flatten(2).norm(dim=2)


def blobs(count: int, size: tuple[int, ...], share: float, *, highest: bool = True) -> Tensor:
    """(count, *size): the highest or lowest share of random 7x7 heatmaps, resized as heatmaps are."""
    heat = F.interpolate(torch.rand(count, 1, 7, 7), size=size, mode="bilinear").flatten(1)
    rank = heat.argsort(1, descending=highest).argsort(1)
    return (rank < share * heat.shape[1]).view(count, *size)


def masks(height: int, width: int) -> dict[str, Tensor]:
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    empty = torch.zeros(height, width, dtype=torch.bool)
    inner = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    return {
        "few": torch.rand(height, width) < 0.1,
        "half": torch.rand(height, width) < 0.5,
        "most": torch.rand(height, width) < 0.95,
        "blob": blobs(1, (height, width), 0.7)[0],
        "frame": ~inner,
        "inside": inner,
        "isolated": (rows % 3 == 1) & (columns % 3 == 1),
        "rows": (rows % 4 != 2).expand(height, width),
        "all but a corner": ~((rows == 0) & (columns == width - 1)),
        "all but one": ~((rows == height // 2) & (columns == 2)),
        "one corner": empty | ((rows == height - 1) & (columns == 0)),
    }


class TestDefinition:
    @pytest.mark.parametrize("size", [(12, 16), (13, 9), (2, 21), (1, 17)])
    def test_pictures(self, size: tuple[int, int]) -> None:
        for name, removed in masks(*size).items():
            if removed.all():
                continue
            picture = torch.randn(3, *size, dtype=torch.float64)
            found = imputed(picture[None], removed[None], tolerance=1e-11)[0]
            np.testing.assert_allclose(found, dense(picture, removed), atol=1e-8, err_msg=name)

    @pytest.mark.parametrize("size", [(40,), (7,), (6, 5, 7), (8, 4, 2)])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_signals_and_volumes(self, size: tuple[int, ...], share: float) -> None:
        picture, removed = torch.randn(2, *size, dtype=torch.float64), torch.rand(size) < share
        removed.view(-1)[3] = False
        found = imputed(picture[None], removed[None], tolerance=1e-11)[0]
        np.testing.assert_allclose(found, dense(picture, removed), atol=1e-8)

    def test_by_hand(self) -> None:
        """Ends are known to be 0 and 3: a signal goes straight; the corner of a picture has three neighbours."""
        signal = imputed(torch.tensor([[[0.0, 9.0, 9.0, 3.0]]]), torch.tensor([[False, True, True, False]]))
        assert signal.tolist() == [[[0.0, pytest.approx(1, abs=1e-3), pytest.approx(2, abs=1e-3), 3.0]]]
        corner = imputed(torch.tensor([[[[9.0, 1.0], [2.0, 5.0]]]]), torch.tensor([[[True, False], [False, False]]]))
        assert float(corner[0, 0, 0, 0]) == pytest.approx((2 * 1 + 2 * 2 + 1 * 5) / 5)

    def test_single_precision(self) -> None:
        for name, removed in masks(20, 24).items():
            picture = torch.randn(3, 20, 24)
            found = imputed(picture[None], removed[None])[0]
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found, dense(picture, removed), atol=5e-3, err_msg=name)

    @pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
    def test_peer(self) -> None:
        """What the authors' code gives, in which a mask says what is kept."""
        road = pytest.importorskip("pytorch_grad_cam.metrics.road")
        picture, removed = torch.randn(3, 64, 48), blobs(1, (64, 48), 0.6)
        theirs = road.NoisyLinearImputer(noise=0)(picture, (~removed[0]).float())
        torch.testing.assert_close(imputed(picture[None], removed, tolerance=2e-5)[0], theirs, atol=1e-3, rtol=0)


class TestResidual:
    @pytest.mark.parametrize("highest", [True, False])
    def test_blobs(self, highest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """As promised at every share, and in few rounds: without the coarser grids it would take hundreds."""
        monkeypatch.setattr(imputation, "_ROUNDS", 11)
        pictures = torch.randn(9, 3, 224, 224).cumsum(3) / 10
        shares = range(10, 100, 10)
        removed = torch.cat([blobs(1, (224, 224), share / 100, highest=highest) for share in shares])
        assert removed.flatten(1).float().mean(1).tolist() == pytest.approx([share / 100 for share in shares], abs=1e-4)
        assert residuals(pictures, removed, imputed(pictures, removed)).max() <= 1e-4

    def test_scattered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(imputation, "_ROUNDS", 13)
        pictures = torch.randn(4, 3, 224, 224)
        removed = torch.stack([torch.rand(224, 224) < share for share in (0.1, 0.5, 0.9, 0.999)])
        assert residuals(pictures, removed, imputed(pictures, removed)).max() <= 1e-4

    @pytest.mark.parametrize("size", [(97, 3), (1, 600), (331, 61)])
    def test_odd_shapes(self, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(imputation, "_ROUNDS", 13)
        pictures, removed = torch.randn(1, 2, *size), torch.ones(1, *size, dtype=torch.bool)
        removed[..., ::50, 0] = removed[..., -1, -1] = False
        assert residuals(pictures, removed, imputed(pictures, removed)).max() <= 1e-4

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_smallest_tolerance(self, dtype: torch.dtype) -> None:
        tolerance = 101 * torch.finfo(dtype).eps
        pictures, removed = torch.randn(1, 3, 224, 224, dtype=dtype), blobs(1, (224, 224), 0.8)
        assert residuals(pictures, removed, imputed(pictures, removed, tolerance=tolerance)).max() <= tolerance

    def test_follows_tolerance(self) -> None:
        pictures, removed = torch.randn(1, 1, 50, 50, dtype=torch.float64), blobs(1, (50, 50), 0.5)
        loose, tight = (residuals(pictures, removed, imputed(pictures, removed, tolerance=t)) for t in (1e-2, 1e-9))
        assert 1e-9 < float(loose) <= 1e-2
        assert float(tight) <= 1e-9


class TestIdentities:
    def test_linear_inside(self) -> None:
        """A slope continues through a hole that does not touch the border, whose neighbours lie all around."""
        slope = torch.linspace(-2, 3, 40, dtype=torch.float64).expand(1, 1, 30, 40)
        removed = torch.zeros(1, 30, 40, dtype=torch.bool)
        removed[:, 3:27, 5:39] = True
        assert (imputed(slope, removed, tolerance=1e-10) - slope).abs().max() < 1e-8
        removed[..., 39] = True  # now it does: beyond the border is nothing that could pull the slope on
        assert (imputed(slope, removed, tolerance=1e-10) - slope).abs().max() > 0.1

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    def test_maximum_principle(self, share: float) -> None:
        pictures, removed = torch.rand(6, 2, 45, 64, dtype=torch.float64) ** 4, blobs(6, (45, 64), share)
        removed[3:] = torch.rand(3, 45, 64) < share
        holes = removed.unsqueeze(1)
        low = torch.where(holes, torch.inf, pictures).amin((2, 3))
        high = torch.where(holes, -torch.inf, pictures).amax((2, 3))
        found = imputed(pictures, removed, tolerance=1e-10)
        assert (found.amin((2, 3)) >= low - 1e-8).all()
        assert (found.amax((2, 3)) <= high + 1e-8).all()

    def test_offset_and_scale(self) -> None:
        pictures, removed = torch.randn(2, 3, 40, 40, dtype=torch.float64), blobs(2, (40, 40), 0.6)
        plain = imputed(pictures, removed)  # loosely: the same rounds have to be made, not only the same limit reached
        torch.testing.assert_close(imputed(1000 + pictures, removed) - 1000, plain, atol=1e-9, rtol=0)
        torch.testing.assert_close(imputed(-7 * pictures, removed), -7 * plain, atol=1e-9, rtol=0)

    def test_constant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Solved by the start; what rounding leaves of the residual is not worth a round."""
        monkeypatch.setattr(imputation, "_ROUNDS", 1)
        pictures = torch.tensor([0.1, -3.7, 0.0]).view(1, 3, 1, 1).expand(1, 3, 224, 224)
        removed = blobs(1, (224, 224), 0.9)
        torch.testing.assert_close(imputed(pictures, removed), pictures, atol=1e-5, rtol=0)


class TestIndependence:
    def test_of_the_batch(self) -> None:
        """Easy and hard masks, brighter and darker pictures, one of zeros, all in one chunk."""
        scales, shares = (1, 100, 0.01, 1, 1, 0), (0.1, 0.9, 0.5, 0.99, 0, 0.5)
        pictures = torch.randn(6, 2, 40, 48) * torch.tensor(scales).view(6, 1, 1, 1)
        removed = torch.cat([blobs(1, (40, 48), share) for share in shares])
        together = imputed(pictures, removed)
        for n, scale in enumerate(scales):
            alone = imputed(pictures[n : n + 1], removed[n : n + 1])[0]
            torch.testing.assert_close(together[n], alone, atol=1e-5 * scale, rtol=0)

    def test_of_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pictures, removed = torch.randn(5, 2, 20, 30), blobs(5, (20, 30), 0.7)
        together = imputed(pictures, removed)
        for chunk in (1, 2 * 2 * 20 * 30):
            monkeypatch.setattr(imputation, "_CHUNK", chunk)
            torch.testing.assert_close(imputed(pictures, removed), together, atol=1e-5, rtol=0)

    def test_of_the_colours(self) -> None:
        pictures, removed = torch.randn(2, 4, 33, 40), blobs(2, (33, 40), 0.8)
        pictures[:, 1] *= 1000
        together = imputed(pictures, removed)
        for colour in range(4):
            alone = imputed(pictures[:, colour : colour + 1], removed)
            scale = float(pictures[:, colour].abs().max())
            torch.testing.assert_close(together[:, colour : colour + 1] / scale, alone / scale, atol=1e-5, rtol=0)

    def test_of_what_was_removed(self) -> None:
        pictures, removed = torch.randn(2, 3, 20, 20), blobs(2, (20, 20), 0.5)
        spoilt = torch.where(removed.unsqueeze(1), torch.nan, pictures)
        torch.testing.assert_close(imputed(spoilt, removed), imputed(pictures, removed), atol=0, rtol=0)

    def test_nan_stays_where_it_is_from(self) -> None:
        """A known NaN spoils its own picture's colour, and nothing else."""
        pictures, removed = torch.randn(2, 2, 20, 20), blobs(2, (20, 20), 0.5)
        clean = imputed(pictures, removed)
        row, column = (
            (removed[1] & ~removed[1].roll(1, 1))[:, 1:].nonzero()[0].tolist()
        )  # known, and beside a removed one
        pictures[1, 0, row, column] = torch.nan
        found = imputed(pictures, removed)
        assert found[1, 0][removed[1]].isnan().all()
        torch.testing.assert_close(found[0], clean[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[1, 1], clean[1, 1], atol=1e-6, rtol=0)

    def test_of_memory_format(self) -> None:
        pictures, removed = torch.randn(2, 3, 20, 24), blobs(2, (20, 24), 0.5)
        found = imputed(pictures.to(memory_format=torch.channels_last), removed)
        torch.testing.assert_close(found, imputed(pictures, removed), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu() -> None:
    pictures, removed = torch.randn(5, 3, 64, 60), blobs(5, (64, 60), 0.7)
    found = imputed(pictures.cuda(), removed.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), imputed(pictures, removed), atol=1e-3, rtol=0)


class TestValues:
    def test_known_stay(self) -> None:
        pictures, removed = torch.randn(2, 3, 20, 20), blobs(2, (20, 20), 0.5)
        given, holes = pictures.clone(), removed.clone()
        found = imputed(pictures.requires_grad_(), removed)
        assert torch.equal(pictures, given)
        assert torch.equal(removed, holes)
        assert torch.equal(torch.where(removed.unsqueeze(1), 0, found), torch.where(removed.unsqueeze(1), 0, given))
        assert not torch.isclose(found, given)[removed.unsqueeze(1).expand_as(given)].any()
        assert not found.requires_grad

    def test_nothing_removed(self) -> None:
        pictures = torch.randn(2, 3, 20, 20)
        found = imputed(pictures, torch.zeros(2, 20, 20, dtype=torch.bool))
        assert torch.equal(found, pictures)
        assert found.data_ptr() != pictures.data_ptr()

    def test_no_pictures(self) -> None:
        assert imputed(torch.zeros(0, 3, 8, 8), torch.zeros(0, 8, 8, dtype=torch.bool)).shape == (0, 3, 8, 8)
        assert imputed(torch.zeros(2, 0, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)).shape == (2, 0, 8, 8)


class TestErrors:
    def test_all_removed(self) -> None:
        removed = torch.zeros(3, 8, 8, dtype=torch.bool)
        removed[1] = True
        with pytest.raises(InputError, match="all of picture 1 is removed; leave at least one position known"):
            imputed(torch.zeros(3, 1, 8, 8), removed)

    @pytest.mark.parametrize("shape", [(3, 8), (2, 1, 2, 2, 2, 2), (2, 3, 0, 8)])
    def test_axes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"give \(b, C, L\), \(b, C, H, W\) or \(b, C, D, H, W\)"):
            imputed(torch.zeros(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.bool))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64])
    def test_dtype(self, dtype: torch.dtype) -> None:
        with pytest.raises(InputError, match="give float32 or float64"):
            imputed(torch.zeros(1, 1, 8, 8, dtype=dtype), torch.zeros(1, 8, 8, dtype=torch.bool))

    @pytest.mark.parametrize(
        "removed",
        [
            torch.zeros(1, 8, 8),
            torch.zeros(1, 1, 8, 8, dtype=torch.bool),
            torch.zeros(8, 8, dtype=torch.bool),
            torch.zeros(1, 8, 8, dtype=torch.bool, device="meta"),
        ],
    )
    def test_removed(self, removed: Tensor) -> None:
        with pytest.raises(InputError, match=r"give torch.bool \(1, 8, 8\) on cpu"):
            imputed(torch.zeros(1, 1, 8, 8), removed)

    @pytest.mark.parametrize(
        ("tolerance", "dtype"),
        [(0, torch.float64), (1, torch.float32), (1e-6, torch.float32), (float("nan"), torch.float32)],
    )
    def test_tolerance(self, tolerance: float, dtype: torch.dtype) -> None:
        with pytest.raises(OptionError, match=f"for {dtype}; give .* or more, and less than 1"):
            imputed(torch.zeros(1, 1, 8, 8, dtype=dtype), torch.zeros(1, 8, 8, dtype=torch.bool), tolerance=tolerance)

    def test_rounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Too few are an error, never a wrong picture."""
        monkeypatch.setattr(imputation, "_ROUNDS", 2)
        with pytest.raises(InputError, match="in 2 rounds; give a larger tolerance"):
            imputed(torch.randn(1, 1, 64, 64), blobs(1, (64, 64), 0.5))
