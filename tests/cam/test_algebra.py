"""The algebra of the methods: components, blur, quantiles, means over areas, and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks.split import X
from replicas.further_passes import adaptive_average, blur, quantile
from torchpeek.cam.algebra import area_average, first_component, first_eigenpair, gaussian_blur, noise
from torchpeek.cam.algebra import quantile as our_quantile


class TestFirstComponent:
    @pytest.mark.parametrize(
        "shape", [(2, 3, 7, 4, 5), (2, 3, 40, 4, 5), (1, 2, 3, 9), (1, 1, 4, 2, 3, 2), (1, 1, 3, 1, 2)]
    )
    def test_is_the_singular_value_decompositions(self, shape: tuple[int, ...]) -> None:
        tensor = torch.randn(shape, dtype=torch.float64)
        towards = torch.randn(*shape[:2], *shape[3:], dtype=torch.float64)
        got = first_component(tensor, towards)
        for n in range(shape[0]):
            for k in range(shape[1]):
                u, s, _ = np.linalg.svd(tensor[n, k].flatten(1).T.numpy(), full_matrices=False)
                expected = u[:, 0] * s[0]
                expected *= np.sign(expected @ towards[n, k].flatten().numpy())
                np.testing.assert_allclose(got[n, k].flatten().numpy(), expected, rtol=1e-8, atol=1e-10)

    def test_the_sign_does_not_hang_on_the_solver(self) -> None:
        """grad-cam takes it as it comes, then cuts off below zero: some blobs come out inverted."""
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
            centre = torch.rand(2, generator=generator) * 6
            blob = torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 4)
            strengths = torch.rand(32, generator=generator)[:, None, None]
            activations = (strengths * blob + 0.05 * torch.rand(32, 7, 7, generator=generator))[None, None]
            found = first_component(activations, towards=activations.sum(2))[0, 0]
            peak = int(found.argmax())
            assert (found >= 0).all()
            assert abs(peak // 7 - float(centre[0])) <= 1
            assert abs(peak % 7 - float(centre[1])) <= 1

    def test_of_zeros(self) -> None:
        assert (first_component(torch.zeros(1, 1, 4, 3, 3), torch.zeros(1, 1, 3, 3)) == 0).all()


class TestAlgebra:
    @pytest.mark.parametrize(("kernel", "sigma"), [(3, 1.0), (5, 2.0), (51, 50.0)])
    def test_gaussian_blur(self, kernel: int, sigma: float) -> None:
        got = gaussian_blur(X[:1], kernel, sigma)[0].numpy()
        np.testing.assert_allclose(got, np.stack([blur(m, kernel, sigma) for m in X[0].numpy()]), rtol=1e-9)
        flat = torch.full((1, 2, 5, 4), 3.0)
        torch.testing.assert_close(gaussian_blur(flat, kernel, sigma), flat)

    def test_quantile(self) -> None:
        values = torch.randn(3, 2, 17, dtype=torch.float64)
        for share in (0.0, 0.3, 0.7, 1.0):
            torch.testing.assert_close(our_quantile(values, share), values.quantile(share, dim=2, keepdim=True))
            assert float(our_quantile(values, share)[0, 0]) == pytest.approx(quantile(values[0, 0].numpy(), share))

    def test_area_average(self) -> None:
        maps = torch.randn(1, 1, 7, 5, dtype=torch.float64)
        np.testing.assert_allclose(
            area_average(maps, (3, 2))[0, 0].numpy(), adaptive_average(maps[0, 0].numpy(), (3, 2))
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("gap", [1.5, 1.0001, 1.0])
    def test_the_first_eigenpair_of_a_large_matrix(self, dtype: torch.dtype, gap: float) -> None:
        """Also where the first two are so close together, or the same, that an iteration does not get there."""
        size = 700
        turned = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
        values = torch.linspace(0.01, 1, size, dtype=torch.float64)
        values[-1] = gap
        matrix = ((turned * values) @ turned.mT).to(dtype)
        value, vector = first_eigenpair(torch.stack([matrix, 2 * matrix]))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(
            value.double(), torch.tensor([[gap], [2 * gap]], dtype=torch.float64), rtol=tolerance, atol=0
        )
        off = (torch.stack([matrix, 2 * matrix]) @ vector.unsqueeze(-1)).squeeze(-1) - value * vector
        assert float(off.norm(dim=-1).max()) < 100 * tolerance
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2, dtype=dtype))

    def test_noise_in_any_order(self) -> None:
        draw, again = noise(3, 5, (2, 3), X), noise(3, 5, (2, 3), X)
        assert [draw(i).tolist() for i in (4, 0, 2)] == [again(i).tolist() for i in (4, 0, 2)]
        assert draw(0).dtype == torch.float64
        many = torch.stack([noise(0, 2000, (5,), X)(i) for i in range(2000)])
        assert abs(float(many.mean())) < 0.05
        assert abs(float(many.std()) - 1) < 0.05
