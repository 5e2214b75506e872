"""Attention weights of models of timm, transformers and torchvision, and models whose attention is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks.attention import close, recorded
from torchpeek.engine.attention.gradients import attention_gradients, layerwise_attention_gradients
from torchpeek.errors import MethodNotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")


def timm_model(name, **options):
    return lambda: pytest.importorskip("timm").create_model(name, **options)


def small_timm(name, size=64, **options):
    return timm_model(name, img_size=size, depth=2, embed_dim=36, num_heads=3, num_classes=5, **options)


def transformers_model(name, config, **options):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

    def make():
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, name)(
            getattr(transformers, config)(**small, image_size=32, patch_size=8, num_labels=5, **options)
        )

    return make


def torchvision_model():
    module = pytest.importorskip("torchvision.models.vision_transformer")
    return module.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5)


MODELS = {
    "timm vit": (small_timm("vit_tiny_patch16_224"), 64, 17, "blocks.1"),
    "timm vit without class token": (
        small_timm("vit_tiny_patch16_224", class_token=False, global_pool="avg"),
        64,
        16,
        "blocks.1",
    ),
    "timm distilled deit": (small_timm("deit_tiny_distilled_patch16_224"), 64, 18, "blocks.1"),
    "timm eva02": (small_timm("eva02_tiny_patch14_224", 56), 56, 17, "blocks.1"),
    "timm beit": (small_timm("beit_base_patch16_224"), 64, 17, "blocks.1"),
    "timm cait": (small_timm("cait_xxs24_224"), 64, 16, "blocks.1"),
    "torchvision vit": (torchvision_model, 32, 17, "encoder.layers.encoder_layer_1"),
    "transformers vit": (transformers_model("ViTForImageClassification", "ViTConfig"), 32, 17, None),
    "transformers eager vit": (
        transformers_model("ViTForImageClassification", "ViTConfig", attn_implementation="eager"),
        32,
        17,
        None,
    ),
    "transformers deit": (transformers_model("DeiTForImageClassificationWithTeacher", "DeiTConfig"), 32, 18, None),
    "transformers dinov2 with registers": (
        transformers_model(
            "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", num_register_tokens=4
        ),
        32,
        21,
        None,
    ),
    "transformers dinov3": (
        transformers_model("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
        32,
        21,
        None,
    ),
    "transformers beit": (
        transformers_model("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
        32,
        17,
        None,
    ),
    "transformers clip": (transformers_model("CLIPVisionModelWithProjection", "CLIPVisionConfig"), 32, 17, None),
    "transformers siglip": (transformers_model("SiglipVisionModel", "SiglipVisionConfig"), 32, 16, None),
}


def scores_of(output):
    if isinstance(output, torch.Tensor):
        return output
    return next(output[key] for key in ("logits", "image_embeds", "pooler_output") if key in output)


@pytest.mark.filterwarnings("default")  # other packages' own, as they are imported and made
class TestModels:
    @pytest.mark.parametrize("name", MODELS)
    def test_output_is_the_models_and_weights_are_attention(self, name) -> None:
        make, size, T, block = MODELS[name]
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # heads, positions and scales that begin as zero
                parameter.add_(torch.randn_like(parameter) * 0.05)
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected = scores_of(model(x))
        output, found = recorded(model, x)
        output = scores_of(output)
        close(output.detach(), expected, 2e-5 * float(expected.abs().max()))
        assert [each.weights.shape[2:] for each in found] == [(T, T)] * 2
        for each, gradient in zip(found, attention_gradients(output[:, :3], found), strict=True):
            close(each.weights.sum(-1), torch.ones(each.weights.shape[:-1]), 1e-6)
            assert float(each.weights.std()) > 0
            assert gradient.shape == (2, 3, *each.weights.shape[1:])
            assert float(gradient.abs().amax((2, 3, 4)).min()) > 0
        assert found[0].block != found[1].block
        assert block is None or found[1].block == block
        with torch.no_grad():
            assert torch.equal(scores_of(model(x)), expected)

    def test_layerwise_scores_of_the_last_block_are_the_models_own(self) -> None:
        """So the last layer's two gradients are the same."""
        model = small_timm("vit_tiny_patch16_224")().eval()
        nn.init.normal_(model.head.weight)
        output, found = recorded(model, torch.randn(2, 3, 64, 64))
        layerwise = list(layerwise_attention_gradients(lambda z: model.forward_head(model.norm(z)), found))
        whole = attention_gradients(output, found)
        close(layerwise[-1], whole[-1], 1e-5 * float(whole[-1].abs().max()))

    @pytest.mark.parametrize(
        ("make", "size", "why"),
        [
            (
                timm_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), embed_dim=12, num_heads=(1, 1, 2, 2)),
                224,
                "1 among all tokens, 4 inside windows",
            ),
            (timm_model("xcit_nano_12_p16_224", depth=2, img_size=96), 96, "2 between channels"),
            (timm_model("convit_tiny", img_size=64, depth=2), 64, "several softmaxes"),
            (timm_model("resnet18"), 64, "no attention was recorded in ResNet"),
        ],
    )
    def test_other_attention_is_refused_by_name(self, make, size, why) -> None:
        model = make().eval()
        with pytest.raises(MethodNotApplicable, match=why):
            recorded(model, torch.randn(2, 3, size, size))
