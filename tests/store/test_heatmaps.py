"""Heatmaps saved and loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import FolderError, FormatError


@pytest.fixture
def heatmap() -> tp.Heatmap:
    names = [f"name {n}" for n in range(5)]
    loaded = tp.LoadedModel(PooledNet(), class_names=names, spec="test:net", weights="random")
    return tp.explain(loaded, torch.randn(3, 3, 6, 5), method="hirescam", target=[[0, 1], [2, 3], [4, 0]])


class TestFiles:
    def test_round_trip(self, heatmap, tmp_path) -> None:
        made = heatmap.positive()
        tp.save(made, tmp_path / "h.safetensors")
        back = tp.load(tmp_path / "h.safetensors")
        assert torch.equal(back.values, made.values)
        assert torch.equal(back.scores, made.scores)
        assert torch.equal(back.question.labels, made.question.labels)
        assert back.provenance == made.provenance
        assert back.question.kind == "logit"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_types_are_kept(self, tmp_path, dtype) -> None:
        made = tp.explain(
            PooledNet().to(dtype), torch.randn(1, 3, 6, 6, dtype=dtype), target=tp.targets.ClassProbability()
        )
        tp.save(made, tmp_path / "h.safetensors")
        assert tp.load(tmp_path / "h.safetensors").values.dtype == dtype
        assert tp.load(tmp_path / "h.safetensors").provenance.score == "probability"

    @pytest.mark.parametrize(
        "baseline",
        [0.5, np.float32(0.5), torch.rand(3, 1, 1), np.ones((3, 6, 5)), torch.rand(2, 3, 6, 5, dtype=torch.float64)],
    )
    def test_an_option_of_any_type_makes_the_same_map_again(self, tmp_path, baseline) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 6, 5)
        made = tp.explain(model, x, method="integrated-gradients", baseline=baseline, steps=4, target=1)
        tp.save(made, tmp_path / "h.safetensors")
        back = tp.load(tmp_path / "h.safetensors")
        stored, option = back.provenance.options["baseline"], made.provenance.options["baseline"]
        assert torch.equal(torch.as_tensor(stored), torch.as_tensor(option))
        assert torch.as_tensor(stored).dtype == torch.as_tensor(option).dtype
        again = tp.explain(model, x, method=back.provenance.method, target=1, **back.provenance.options)
        assert torch.equal(again.values, made.values)
        drawn = [tp.evaluate(model, x, each, metrics=["max-sensitivity"]) for each in (made, back)]
        assert torch.equal(*(each["max-sensitivity"].values for each in drawn))

    def test_the_options_are_those_of_the_call(self, tmp_path) -> None:
        """A later change of the user's own tensor or list does not reach them."""
        baseline, window = torch.zeros(3, 1, 1), [2, 3]
        model, x = PooledNet(), torch.randn(1, 3, 6, 5)
        integrated = tp.explain(model, x, method="integrated-gradients", baseline=baseline, steps=2)
        covered = tp.explain(model, x, method="occlusion", window=window, fill=baseline)
        baseline += 1
        window += [9]
        assert bool((integrated.provenance.options["baseline"] == 0).all())
        assert covered.provenance.options["window"] == (2, 3)
        tp.save(covered, tmp_path / "h.safetensors")
        assert tp.load(tmp_path / "h.safetensors").provenance.options["window"] == (2, 3)

    def test_the_header_is_readable_without_torchpeek(self, heatmap, tmp_path) -> None:
        tp.save(heatmap, tmp_path / "h.safetensors")
        data = (tmp_path / "h.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert json.loads(header["__metadata__"]["torchpeek"])["provenance"]["method"] == "hirescam"

    def test_files_that_are_none(self, heatmap, tmp_path) -> None:
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
        (tmp_path / "text.safetensors").write_text("x")
        tp.save(heatmap, tmp_path / "cut.safetensors")
        (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-10])
        for name in ("other", "text", "cut", "missing"):
            with pytest.raises(FormatError, match=name):
                tp.load(tmp_path / f"{name}.safetensors")

    def test_a_folder_that_is_not_there(self, heatmap, tmp_path) -> None:
        with pytest.raises(FolderError, match="make it first"):
            tp.save(heatmap, tmp_path / "none" / "h.safetensors")

    def test_nothing_is_left_behind_by_a_failed_write(self, heatmap, tmp_path, monkeypatch) -> None:
        import os

        def fail(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            tp.save(heatmap, tmp_path / "h.safetensors")
        assert list(tmp_path.iterdir()) == []
