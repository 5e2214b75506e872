"""The layer that is suggested for transformers of timm, torchvision and transformers, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.transformers import asked, hooked, inputs, made, scores_of, spread
from torchpeek.errors import NoSpatialLayer, NotConnected

# Other packages' own, as they are imported and made; what is done with the networks is under errors again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]


FOLLOWED = "the last layer at which the score depends on the positions of the grid"
LAST = "the last layer with a grid before the head"

SUGGESTED = {
    "vit": ("blocks.1.norm1", FOLLOWED, "tokens 1+4x4"),
    "vit, registers": ("blocks.1.norm1", FOLLOWED, "tokens 5+4x4"),
    "vit, mean": ("blocks", LAST, "tokens 4x4"),
    "vit, mean of all but the class token": ("blocks", LAST, "tokens 1+4x4"),
    "deit": ("blocks.1.norm1", FOLLOWED, "tokens 2+4x4"),
    "eva": ("blocks.1", LAST, "tokens 1+4x4"),
    "beit": ("blocks.1", LAST, "tokens 1+4x4"),
    "cait": ("blocks_token_only.1.norm1", FOLLOWED, "tokens 1+4x4"),
    "xcit": ("cls_attn_blocks.1.norm1", FOLLOWED, "tokens 1+4x4"),
    "pvt": ("stages", LAST, "channels-first 2x2"),
    "mobilevit": ("final_conv", LAST, "channels-first 2x2"),
    "swin": ("norm", LAST, "channels-last 2x2"),
    "torchvision vit": ("encoder.layers.encoder_layer_1.ln_1", FOLLOWED, "tokens 1+4x4"),
    "torchvision swin": ("permute", LAST, "channels-first 8x8"),
    "torchvision swin 3d": ("norm", LAST, "channels-last 2x4x4"),
    "torchvision mvit": ("blocks.1.norm1", FOLLOWED, "tokens 1+2x8x8"),
    "hf vit": ("vit.layers.1.layernorm_before", FOLLOWED, "tokens 1+4x4"),
    "hf deit": ("deit.layers.1.layernorm_before", FOLLOWED, "tokens 2+4x4"),
    "hf registers": ("dinov2_with_registers.layernorm", LAST, "tokens 5+4x4"),
    "hf siglip": ("post_layernorm", LAST, "tokens 4x4"),
    "hf yolos": ("vit.encoder.layer.1.layernorm_before", FOLLOWED, "tokens 1+4x4+7"),
}


class TestSuggestions:
    @pytest.mark.parametrize("name", SUGGESTED)
    def test_which_and_why(self, name: str) -> None:
        layer, reason, layout = SUGGESTED[name]
        model = made(name)
        if name.startswith("hf") and layer not in dict(model.named_modules()):
            pytest.skip("this release of transformers has other names")
        trace = tp.trace(model, inputs(name), target=asked(name))
        assert (trace.layer, trace.origin.layer_reason) == (layer, reason)
        assert str(trace.at[layer].layout) == layout

    @pytest.mark.parametrize("name", [*SUGGESTED, "hf clip", "crossvit", "levit", "volo", "hiera", "sequencer"])
    def test_the_score_depends_on_it_and_on_no_later_grid(self, name: str) -> None:
        """By gradients of every layer that returns the grid's tokens, from one pass of our own."""
        model, x = made(name), inputs(name, 1)
        trace = tp.trace(model, x, target=asked(name))
        assert float(trace.gradients.abs().max()) > 0
        seen: dict[str, Tensor] = {}
        handles = []
        for layer, module in model.named_modules():

            def keep(_: nn.Module, args: Any, output: Any, layer: str = layer) -> None:
                if isinstance(output, Tensor) and output.ndim > 2 and output.requires_grad:
                    seen.pop(layer, None)
                    seen[layer] = output

            handles.append(module.register_forward_hook(keep))
        scores = scores_of(name, model(x)).sum()
        for handle in handles:
            handle.remove()
        layers = list(seen)
        found = dict(zip(layers, torch.autograd.grad(scores, list(seen.values()), allow_unused=True), strict=True))
        if trace.layer not in seen:
            return  # in a container
        after = layers[layers.index(trace.layer) + 1 :]
        layout = trace.at[trace.layer].layout
        for layer in after:
            gradient = found[layer]
            if gradient is None or seen[layer] is seen[trace.layer] or not layout.others:
                continue
            if gradient.shape == seen[trace.layer].shape:  # the same tokens, later
                of_grid = gradient[:, layout.prefix : layout.prefix + math.prod(layout.grid)]
                inside_attention = "attn" in layer or "attention" in layer
                assert inside_attention or not bool(of_grid.any()), layer

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("vit", ["blocks.1", "norm", "blocks.1.mlp"]),
            ("vit, registers", ["blocks.1", "norm"]),
            ("deit", ["blocks.1", "norm"]),
            ("torchvision vit", ["encoder", "encoder.ln", "encoder.layers.encoder_layer_1"]),
            ("torchvision mvit", ["norm"]),
            ("cait", ["norm"]),
            ("xcit", ["norm"]),
            ("crossvit", ["norm.0", "norm.1"]),
            ("hf vit", ["vit.layernorm"]),
        ],
    )
    @pytest.mark.parametrize("method", ["gradcam", "layercam"])
    def test_after_the_last_exchange_is_a_named_error(self, name: str, layers: list[str], method: str) -> None:
        model, x = made(name), inputs(name)
        for layer in layers:
            with pytest.raises(NotConnected, match=f"'{layer}'.*gradient is zero at every position.*layer=None"):
                tp.explain(model, x, layer=layer, method=method, target=asked(name))

    def test_what_needs_no_gradients_works_there(self) -> None:
        heatmap = tp.explain(made("vit"), inputs("vit"), layer="norm", method="eigencam")
        assert heatmap.values.shape == (2, 1, 4, 4)

    def test_the_grid_is_in_a_container_of_which_another_part_is_read(self) -> None:
        """CLIP's tower returns its tokens beside what was pooled from them, and its last block returns them bare."""
        trace = tp.trace(made("hf clip"), inputs("hf clip"), target=asked("hf clip"))
        assert trace.origin.layer_reason == FOLLOWED
        assert trace.layer.endswith("layers.1.layer_norm1")

    def test_frames_that_are_samples_to_the_convolution(self) -> None:
        """64 tokens of 4 frames may lie in any order: no grid is made up."""
        model, x = made("hf timesformer"), inputs("hf timesformer")
        with pytest.raises(NoSpatialLayer, match="no layer of Timesformer"):
            tp.trace(model, x)
        layer = next(name for name, _ in model.named_modules() if name.endswith("temporal_dense"))
        with pytest.raises(NoSpatialLayer, match=r"\(N, 64, 24\) for 2 pictures"):
            tp.trace(model, x, layer=layer)
        assert tp.trace(model, x, layer=layer, layout="tokens 4x4x4").activations.shape == (2, 1, 24, 4, 4, 4)

    def test_queries_are_no_picture(self) -> None:
        """4 objects are asked for, 2 x 2 would be a grid, and the channels are as many as the positions."""
        transformers = pytest.importorskip("transformers")
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
        sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16, "num_queries": 4, "num_labels": 3}
        config = transformers.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, **sizes
        )
        model, x = spread(transformers.DetrForObjectDetection(config)), torch.randn(1, 3, 128, 128).double()
        trace = tp.trace(model, x, target=tp.targets.Output(0, part="logits"))
        assert "decoder" not in trace.layer
        assert str(trace.at[trace.layer].layout) in ("tokens 4x4", "channels-first 4x4")
        for layer in ("model.decoder", "model.decoder.layers.1", "class_labels_classifier"):
            with pytest.raises(NoSpatialLayer, match="not positions of the picture"):
                tp.trace(model, x, layer=layer, target=tp.targets.Output(0, part="logits"))

    @pytest.mark.parametrize(
        ("name", "layer", "why"),
        [
            ("swin", "layers.0.blocks.0.attn", "it folds 64 parts of each picture, such as windows"),
            ("mobilevit", "stages.4.1.transformer.0", "it folds 4 parts"),
            ("cait", "blocks_token_only.0", "no grid of more than one position"),
            ("crossvit", "blocks.2", r"2 layouts: 'tokens 1\+20x20' \(of its part '0'\), 'tokens 1\+14x14' \(of its"),
        ],
    )
    def test_what_has_no_one_grid(self, name: str, layer: str, why: str) -> None:
        with pytest.raises(NoSpatialLayer, match=why):
            tp.trace(made(name), inputs(name), layer=layer)

    def test_one_of_two_branches(self) -> None:
        model, x = made("crossvit"), inputs("crossvit", 1)
        trace = tp.trace(model, x, layer="blocks.2", layout="tokens 1+14x14", gradients=False)
        seen: list[Any] = []
        with torch.no_grad(), hooked(model.blocks[2], lambda _, args, output: seen.append(output[1])):
            model(x)
        torch.testing.assert_close(trace.activations.squeeze(1), seen[0][:, 1:].mT.unflatten(2, (14, 14)))
