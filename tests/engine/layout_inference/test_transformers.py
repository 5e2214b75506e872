"""Layers of transformers of timm, torchvision and transformers: activations, gradients and edits."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.transformers import asked, hooked, inputs, made, scores_of, spread, timm_vit
from torchpeek.hooks import containers

# Other packages' own, as they are imported and made; what is done with the networks is under errors again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]


@dataclass(frozen=True)
class Layer:
    """A layer of a network, and what its output is, as its source says."""

    network: str
    layer: str
    kind: str  # how the axes lie: "first", "last" or "tokens"
    grid: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0
    part: str = ""

    def turned(self, raw: Tensor) -> Tensor:
        """(N, C, *grid) of the raw tensor."""
        if self.kind == "first":
            return raw
        if self.kind == "last":
            return raw.movedim(-1, 1)
        of_grid = raw[:, self.prefix : self.prefix + math.prod(self.grid)]
        return torch.stack([of_grid[..., c].reshape(-1, *self.grid) for c in range(raw.shape[-1])], dim=1)

    def __str__(self) -> str:
        return f"{self.network}: {self.layer}"


LAYERS = [
    Layer("vit", "patch_embed.proj", "first", (4, 4)),
    Layer("vit", "patch_embed", "tokens", (4, 4)),
    Layer("vit", "blocks.0", "tokens", (4, 4), 1),
    Layer("vit", "blocks.1.norm1", "tokens", (4, 4), 1),
    Layer("vit", "blocks.0.attn", "tokens", (4, 4), 1),
    Layer("vit, mean", "blocks.1", "tokens", (4, 4)),
    Layer("vit, registers", "blocks.0", "tokens", (4, 4), 5),
    Layer("deit", "blocks.0", "tokens", (4, 4), 2),
    Layer("cait", "blocks.1", "tokens", (4, 4)),
    Layer("xcit", "blocks.1", "tokens", (4, 4)),
    Layer("xcit", "cls_attn_blocks.0", "tokens", (4, 4), 1),
    Layer("pvt", "stages.3.blocks.0", "tokens", (2, 2)),
    Layer("hiera", "blocks.3", "tokens", (2, 2)),
    Layer("mobilevit", "stages.4.1", "first", (2, 2)),
    Layer("sequencer", "stem", "last", (9, 9)),
    Layer("sequencer", "stages.1.downsample", "last", (4, 4)),
    Layer("swin", "patch_embed", "last", (16, 16)),
    Layer("swin", "layers.0", "last", (16, 16)),
    Layer("swin", "layers.1.downsample", "last", (8, 8)),
    Layer("swin", "layers.3.blocks.0", "last", (2, 2)),
    Layer("swin 2", "layers.2", "last", (4, 4)),
    Layer("swin cr", "stages.1", "first", (8, 8)),
    Layer("torchvision vit", "encoder.layers.encoder_layer_0", "tokens", (4, 4), 1),
    Layer("torchvision swin", "features.0", "last", (16, 16)),
    Layer("torchvision swin", "features.3", "last", (8, 8)),
    Layer("torchvision swin", "permute", "first", (8, 8)),
    Layer("torchvision swin 2", "features.2", "last", (8, 8)),
    Layer("torchvision swin 3d", "features.0", "last", (2, 8, 8)),
    Layer("torchvision swin 3d", "norm", "last", (2, 4, 4)),
    Layer("torchvision mvit", "blocks.0", "tokens", (2, 8, 8), 1, part="0"),
    Layer("hf yolos", "vit.encoder.layer.0", "tokens", (4, 4), 1, 7),
    Layer("hf siglip", "encoder", "tokens", (4, 4), part="last_hidden_state"),
    Layer("hf siglip", "post_layernorm", "tokens", (4, 4)),
    Layer("hf videomae", "videomae.encoder.layer.0", "tokens", (2, 4, 4)),
    Layer("hf swin", "swin.layernorm", "tokens", (8, 8)),
]


@pytest.mark.parametrize("case", LAYERS, ids=str)
class TestLayers:
    def test_activations_gradients_and_changes(self, case: Layer) -> None:
        """By a hook of our own, and autograd and whole passes on the tensor as it is."""
        model, x = made(case.network), inputs(case.network)
        module = model.get_submodule(case.layer)
        trace = tp.trace(model, x, layer=case.layer, target=asked(case.network))
        assert (trace.at[case.layer].layout.grid, trace.at[case.layer].layout.part) == (case.grid, case.part)
        seen: list[Tensor] = []
        with hooked(module, lambda _, args, output: seen.append(containers.at(output, case.part))):
            scores = scores_of(case.network, model(x))
        torch.testing.assert_close(trace.scores, scores.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(trace.activations.squeeze(1), case.turned(seen[0].detach()), rtol=1e-9, atol=1e-11)
        for k in range(2):
            (gradient,) = torch.autograd.grad(scores[:, k].sum(), seen[0], retain_graph=True)
            scale = float(case.turned(gradient).abs().max())
            assert scale > 0
            torch.testing.assert_close(trace.gradients[:, k], case.turned(gradient), rtol=1e-7, atol=1e-9 * scale)

        changed = trace.ablate(lambda activation, rows, trials: activation.flip(1) * 0.5, 1)

        def change(_: nn.Module, args: Any, output: Any) -> Any:
            raw = containers.at(output, case.part).clone()
            if case.kind == "first":
                raw = raw.flip(1) * 0.5
            elif case.kind == "last":
                raw = raw.flip(-1) * 0.5
            else:
                of_grid = slice(case.prefix, case.prefix + math.prod(case.grid))
                raw[:, of_grid] = raw[:, of_grid].flip(-1) * 0.5
            return containers.with_part(output, case.part, raw)

        with torch.no_grad(), hooked(module, change):
            expected = scores_of(case.network, model(x))
        torch.testing.assert_close(changed[:, 0], expected, rtol=1e-8, atol=1e-10)
        assert float((expected - scores.detach()).abs().max()) > 1e-6


class TestSizes:
    """A network that takes pictures of any size."""

    @pytest.fixture(scope="class")
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return spread(timm_vit(dynamic_img_size=True)())

    def test_a_list_of_pictures(self, model: nn.Module) -> None:
        sizes = [(64, 64), (64, 96), (96, 48), (64, 64), (80, 80)]
        pictures = [torch.randn(1, 3, *size).double() for size in sizes]
        for method in ("gradcam", "legrad", "recipro-cam"):
            found = tp.explain(model, pictures, method=method, target=2)
            for picture, heatmap in zip(pictures, found, strict=True):
                assert heatmap.values.shape[2:] == tuple(size // 16 for size in picture.shape[2:])
                alone = tp.explain(copy.deepcopy(model), picture, method=method, target=2)
                torch.testing.assert_close(heatmap.values, alone.values, rtol=1e-9, atol=1e-12)

    def test_again(self, model: nn.Module) -> None:
        trace = tp.trace(model, torch.randn(2, 3, 64, 64).double(), target=[[0, 2], [1, 3]])
        other = torch.randn(2, 3, 96, 64).double()
        again = trace.again(other)
        assert str(again.at[again.layer].layout) == "tokens 1+6x4"
        alone = tp.trace(model, other, layer=trace.layer, target=[[0, 2], [1, 3]])
        torch.testing.assert_close(again.gradients, alone.gradients, rtol=1e-10, atol=1e-13)

    def test_a_side_that_patches_do_not_divide(self) -> None:
        torch.manual_seed(0)
        model = spread(timm_vit(dynamic_img_size=True, dynamic_img_pad=True)())
        trace = tp.trace(model, torch.randn(2, 3, 70, 90).double())
        assert str(trace.at[trace.layer].layout) == "tokens 1+5x6"  # rounded up
