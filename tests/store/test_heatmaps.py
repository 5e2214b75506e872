"""Heatmaps saved and loaded."""

from __future__ import annotations

import json

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

        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            tp.save(heatmap, tmp_path / "h.safetensors")
        assert list(tmp_path.iterdir()) == []
