"""Heatmaps of segmentation models that take pictures of different sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchpeek as tp
from torchpeek.errors import TargetError

Box, Pixels = tp.targets.Box, tp.targets.Pixels


SIZES = [(60, 80), (90, 50), (60, 80)]


class TestSegmentation:
    """Which of several parts is the segmentation is found: against the function that takes that part."""

    @staticmethod
    def mean_of(part: str, label: int, mask: Tensor) -> Any:
        return tp.targets.Computed(lambda output, rows: output[part][:, label][:, mask].mean(1))

    @pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
    def test_torchvision(self, name: str) -> None:
        segmentation = pytest.importorskip("torchvision.models.segmentation")
        torch.manual_seed(0)
        extra = {"aux_loss": True} if name.startswith("deeplab") else {}
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, **extra).eval()
        mask = torch.zeros(32, 48, dtype=torch.bool)
        mask[4:20, 8:30] = True
        x = torch.rand(2, 3, 32, 48)
        got = tp.explain(model, x, layer="backbone.16", target=Pixels(1, mask))
        expected = tp.explain(model, x, layer="backbone.16", target=self.mean_of("out", 1, mask))
        torch.testing.assert_close(got.values, expected.values)
        assert got.provenance.score == "mean logit of the masked pixels, from 'out'"
        with pytest.raises(TargetError, match=r"mask has shape \(48, 32\); allowed: \(32, 48\), or \(2, 32, 48\)"):
            tp.explain(model, x, layer="backbone.16", target=Pixels(1, mask.T))

    def test_segformer(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=4,
        )
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        x, mask = torch.rand(2, 3, 64, 64), torch.zeros(16, 16, dtype=torch.bool)
        mask[3:9, 2:12] = True
        layer = "decode_head.linear_fuse"
        labels = {"labels": torch.zeros(2, 64, 64, dtype=torch.long)}  # with which a loss is returned, too
        for given in ({"pixel_values": x}, {"pixel_values": x, **labels}):
            got = tp.explain(model, given, layer=layer, target=Pixels(1, mask))
            expected = tp.explain(model, x, layer=layer, target=self.mean_of("logits", 1, mask))
            torch.testing.assert_close(got.values, expected.values)
            assert got.provenance.score == "mean logit of the masked pixels, from 'logits'"
