"""Small transformers of timm, torchvision and transformers, with their inputs, targets and scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


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
