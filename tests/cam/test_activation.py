"""cam and random: the linear head they need, and the seed."""

from __future__ import annotations

import hashlib
import warnings

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from networks.views import Frames
from torchpeek.errors import MethodNotApplicable, Notice


class TestCam:
    def test_refuses_what_is_not_pooling_and_a_linear_head(self, net: SplitNet) -> None:
        with pytest.raises(MethodNotApplicable, match="global average pooling"):
            tp.explain(net, X, method="cam", layer="prefix")
        with pytest.raises(MethodNotApplicable):
            tp.explain(PooledNet(), X.float(), method="cam", layer="features.2")  # the ReLU lies between
        with pytest.raises(MethodNotApplicable, match="class logits"):
            tp.explain(PooledNet(), X.float(), method="cam", layer="act", target=tp.targets.ClassProbability())

    def test_what_is_advised_where_it_is_not_defined(self) -> None:
        """True of both: hirescam adds up to the score; gradcam is cam over the positions where cam is, and not here."""
        torch.manual_seed(0)
        flattened = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 5)).double().eval()
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        with pytest.raises(
            MethodNotApplicable, match=r"Next: take hirescam, whose map adds up .* or gradcam"
        ) as caught:
            tp.explain(flattened, x, method="cam", layer="0", target=1)
        assert "only where cam is defined" in str(caught.value)
        maps = tp.compare(flattened, x, methods=["hirescam", "gradcam"], layer="0", target=1)
        scores = flattened(x)[:, [1]] - flattened[2].bias[1]
        torch.testing.assert_close(maps["hirescam"].values.sum((2, 3)), scores)
        assert not torch.allclose(maps["gradcam"].values.sum((2, 3)), scores)
        pooled = PooledNet().double()
        maps = tp.compare(pooled, X, methods=["cam", "gradcam"], layer="act", target=1)
        positions = maps["cam"].values[0, 0].numel()
        torch.testing.assert_close(maps["gradcam"].values * positions, maps["cam"].values)

    def test_without_a_bias(self) -> None:
        model = PooledNet(bias=False).double()
        heatmap = tp.explain(model, X, method="cam", target=1)
        torch.testing.assert_close(heatmap.values.mean((2, 3)), heatmap.scores)


class TestEigencam:
    def test_a_map_without_positive_values_is_said(self) -> None:
        """Before a ReLU whose inputs are all negative, the first component agrees with the sum of the channels."""
        conv = torch.nn.Conv2d(3, 4, 3)
        torch.nn.init.constant_(conv.bias, -5.0)
        torch.nn.init.uniform_(conv.weight, 0, 0.1)
        model = torch.nn.Sequential(conv, torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert (conv(x) < 0).all()
        with pytest.warns(Notice, match=r"eigencam at '0': 2 of 2 maps have no positive value.*before a ReLU"):
            heatmap = tp.explain(model, x, method="eigencam", layer="0", target=[[0, 1], [2, 3]])
        assert (heatmap.values < 0).all()
        with pytest.warns(Notice, match="1 of 2 maps"):
            tp.explain(model, torch.stack([x[0], x[1] + 50]), method="eigencam", layer="0", target=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tp.explain(PooledNet(), X.float(), method="eigencam", layer="act")


class TestRandom:
    def test_is_seeded_and_leaves_the_global_generator_alone(self) -> None:
        model = PooledNet()
        state = torch.get_rng_state().tolist()
        first, same, other = (tp.explain(model, X.float(), method="random", seed=seed).values for seed in (1, 1, 2))
        assert torch.get_rng_state().tolist() == state
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert 0 <= float(first.min()) < float(first.max()) < 1

    def test_against_numbers_drawn_by_hand(self) -> None:
        """From a digest of the picture's values as float64, the seed and the class; whatever type has the values."""
        labels = [[3, 0], [2, 2]]
        for dtype in (torch.float64, torch.float32):
            x = X.float().to(dtype)
            values = tp.explain(PooledNet().to(dtype), x, method="random", layer="act", target=labels, seed=4).values
            assert values.dtype == dtype
            for n, of_sample in enumerate(labels):
                digest = hashlib.blake2b(x[n].numpy().astype("<f8").tobytes(), digest_size=16).digest()
                for k, label in enumerate(of_sample):
                    mixed = hashlib.blake2b(digest + f"('random', 4, {label})".encode(), digest_size=8).digest()
                    drawn = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
                    assert torch.equal(values[n, k], torch.rand(values.shape[2:], generator=drawn).to(dtype))
            assert torch.equal(values[1, 0], values[1, 1])
            assert not torch.equal(values[0, 0], values[0, 1])

    def test_it_is_uniform(self) -> None:
        x = torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        values = tp.explain(PooledNet(), x, method="random", target=[[0, 1, 2]] * 8).values.double().flatten()
        assert float(values.mean()) == pytest.approx(0.5, abs=0.005)
        assert float(values.var()) == pytest.approx(1 / 12, abs=0.002)
        distinct = values.view(24, -1)
        assert float((torch.corrcoef(distinct) - torch.eye(24)).abs().max()) < 0.1

    def test_in_the_front_doors(self) -> None:
        """In compare, of several layers, smoothed, with the model under autocast, and of a trace."""
        model, x = PooledNet().eval(), X.float()
        whole = {"target": [[1, 2], [0, 4]], "method": "random"}
        alone = {"target": [[0, 4]], "method": "random"}
        for more in (
            {"layer": ["features.0", "act"], "fuse": "mean"},
            {"layer": ["features.0", "act"]},
            {"layer": "act", "smooth": tp.Smoothing()},
        ):
            batch, single = tp.explain(model, x, **whole, **more), tp.explain(model, x[1:], **alone, **more)
            assert torch.equal(batch.values[1:], single.values)
        expected = tp.explain(model, x, layer="act", **whole).values
        for each in (
            tp.compare(model, x, methods=["gradcam", "random"], layer="act", target=whole["target"])["random"],
            tp.explain(tp.trace(model, x, layer="act", target=whole["target"]), method="random"),
            tp.explain(model, x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), layer="act", **whole),
        ):
            assert torch.equal(each.values, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tp.explain(model, x, layer="act", **whole).values, expected)

    def test_views(self) -> None:
        """Each view of a picture has its own numbers, whatever the batch."""
        x = torch.randn(2, 4, 3, 16, 12, generator=torch.Generator().manual_seed(1)).double()
        model = Frames().double().eval()
        whole = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W", method="random", target=1).values
        one = tp.explain(model, x[1:], layer="encoder.3", layout="(N 4) C H W", method="random", target=1).values
        assert torch.equal(whole[1:], one)
        assert len({float(each.sum()) for each in one[0, 0]}) == 4

    def test_the_baseline_of_evaluate(self) -> None:
        model, x = PooledNet().eval(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        metrics = {"deletion": {"steps": 4}}

        def baseline(numbers: list[int]) -> torch.Tensor:
            heatmap = tp.explain(model, x[numbers], method="random", target=1)
            found = tp.evaluate(model, x[numbers], heatmap, metrics=metrics)["deletion"]
            return torch.stack([found.values, found.baselines["random"]])

        torch.testing.assert_close(baseline([2, 0, 1])[:, 0], baseline([2])[:, 0])
        torch.testing.assert_close(baseline([2, 0, 1])[:, 1:], baseline([0, 1]))

    def test_the_seed_is_in_the_provenance(self) -> None:
        assert tp.explain(PooledNet(), X.float(), method="random", seed=7).provenance.options == {"seed": 7}
        assert tp.explain(PooledNet(), X.float(), seed=7).provenance.options == {}
