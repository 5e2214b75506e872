"""Transformers of timm, torchvision and transformers, small: layers, suggestions and attention, by other means."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import replicas_attention as replicas
import torchpeek as tp
from networks import state_of
from torchpeek.errors import GradUnavailable, MethodNotApplicable, NoSpatialLayer, NotConnected, Notice
from torchpeek.hooks import containers

# Other packages' own, as they are imported and made; what is done with the networks is under errors again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]

ATTENTION = ("rollout", "legrad", "transformer-attribution")


def spread(model: nn.Module) -> nn.Module:
    """In eval mode and float64, with nothing left at zero, as heads, positions and scales begin."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.double().eval()


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=5, **options)


def timm_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Callable[[], nn.Module]:
    return timm(name, **{"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2, **options})


def timm_swin(name: str, **options: Any) -> Callable[[], nn.Module]:
    sizes = {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 2, 2), "window_size": 2}
    return timm(name, **{**sizes, **options})


def hf(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 5}

    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        settings = {key: value for key, value in {**sizes, **options}.items() if value is not None}
        return getattr(transformers, name)(getattr(transformers, config)(**settings))

    return make


def torchvision_vit() -> nn.Module:
    module = pytest.importorskip("torchvision.models.vision_transformer")
    return module.VisionTransformer(32, 8, 2, 2, 24, 32, num_classes=5)


def torchvision_swin(version: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = pytest.importorskip("torchvision.models.swin_transformer")
        more = {}
        if version == 2:
            more = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
        return module.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [2, 2], num_classes=5, **more)

    return make


def torchvision_swin3d() -> nn.Module:
    module = pytest.importorskip("torchvision.models.video.swin_transformer")
    return module.SwinTransformer3d([2, 4, 4], 12, [1, 1], [1, 2], [2, 2, 2], num_classes=5)


def torchvision_mvit() -> nn.Module:
    module = pytest.importorskip("torchvision.models.video.mvit")

    def block(given: int, made: int, query: int, key: int) -> Any:
        kernels = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
        strides = {"stride_q": [1, query, query], "stride_kv": [1, key, key]}
        return module.MSBlockConfig(num_heads=2, input_channels=given, output_channels=made, **kernels, **strides)

    return module.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[block(8, 16, 1, 2), block(16, 16, 2, 1)],
        residual_pool=False,
        residual_with_cls_embed=True,
        rel_pos_embed=False,
        proj_after_attn=True,
        num_classes=5,
        dropout=0.0,
    )


def registers() -> Callable[[], nn.Module]:
    name = "Dinov2WithRegisters"
    return hf(f"{name}ForImageClassification", f"{name}Config", num_register_tokens=4, mlp_ratio=1)


