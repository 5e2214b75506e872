"""Heatmap: indexing and scaling return new heatmaps."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError
from torchpeek.heatmap import unit_range, upsample


@pytest.fixture
def heatmap() -> tp.Heatmap:
    names = [f"name {n}" for n in range(5)]
    loaded = tp.LoadedModel(PooledNet(), class_names=names, spec="test:net", weights="random")
    return tp.explain(loaded, torch.randn(3, 3, 6, 5), method="hirescam", target=[[0, 1], [2, 3], [4, 0]])


class TestIndexing:
    def test_one_sample_one_score(self, heatmap) -> None:
        one = heatmap[1, 0]
        assert one.values.shape == (1, 1, 6, 5)
        assert torch.equal(one.values[0, 0], heatmap.values[1, 0])
        assert one.label() == 2
        assert one.provenance.class_name(one.label()) == "name 2"
        assert torch.equal(heatmap[-1].values, heatmap.values[2:])
        assert heatmap[:2, 1].question.labels.tolist() == [[1], [3]]

    def test_iteration_ends(self, heatmap) -> None:
        assert [part.label(0, 1) for part in heatmap] == [1, 3, 0]

    @pytest.mark.parametrize("index", [3, (0, 2), (-4, 0)])
    def test_out_of_range(self, heatmap, index) -> None:
        with pytest.raises(IndexError):
            heatmap[index]

    def test_too_many_indices(self, heatmap) -> None:
        with pytest.raises(InputError, match=r"\[n, k\]"):
            heatmap[0, 0, 0]


class TestScaling:
    def test_positive(self, heatmap) -> None:
        assert (heatmap.values < 0).any()
        assert torch.equal(heatmap.positive().values, heatmap.values.relu())
        assert heatmap.positive().provenance.steps == ("positive",)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 1.0, 4.0], [0.0, 0.25, 1.0]),
            ([2.0, 3.0, 4.0], [0.5, 0.75, 1.0]),  # zero stays zero, though it is not among them
            ([-1.0, 0.0, 3.0], [0.0, 0.25, 1.0]),
            ([5.0, 5.0, 5.0], [1.0, 1.0, 1.0]),
            ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
            ([-3.0, -2.0, -1.0], [0.0, 0.5, 1.0]),
            ([0.0, 1e-30, 2e-30], [0.0, 0.5, 1.0]),  # no epsilon that swallows small maps
        ],
    )
    def test_unit(self, values, expected) -> None:
        got = unit_range(torch.tensor(values).view(1, 1, 1, 3))
        torch.testing.assert_close(got.flatten(), torch.tensor(expected))

    def test_unit_is_for_each_map_on_its_own(self, heatmap) -> None:
        unit = heatmap.positive().unit().values
        assert unit.flatten(2).amax(2).tolist() == [[1.0] * 2] * 3

    def test_resized_is_bilinear_and_keeps_the_mean_of_a_flat_map(self, heatmap) -> None:
        assert heatmap.resized((12, 20)).values.shape == (3, 2, 12, 20)
        ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
        assert upsample(ramp, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
        with pytest.raises(InputError, match="grid has 2 axes"):
            heatmap.resized((12,))

    def test_steps_are_noted_in_order(self, heatmap) -> None:
        assert heatmap.positive().unit().resized((4, 4)).provenance.steps == ("positive", "unit", "resized to 4 x 4")
        assert "positive, unit" in repr(heatmap.positive().unit())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, -2.0, 0.0], "no positive value: read it signed (signed=True, --signed)"),
        ([-1.0, -2.0, 2.9], "mostly negative values: read it signed (signed=True, --signed)"),
        ([-1.0, -2.0, 3.0], ""),
        ([0.0, 0.0, 0.0], "zero everywhere"),
        ([0.0, 0.0, 1e-30], ""),
        ([1e-30, 0.0, -2e-30], "mostly negative values: read it signed (signed=True, --signed)"),
    ],
)
def test_sign_remark(heatmap, values, expected) -> None:
    """The sums of the positive and of the negative values are compared."""
    mixed = torch.cat([torch.ones(1, 1, 3), torch.tensor(values).view(1, 1, 3)], dim=1)
    made = tp.Heatmap(mixed, heatmap.scores[:1], heatmap[0].question, heatmap.provenance)
    assert made.sign_remark() == ""
    assert made.sign_remark(0, 1) == made[0, 1].sign_remark() == expected