MAKES: dict[str, Callable[[], nn.Module]] = {
    "vit": timm_vit(),
    "vit, mean": timm_vit(class_token=False, global_pool="avg"),
    "vit, mean of all but the class token": timm_vit(global_pool="avg"),
    "vit, registers": timm_vit(reg_tokens=4),
    "deit": timm_vit("deit_tiny_distilled_patch16_224"),
    "eva": timm_vit("eva02_tiny_patch14_224", img_size=56),
    "beit": timm_vit("beit_base_patch16_224"),
    "cait": timm_vit("cait_xxs24_224"),
    "xcit": timm_vit("xcit_nano_12_p16_224"),
    "levit": timm("levit_128s", img_size=128),
    "volo": timm("volo_d1_224", img_size=64),
    "crossvit": timm("crossvit_tiny_240"),
    "mobilevit": timm("mobilevit_xxs"),
    "pvt": timm("pvt_v2_b0"),
    "hiera": timm("hiera_tiny_224", img_size=64, embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)),
    "sequencer": timm(
        "sequencer2d_s", img_size=64, embed_dims=(16, 24, 24, 24), layers=(1, 1, 1, 1), hidden_sizes=(6, 8, 8, 8)
    ),
    "swin": timm_swin("swin_tiny_patch4_window7_224"),
    "swin 2": timm_swin("swinv2_tiny_window8_256"),
    "swin cr": timm_swin("swinv2_cr_tiny_224"),
    "torchvision vit": torchvision_vit,
    "torchvision swin": torchvision_swin(1),
    "torchvision swin 2": torchvision_swin(2),
    "torchvision swin 3d": torchvision_swin3d,
    "torchvision mvit": torchvision_mvit,
    "hf vit": hf("ViTForImageClassification", "ViTConfig"),
    "hf deit": hf("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    "hf registers": registers(),
    "hf clip": hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=6),
    "hf siglip": hf("SiglipVisionModel", "SiglipVisionConfig"),
    "hf yolos": hf("YolosForObjectDetection", "YolosConfig", image_size=[32, 32], num_detection_tokens=7),
    "hf videomae": hf("VideoMAEForVideoClassification", "VideoMAEConfig", num_frames=4, tubelet_size=2),
    "hf timesformer": hf("TimesformerForVideoClassification", "TimesformerConfig", num_frames=4),
    "hf swin": hf(
        "SwinForImageClassification",
        "SwinConfig",
        hidden_size=None,
        num_hidden_layers=None,
        num_attention_heads=None,
        patch_size=2,
        embed_dim=12,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
    ),
}
SIZES: dict[str, tuple[int, ...]] = {
    "crossvit": (3, 240, 240),
    "eva": (3, 56, 56),
    "levit": (3, 128, 128),
    "torchvision swin 3d": (3, 4, 32, 32),
    "torchvision mvit": (3, 4, 32, 32),
    "hf videomae": (4, 3, 32, 32),
    "hf timesformer": (4, 3, 32, 32),
}
TARGETS: dict[str, Any] = {
    "hf clip": tp.targets.Output([0, 1], part="image_embeds"),
    "hf siglip": tp.targets.Output([0, 1], part="pooler_output"),
    "hf yolos": tp.targets.Output([0, 9], part="logits"),
}
SMALL = (3, 32, 32)


@cache
def made(name: str) -> nn.Module:
    """Each network once. No test changes it, which is what is tested."""
    torch.manual_seed(0)
    return spread(MAKES[name]())


def inputs(name: str, count: int = 2) -> Tensor:
    small = name.startswith(("hf", "torchvision vit"))
    size = SIZES.get(name, SMALL if small else (3, 64, 64))
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def asked(name: str) -> Any:
    return TARGETS.get(name, tp.targets.Classes([1, 3]))


def scores_of(name: str, output: Any) -> Tensor:
    """(N, 2): what is asked of a network, taken from its output by hand."""
    match name:
        case "hf clip":
            return output.image_embeds[:, :2]
        case "hf siglip":
            return output.pooler_output[:, :2]
        case "hf yolos":
            return output.logits.flatten(1)[:, [0, 9]]
    logits = output if isinstance(output, Tensor) else output.logits
    return logits[:, [1, 3]]


@contextlib.contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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
            with pytest.raises(NoSpatialLayer, match="no grid of more than one position"):
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


# ---- Attention through the front door ----


def by_hand(name: str, model: nn.Module, x: Tensor, labels: list[int]) -> dict[str, Tensor]:
    """The maps (N, K, positions) by the replicas, of attention weights that a copy makes step by step."""
    model = copy.deepcopy(model)
    weights: list[Tensor] = []
    after: list[Tensor] = []
    blocks = {
        "timm": lambda: list(model.blocks),
        "torchvision": lambda: list(model.encoder.layers),
        "hf": lambda: list(model.base_model.layers),
    }[name]()
    for block in blocks:
        attention = {"timm": "attn", "torchvision": "self_attention", "hf": "attention"}[name]
        module = getattr(block, attention)
        if name == "hf":
            module = getattr(module, "attention", module)
        module.forward = step_by_step(name, module, weights)
        block.register_forward_hook(
            lambda _, args, output: after.append(output[0] if isinstance(output, tuple) else output)
        )
    last: list[Tensor] = []
    output = model(x)
    scores = (output if isinstance(output, Tensor) else output.logits)[:, labels]
    made_weights, tokens = list(weights), list(after)
    layerwise = []
    for z in tokens:
        last[:] = [z]

        def instead(_: nn.Module, args: Any, output: Any) -> Any:
            return (last[0], *output[1:]) if isinstance(output, tuple) else last[0]

        with hooked(blocks[-1], instead):
            output = model(x)
        layerwise.append((output if isinstance(output, Tensor) else output.logits)[:, labels])
    made = {method: torch.zeros(len(x), len(labels), 0) for method in ATTENTION}
    prefix = tokens[0].shape[1] - 16
    (reach,) = torch.autograd.grad(scores.sum(), tokens[-1], retain_graph=True)
    reached = (reach[0] != 0).any(1).nonzero().flatten().tolist()
    read = list(range(prefix, prefix + 16)) if max(reached) >= prefix else reached
    rows: dict[str, list[Any]] = {method: [] for method in ATTENTION}
    for n in range(len(x)):
        A = [each[n].detach().numpy() for each in made_weights]
        for k in range(len(labels)):
            g = torch.autograd.grad(scores[n, k], made_weights, retain_graph=True)
            of_layers = [
                torch.autograd.grad(score[n, k], weight, retain_graph=True)[0]
                for score, weight in zip(layerwise, made_weights, strict=True)
            ]
            g, of_layers = ([each[n].numpy() for each in group] for group in (g, of_layers))
            rows["rollout"].append(replicas.rollout(A, prefix, read))
            rows["transformer-attribution"].append(replicas.transformer_attribution(A, g, prefix, read))
            rows["legrad"].append(replicas.legrad(of_layers, prefix))
    for method in ATTENTION:
        made[method] = torch.tensor(np.array(rows[method])).unflatten(0, (len(x), len(labels)))
    return made


def step_by_step(name: str, module: nn.Module, weights: list[Tensor]) -> Callable[..., Any]:
    """Attention from its parameters: softmax(q k^T / sqrt(d)) v, the weights kept in the graph."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
        weights.append(exponentials / exponentials.sum(-1, keepdim=True))
        return (weights[-1] @ v).transpose(1, 2).flatten(2)

    def of_timm(z: Tensor, *args: Any, **options: Any) -> Tensor:
        return module.proj(attend(*module.qkv(z).chunk(3, dim=-1), module.num_heads))

    def of_torchvision(z: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        parts = (z @ module.in_proj_weight.mT + module.in_proj_bias).chunk(3, dim=-1)
        return module.out_proj(attend(*parts, module.num_heads)), None

    def of_hf(z: Tensor, *args: Any, **options: Any) -> Any:
        parts = [getattr(module, each)(z) for each in ("q_proj", "k_proj", "v_proj")]
        return module.o_proj(attend(*parts, module.config.num_attention_heads)), None

    return {"timm": of_timm, "torchvision": of_torchvision, "hf": of_hf}[name]


SOURCES = {
    "vit": "timm",
    "vit, mean": "timm",
    "vit, registers": "timm",
    "torchvision vit": "torchvision",
    "hf vit": "hf",
}


def test_tokens_in_the_order_of_merging_are_refused() -> None:
    """Hiera's are not in the picture's order before its last stage: a changed corner shows elsewhere."""
    model, x = made("hiera"), inputs("hiera")
    assert tp.explain(model, x).provenance.layer == "blocks.3"
    with pytest.raises(NoSpatialLayer, match="in the order in which they are merged"):
        tp.explain(model, x, layer="blocks.0")
    assert "blocks.0" not in tp.explain(model, x, fuse="max").provenance.layer


def test_two_tokens_beside_the_grid_are_read_alike() -> None:
    """A distilled DeiT's score is the mean of two heads, of the class and of the distillation token."""
    trace = tp.trace(made("deit"), inputs("deit"), attention=True)
    assert trace.readout_weights[0, 0, :4].tolist() == [0.5, 0.5, 0.0, 0.0]


class TestAttention:
    @pytest.mark.parametrize("name", SOURCES)
    def test_against_the_replicas(self, name: str) -> None:
        model, x = made(name), inputs(name)
        if name == "hf vit" and not hasattr(model.base_model, "layers"):
            pytest.skip("this release of transformers has other names")
        expected = by_hand(SOURCES[name], model, x, [1, 3])
        found = tp.compare(model, x, methods=ATTENTION, target=tp.targets.Classes([1, 3]))
        for method, heatmap in found.items():
            values = heatmap.values.flatten(2)
            assert values.shape == (2, 2, 16)
            scale = float(expected[method].abs().max())
            torch.testing.assert_close(values, expected[method], rtol=1e-7, atol=1e-9 * scale)
            assert heatmap.provenance.layer == "every layer"

    @pytest.mark.parametrize("method", ATTENTION)
    @pytest.mark.parametrize("name", ["deit", "eva", "beit", "cait", "hf deit", "hf registers", "hf clip", "hf yolos"])
    def test_a_batch_is_as_one_by_one_and_many_classes_as_each(self, name: str, method: str) -> None:
        model, x, target = made(name), inputs(name), asked(name)
        together = tp.explain(model, x, method=method, target=target).values
        assert together.shape == (2, 2, 4, 4)
        assert bool(torch.isfinite(together).all())
        for n in range(2):
            alone = tp.explain(model, x[n : n + 1], method=method, target=target).values
            torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-8, atol=1e-12)
        first = {
            "hf clip": tp.targets.Output([1], part="image_embeds"),
            "hf yolos": tp.targets.Output([9], part="logits"),
        }.get(name, tp.targets.Classes([3]))
        alone = tp.explain(model, x, method=method, target=first).values
        torch.testing.assert_close(together[:, 1:], alone, rtol=1e-8, atol=1e-12)

    def test_of_volumes(self) -> None:
        found = tp.compare(made("hf videomae"), inputs("hf videomae"), methods=ATTENTION, target=[[0, 1], [2, 3]])
        assert {heatmap.values.shape for heatmap in found.values()} == {(2, 2, 2, 4, 4)}

    @pytest.mark.parametrize("method", ATTENTION)
    def test_smoothed(self, method: str) -> None:
        model, x = made("vit"), inputs("vit")
        smooth = tp.Smoothing(factors=(1.0, 1.2))
        found = tp.explain(model, x, method=method, target=2, smooth=smooth).values
        versions = [x, x * 1.2, x.flip(-1), x.flip(-1) * 1.2]
        plain = [tp.explain(model, each, method=method, target=2).values for each in versions]
        expected = (plain[0] + plain[1] + plain[2].flip(-1) + plain[3].flip(-1)) / 4
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)

    def test_without_gradients(self) -> None:
        """What the class token reads is not known then: an error, or the same map, but no other one."""
        model, x = made("vit"), inputs("vit")
        expected = tp.explain(model, x, method="rollout", target=1).values
        trace = tp.trace(model, x, target=1, attention=True, gradients=False)
        with contextlib.suppress(GradUnavailable):
            torch.testing.assert_close(tp.explain(trace, method="rollout").values, expected)

    def test_compared_with_methods_of_one_layer(self) -> None:
        model, x = made("vit"), inputs("vit")
        methods = ["gradcam", "rollout", "eigencam", "legrad", "transformer-attribution", "recipro-cam"]
        found = tp.compare(model, x, methods=methods, target=[[0, 2], [1, 1]])
        assert list(found) == methods
        for method, heatmap in found.items():
            alone = tp.explain(model, x, method=method, target=[[0, 2], [1, 1]])
            torch.testing.assert_close(heatmap.values, alone.values, rtol=1e-9, atol=1e-12)
            assert heatmap.provenance.layer == ("every layer" if method in ATTENTION else "blocks.1.norm1")
        assert torch.equal(found["rollout"].values[:, 0], found["rollout"].values[:, 1])

    def test_a_trace_that_kept_attention(self) -> None:
        model, x = made("torchvision vit"), inputs("torchvision vit")
        trace = tp.trace(model, x, target=[[0, 2], [1, 1]], attention=True)
        for method in (*ATTENTION, "gradcam"):
            alone = tp.explain(model, x, method=method, target=[[0, 2], [1, 1]]).values
            torch.testing.assert_close(tp.explain(trace, method=method).values, alone, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        ("name", "why"),
        [("swin", "inside windows"), ("hf timesformer", "inside windows"), ("xcit", "between channels")],
    )
    @pytest.mark.parametrize("method", ATTENTION)
    def test_other_attention_is_refused(self, name: str, why: str, method: str) -> None:
        with pytest.raises(MethodNotApplicable, match=why):
            tp.explain(made(name), inputs(name), method=method, target=1)


def everything(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Methods of all kinds."""
    methods = ["gradcam", "layercam", "eigencam", "recipro-cam", *ATTENTION]
    found = tp.compare(model, x, methods=methods, target=[[0, 3]] * len(x))
    return {name: heatmap.values for name, heatmap in found.items()}


class TestContexts:
    """Whatever the model and the caller are in the middle of."""

    @pytest.fixture(scope="class", params=["vit", "torchvision vit", "hf vit"])
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    def expected(self, name: str) -> dict[str, Tensor]:
        return everything(made(name), inputs(name))

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradient_modes(self, name: str, expected: dict[str, Tensor], context: Any, frozen: bool) -> None:
        model = copy.deepcopy(made(name)).requires_grad_(not frozen)
        with context():
            found = everything(model, inputs(name))
        for method, values in found.items():
            torch.testing.assert_close(values, expected[method], rtol=1e-8, atol=1e-12)
        assert all(parameter.requires_grad is not frozen for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_in_train_mode_and_left_as_found(self, name: str, expected: dict[str, Tensor]) -> None:
        model = copy.deepcopy(made(name)).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        model.register_forward_hook(lambda module, args, output: None)
        before = state_of(model)
        found = everything(model, inputs(name))
        assert state_of(model) == before
        for method, values in found.items():
            torch.testing.assert_close(values, expected[method], rtol=1e-8, atol=1e-12)

    def test_autocast(self, name: str) -> None:
        """To bfloat16's 8 bits; the maps are float32."""
        model, x = copy.deepcopy(made(name)).float(), inputs(name).float()
        full = everything(model, x)
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # a replay may round otherwise than a whole pass, which is then run
            half = everything(model, x)
        for method, values in half.items():
            assert values.dtype == torch.float32
            cosine = torch.cosine_similarity(values.flatten(2), full[method].flatten(2), dim=2)
            assert float(cosine.min()) > 0.9, method

    @pytest.mark.parametrize("method", ["gradcam", "recipro-cam", *ATTENTION])
    def test_ctrl_c(self, name: str, method: str) -> None:
        """Inside of the last block; the next call is as if nothing had been."""
        model, x = copy.deepcopy(made(name)), inputs(name)
        expected = tp.explain(model, x, method=method, target=1).values
        before, calls = state_of(model), []

        def interrupt(module: nn.Module, args: Any, output: Any) -> None:
            calls.append(module)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)

        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        with hooked(norms[-2], interrupt), pytest.raises(KeyboardInterrupt):
            for _ in range(3):
                tp.explain(model, x, method=method, target=1)
        assert state_of(model) == before
        assert torch._C._len_torch_function_stack() == 0
        torch.testing.assert_close(tp.explain(model, x, method=method, target=1).values, expected)

    def test_two_threads(self, name: str, expected: dict[str, Tensor]) -> None:
        """At one model, with different pictures; a third runs the model itself."""
        model, x = copy.deepcopy(made(name)), inputs(name)
        with torch.no_grad():
            said = model(x)
        found: dict[int, dict[str, Tensor]] = {}
        wrong: list[object] = []
        done = threading.Event()

        def explain(number: int) -> None:
            try:
                found[number] = everything(model, x if number == 0 else x.flip(0))
            except BaseException as error:
                wrong.append(error)

        def run() -> None:
            while not done.is_set():
                with torch.no_grad():
                    now = model(x)
                same = now if isinstance(now, Tensor) else now.logits
                if not torch.allclose(same, said if isinstance(said, Tensor) else said.logits):
                    wrong.append("another output")

        threads = [threading.Thread(target=explain, args=(number,)) for number in range(2)]
        other = threading.Thread(target=run)
        for thread in (other, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        other.join()
        assert not wrong
        for method, values in expected.items():
            torch.testing.assert_close(found[0][method], values, rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(found[1][method], values.flip(0), rtol=1e-8, atol=1e-12)
