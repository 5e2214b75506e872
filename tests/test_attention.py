"""Attention weights against a replica, finite differences and torch's own functions; the methods against loops."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import replicas_attention as replicas
from torchpeek.cam.attention import legrad, rollout, transformer_attribution
from torchpeek.engine.attention.gradients import attention_gradients, layerwise_attention_gradients
from torchpeek.engine.attention.recorder import AttentionRecorder
from torchpeek.engine.preserve import preserved
from torchpeek.errors import GradUnavailable, MethodNotApplicable, NotConnected, OptionError
from torchpeek.interrupts import interruptible

LAYERS, HEADS, WIDTH = 2, 2, 8


pytestmark = pytest.mark.usefixtures("one_thread")


class Attention(nn.Module):
    """Self-attention in one of the ways in which models write it, all with the same parameters."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        made = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.in_proj_weight, self.in_proj_bias, self.out_proj = made.in_proj_weight, made.in_proj_bias, made.out_proj
        nn.init.normal_(self.in_proj_bias)
        nn.init.normal_(self.in_proj_weight)
        self.soft = nn.Softmax(dim=-1)

    def forward(self, z):
        if self.way.startswith("multihead"):
            # Through torch's own function, as nn.MultiheadAttention calls it.
            made, _ = F.multi_head_attention_forward(
                *(z.transpose(0, 1),) * 3,
                WIDTH,
                HEADS,
                self.in_proj_weight,
                self.in_proj_bias,
                None,
                None,
                False,
                0.0,
                self.out_proj.weight,
                self.out_proj.bias,
                training=False,
                need_weights=self.way == "multihead-weights",
            )
            return made.transpose(0, 1)
        N, T, C = z.shape
        qkv = F.linear(z, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(N, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, C))
        logits = q * (C // HEADS) ** -0.5 @ k.mT
        if self.way == "three-axes":
            weights = torch.bmm(*(each.reshape(N * HEADS, *each.shape[2:]) for each in (q, k.mT)))
            weights = (weights * (C // HEADS) ** -0.5).softmax(dim=2)
            made = torch.bmm(weights, v.reshape(N * HEADS, T, -1)).view(N, HEADS, T, -1)
        else:
            made = {
                "method": lambda: logits.softmax(-1),
                "function": lambda: F.softmax(logits, dim=-1),
                "torch": lambda: torch.softmax(logits, 3),
                "module": lambda: self.soft(logits),
            }[self.way]() @ v
        return self.out_proj(made.transpose(1, 2).reshape(N, T, C))


WAYS = ["fused", "method", "function", "torch", "module", "three-axes", "multihead", "multihead-weights"]


class Block(nn.Module):
    def __init__(self, way: str, returns: str = "tensor") -> None:
        super().__init__()
        self.returns = returns
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(way), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, z):
        if isinstance(z, tuple):
            z = z[0]
        if self.returns == "in-place":
            z += self.attn(self.norm1(z))
            return z + self.down(self.up(self.norm2(z)).tanh())
        if self.returns == "sequence":
            z = z.transpose(0, 1)
        z = z + self.attn(self.norm1(z))
        z = z + self.down(self.up(self.norm2(z)).tanh())
        return {"tensor": lambda: z, "tuple": lambda: (z, "more"), "sequence": lambda: z.transpose(0, 1)}[
            self.returns
        ]()


class ViT(nn.Module):
    """Small and smooth; T = 1 + 2 * 3, and the blocks' parameters are large, so that attention is far from uniform."""

    def __init__(self, way: str = "fused", returns: str = "tensor") -> None:
        super().__init__()
        self.returns = returns
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.blocks = nn.Sequential(*(Block(way, returns) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        z = self.patch(x).flatten(2).mT
        z = torch.cat([self.token.expand(len(z), -1, -1), z], dim=1) + self.position
        return self.tail(self.blocks(z.transpose(0, 1) if self.returns == "sequence" else z))

    def tail(self, z):
        z = z[0] if isinstance(z, tuple) else z.transpose(0, 1) if self.returns == "sequence" else z
        return self.head(self.norm(z)[:, 0])


def vit(way="fused", returns="tensor"):
    torch.manual_seed(3)
    return ViT(way, returns).double().eval()


def picture(count=2):
    return torch.randn(count, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def recorded(model, x, gradients=True):
    recorder = AttentionRecorder(gradients, model)
    with preserved(model), recorder:
        output = model(x)
    return output, recorder.attentions(len(x))


def parameters(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def replica(model, x, given=None):
    return replicas.vit(parameters(model), x.numpy(), LAYERS, HEADS, given)


def trace_of(weights, gradients=(), layerwise=(), prefix=1, grid=(2, 3), reads_prefix=True, suffix=0):
    count, tokens = (len(weights[0]), weights[0].shape[-1]) if len(weights) else (1, 7)
    scores = gradients[0].shape[1] if len(gradients) else 1
    reading = torch.zeros(count, scores, tokens, dtype=torch.float64)
    reading[:, :, 0 if reads_prefix else slice(prefix, tokens - suffix)] = 1
    return SimpleNamespace(
        attentions=[SimpleNamespace(weights=each) for each in weights],
        attention_gradients=list(gradients),
        layerwise_attention_gradients=iter(layerwise),
        tokens=SimpleNamespace(prefix=prefix, grid=grid, suffix=suffix),
        reading=reading / reading.sum(2, keepdim=True),
    )


def close(ours, theirs, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


class TestWeights:
    @pytest.mark.parametrize("way", WAYS)
    def test_are_those_of_the_replica(self, way) -> None:
        model, x = vit(way), picture()
        output, found = recorded(model, x)
        for n in range(len(x)):
            attentions, _, scores = replica(model, x[n])
            close(output[n].detach(), scores)
            for ours, theirs in zip(found, attentions, strict=True):
                close(ours.weights[n], theirs)
        assert [each.block for each in found] == ["blocks.0", "blocks.1"]
        inner = "blocks.1.attn.soft" if way == "module" else "blocks.1.attn"
        assert found[1].layer == inner

    @pytest.mark.parametrize("way", WAYS)
    def test_gradients_are_those_of_the_fused_way(self, way) -> None:
        x = picture()
        output, found = recorded(vit(), x)
        other, others = recorded(vit(way), x)
        for one, two in zip(attention_gradients(output, found), attention_gradients(other, others), strict=True):
            assert one.shape == (2, 3, HEADS, 7, 7)
            close(one, two)

    def test_gradients_are_the_slopes_of_the_scores(self) -> None:
        model, x = vit(), picture()
        output, found = recorded(model, x)
        gradients = attention_gradients(output, found)
        for n in range(len(x)):
            attentions = replica(model, x[n])[0]
            for layer, A in enumerate(attentions):
                slopes = replicas.slopes(lambda A, n=n, layer=layer: replica(model, x[n], {layer: A})[2], A)
                close(gradients[layer][n], slopes, 1e-7)

    @pytest.mark.parametrize("returns", ["tensor", "tuple", "sequence", "in-place"])
    def test_layerwise_gradients_are_the_slopes_of_the_head_on_that_blocks_tokens(self, returns) -> None:
        model, x = vit(returns=returns), picture(1)
        _, found = recorded(model, x)
        gradients = list(layerwise_attention_gradients(model.tail, found))
        for layer, A in enumerate(replica(model, x[0])[0]):

            def score(A, layer=layer):
                return replicas.head(parameters(model), replica(model, x[0], {layer: A})[1][layer])

            close(gradients[layer][0], replicas.slopes(score, A), 1e-7)

    def test_many_classes_in_chunks_are_the_same(self, monkeypatch) -> None:
        model, x = vit(), picture()
        output, found = recorded(model, x)
        whole = attention_gradients(output, found)
        monkeypatch.setattr("torchpeek.engine.gradients._BYTES", 1)
        for one, two in zip(whole, attention_gradients(output, found), strict=True):
            close(one, two, 1e-12)

    def test_frozen_and_inside_no_grad_and_inference_mode(self) -> None:
        model, x = vit(), picture()
        expected = attention_gradients(*recorded(model, x))
        model.requires_grad_(False)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                output, found = recorded(model, x)
                made = attention_gradients(output, found)
            for one, two in zip(made, expected, strict=True):
                assert torch.equal(one, two)

    def test_graph_starts_at_the_first_attention(self) -> None:
        model, on = vit(), []
        model.blocks[0].norm1.register_forward_hook(lambda *_: on.append(torch.is_grad_enabled()))
        model.blocks[0].norm2.register_forward_hook(lambda *_: on.append(torch.is_grad_enabled()))
        _, found = recorded(model, picture())
        assert on == [False, True]
        assert isinstance(found[0].handle, torch.Tensor)
        assert found[0].handle.is_leaf

    def test_without_gradients(self) -> None:
        output, found = recorded(vit(), picture(), gradients=False)
        assert not output.requires_grad
        with pytest.raises(GradUnavailable, match="gradients=False"):
            attention_gradients(output, found)

    def test_a_score_that_does_not_depend_on_them(self) -> None:
        output, found = recorded(vit(), picture())
        with pytest.raises(NotConnected, match=r"'blocks\.0\.attn', 'blocks\.1\.attn'"):
            attention_gradients(output.detach(), found)
        with pytest.raises(NotConnected, match=r"'blocks\.0\.attn'"):
            list(layerwise_attention_gradients(lambda z: z.detach()[:, 0], found))

    def test_checkpointed(self) -> None:
        model = vit()

        def forward(z):
            for block in model.blocks._modules.values():
                z = torch.utils.checkpoint.checkpoint(block, z, use_reentrant=False)
            return z

        model.blocks.forward = forward
        output, found = recorded(model, picture())
        with pytest.raises(GradUnavailable, match="checkpoint"):
            attention_gradients(output, found)


class Plain(nn.Module):
    """Nothing but a call of the fused function on its own tokens."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        made = F.scaled_dot_product_attention(q, k, v, **self.options)
        return made.transpose(-2, -3).flatten(-2) if made.ndim == 4 else made


def mask(kind):
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 1, 5, 5, generator=generator) > 0.4
    allowed |= torch.eye(5, dtype=torch.bool)
    match kind:
        case "bool":
            return allowed
        case "dead row":
            return allowed & (torch.arange(5) != 2).unsqueeze(1)
        case "additive":
            return torch.randn(4, 5, 5, generator=generator, dtype=torch.float64)
        case "minus infinity":
            return torch.zeros(5, 5, dtype=torch.float64).masked_fill(~allowed[0, 0], -torch.inf)
        case "dead row of minus infinity":
            return torch.zeros(5, 5, dtype=torch.float64).masked_fill(torch.arange(5).unsqueeze(1) == 2, -torch.inf)


class TestFused:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"is_causal": True},
            {"scale": 0.3},
            *({"attn_mask": mask(kind)} for kind in ("bool", "dead row", "additive", "minus infinity")),
            {"attn_mask": mask("dead row of minus infinity")},
        ],
    )
    def test_output_and_gradients_are_torchs(self, options) -> None:
        q, k, v = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64).requires_grad_()
        model = Plain(**options)
        expected = model(q, k, v)
        with AttentionRecorder(True, model) as recorder:
            made = model(q, k, v)
        close(made.detach(), expected.detach(), 1e-12)
        ours, theirs = (torch.autograd.grad(each.square().sum(), [q, k, v]) for each in (made, expected))
        for one, two in zip(ours, theirs, strict=True):
            assert torch.isfinite(one).all()
            close(one, two, 1e-12)
        [found] = recorder.attentions(2)
        rows = found.weights.sum(-1)
        dead = any(torch.equal(options.get("attn_mask", q), mask(f"dead row{of}")) for of in ("", " of minus infinity"))
        close(rows, torch.ones_like(rows).masked_fill(dead & (torch.arange(5) == 2), 0), 1e-12)

    def test_lies_in_memory_as_the_fused_one(self) -> None:
        """So that a model may view it as (N, T, C)."""

        class Viewing(Plain):
            def forward(self, q):
                return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).view(2, 5, 24)

        q, model = torch.randn(2, 4, 5, 6), Viewing()
        with torch.no_grad(), AttentionRecorder(True, model):
            close(model(q).detach(), model(q).detach(), 0)

    def test_fewer_heads_of_keys(self) -> None:
        q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6), torch.randn(2, 1, 5, 6)
        v = v.expand(-1, 2, -1, -1)
        model = Plain(enable_gqa=True)
        with torch.no_grad(), AttentionRecorder(False, model) as recorder:
            made = model(q, k, v)
        close(made, model(q, k, v), 1e-6)
        close(recorder.attentions(2)[0].weights, (q @ k.repeat_interleave(2, 1).mT * 6**-0.5).softmax(-1), 1e-6)

    def test_samples_and_heads_in_one_axis(self) -> None:
        class Merged(nn.Module):
            def forward(self, q):
                made = F.scaled_dot_product_attention(*(q.flatten(0, 1),) * 3)
                return made.view(q.shape).transpose(1, 2).flatten(2)

        q = torch.randn(3, 2, 5, 6)
        model = Merged()
        with torch.no_grad(), AttentionRecorder(False, model) as recorder:
            close(model(q), Plain()(q, q, q), 1e-6)
        close(recorder.attentions(3)[0].weights, (q @ q.mT * 6**-0.5).softmax(-1), 1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype) -> None:
        q, k, v = torch.randn(3, 2, 4, 5, 6).to(dtype)
        model = Plain()
        with torch.no_grad(), AttentionRecorder(False, model) as recorder:
            made = model(q, k, v)
        assert made.dtype == dtype
        close(made.float(), model(q, k, v).float(), 2e-2)
        close(recorder.attentions(2)[0].weights, (q.double() @ k.double().mT * 6**-0.5).softmax(-1), 1e-6)

    def test_autocast(self) -> None:
        q, k, v = torch.randn(3, 2, 4, 5, 6)
        model = Plain()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = model(q, k, v)
            with AttentionRecorder(False, model):
                made = model(q, k, v)
        assert made.dtype == expected.dtype == torch.bfloat16
        close(made.float(), expected.float(), 2e-2)

    def test_other_queries_pass_by(self) -> None:
        q, k = torch.randn(2, 4, 3, 6), torch.randn(2, 4, 5, 6)
        model = Plain()
        with AttentionRecorder(True, model) as recorder:
            made = model(q, k, k)
        assert torch.equal(made, model(q, k, k))
        with pytest.raises(MethodNotApplicable, match="1 from other queries"):
            recorder.attentions(2)

    @pytest.mark.parametrize("first", [True, False])
    def test_transformer_encoder_without_its_fast_path(self, first) -> None:
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=first), 2, enable_nested_tensor=first
        ).eval()
        tokens = torch.randn(3, 5, 8) if first else torch.randn(5, 3, 8)
        with torch.no_grad():
            expected = model(tokens)
            with AttentionRecorder(True, model) as recorder:
                made = model(tokens)
            assert torch.equal(model(tokens), expected)
            close(made.detach(), expected, 1e-5)
        found = recorder.attentions(3)
        assert [each.block for each in found] == ["layers.0", "layers.1"]
        z = tokens if first else tokens.transpose(0, 1)
        _, theirs = model.layers[0].self_attn(*(z if first else tokens,) * 3, average_attn_weights=False)
        close(found[0].weights, theirs.detach(), 1e-6)
        assert all(float(each.abs().max()) > 0 for each in attention_gradients(made.flatten(1)[:3, :2], found))

    def test_padding_masks_of_multihead_attention(self) -> None:
        class Padded(nn.Module):
            def __init__(self, weights: bool) -> None:
                super().__init__()
                self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
                self.weights = weights

            def forward(self, z):
                padding = torch.arange(5) >= torch.tensor([[5], [3]])
                return self.attn(z, z, z, key_padding_mask=padding, need_weights=self.weights)

        z = torch.randn(2, 5, 8)
        for weights in (True, False):
            model = Padded(weights).eval()
            with torch.no_grad(), AttentionRecorder(False, model) as recorder:
                made = model(z)
            close(made[0], model(z)[0].detach(), 1e-6)
            [found] = recorder.attentions(2)
            assert float(found.weights[1, :, :, 3:].abs().max()) == 0
            assert float(found.weights[0, :, :, 3:].min()) > 0


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


class TestRefused:
    def test_scripted(self) -> None:
        class Eager(nn.Module):
            def forward(self, z: torch.Tensor) -> torch.Tensor:
                return (z @ z.transpose(1, 2)).softmax(-1) @ z

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which kind of warning depends on torch
            model = nn.Sequential(nn.Identity(), torch.jit.script(Eager()))
        with pytest.raises(MethodNotApplicable, match="scripted parts, which this model has"):
            recorded(model, torch.randn(2, 5, 8))

    def test_fewer_tokens_later(self) -> None:
        class Pool(nn.Module):
            def forward(self, z):
                return z[:, ::2]

        block = Block("fused")
        model = nn.Sequential(block, copy.deepcopy(block), Pool(), copy.deepcopy(block))
        with pytest.raises(MethodNotApplicable, match=r"among 6 tokens, but that in '3\.attn'"):
            recorded(model, torch.randn(2, 6, WIDTH))

    def test_several_branches(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fine, self.coarse = (nn.ModuleList(Block("fused") for _ in range(2)) for _ in range(2))

            def forward(self, z):
                few = z[:, ::2]
                for fine, coarse in zip(self.fine, self.coarse, strict=True):
                    z, few = fine(z), coarse(few)
                return z[:, 0] + few[:, 0]

        with pytest.raises(MethodNotApplicable, match="in several branches"):
            recorded(Branches(), torch.randn(2, 6, WIDTH))

    def test_earlier_stages_with_more_tokens_are_left_out(self) -> None:
        class Pool(nn.Module):
            def forward(self, z):
                return z[:, ::2]

        block = Block("fused")
        model = nn.Sequential(block, Pool(), copy.deepcopy(block), copy.deepcopy(block))
        _, found = recorded(model, torch.randn(2, 6, WIDTH))
        assert [each.block for each in found] == ["2", "3"]


class TestLeavesNothingBehind:
    def state(self, model):
        return {
            "grad mode": torch.is_grad_enabled(),
            "modes": torch.overrides._get_current_function_mode_stack(),
            "hooks": [
                (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._forward_hooks_always_called))
                for m in model.modules()
            ],
            "training": [m.training for m in model.modules()],
            "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "signal": signal.getsignal(signal.SIGINT),
        }

    def test_as_it_was(self) -> None:
        model, x = vit(), picture()
        before, weights = self.state(model), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            expected = model(x)
        attention_gradients(*recorded(model, x))
        assert self.state(model) == before
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model(x), expected)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_error_inside(self, error) -> None:
        model, x = vit("multihead"), picture()
        before = self.state(model)

        def fail(*_):
            raise error("here")

        model.blocks[1].norm2.forward = fail
        with pytest.raises(error, match="here"), torch.device("cpu"), AttentionRecorder(True, model):
            model(x)
        assert self.state(model) == before

    def test_after_ctrl_c(self) -> None:
        model, x = vit(), picture()
        before = self.state(model)
        usual = model.blocks[1].norm2.forward

        def press(z):
            signal.raise_signal(signal.SIGINT)
            return usual(z)

        model.blocks[1].norm2.forward = press
        with pytest.raises(KeyboardInterrupt), AttentionRecorder(True, model), interruptible():
            model(x)
        assert self.state(model) == before

    @pytest.mark.parametrize("around", [lambda: torch.device("cpu"), contextlib.nullcontext])
    def test_after_an_interrupt_between_two_modes(self, around) -> None:
        """As an interrupt may come where torch itself has taken the mode off, and not put it back."""
        model, x = vit(), picture()
        before = self.state(model)

        def torn(z):
            torch._C._pop_torch_function_stack()
            raise KeyboardInterrupt

        model.blocks[1].norm2.forward = torn
        with around():
            own = torch.overrides._get_current_function_mode_stack()
            with pytest.raises(KeyboardInterrupt), AttentionRecorder(True, model):
                model(x)
            assert torch.overrides._get_current_function_mode_stack() == own
        assert self.state(model) == before

    def test_an_error_that_the_model_catches(self) -> None:
        class Stubborn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bad, self.block = nn.Linear(3, 3), Block("fused")

            def forward(self, z):
                try:
                    self.bad(z)
                except RuntimeError:
                    z = self.block(z)
                return z[:, 0]

        _, [found] = recorded(Stubborn(), torch.randn(2, 6, WIDTH))
        assert (found.layer, found.block) == ("block.attn", "block")

    def test_two_threads_at_once_and_a_third_without(self) -> None:
        x, together = picture(), threading.Barrier(3)
        models = [vit(), vit("multihead"), vit()]
        models[1].load_state_dict(models[0].state_dict())
        found: dict[int, object] = {}

        def meet(*_):
            together.wait(10)

        for model in models:
            model.norm.register_forward_pre_hook(meet)
            model.blocks[1].norm1.register_forward_pre_hook(meet)

        def work(number):
            if number < 2:
                output, attentions = recorded(models[number], x)
                found[number] = [each.weights for each in attentions], attention_gradients(output, attentions)
            else:
                with torch.no_grad():
                    found[number] = models[number](x), torch.overrides._get_current_function_mode_stack()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ours, theirs in zip(found[0], found[1], strict=True):
            for one, two in zip(ours, theirs, strict=True):
                close(one, two)
        output, modes = found[2]
        assert modes == []
        models[2].blocks[1].norm1._forward_pre_hooks.clear()
        models[2].norm._forward_pre_hooks.clear()
        with torch.no_grad():
            assert torch.equal(output, models[2](x))

    def test_somebody_else_running_the_same_model(self) -> None:
        model, x, others = vit(), picture(), []

        def meanwhile(*_):
            if not others:
                others.append(threading.Thread(target=model.blocks[0], args=(torch.randn(2, 7, WIDTH).double(),)))
                others[0].start()
                others[0].join()

        model.blocks[0].norm2.register_forward_hook(meanwhile)
        output, found = recorded(model, x)
        assert [each.block for each in found] == ["blocks.0", "blocks.1"]
        close(output.detach(), vit()(x).detach(), 1e-12)


class TestMethods:
    def test_rollout_of_two_layers_by_hand(self) -> None:
        """A class token and two positions; the second layer looks at position 1 only, the first moves 2 to 1."""
        first = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0]])
        second = torch.tensor([[0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]])
        # Halves with the identity: row 0 of the second is (1/2, 1/2, 0), rows of the first (1, 0, 0), (0, 1/2, 1/2).
        trace = trace_of([first[None, None], second[None, None]], grid=(2,))
        close(rollout(trace), [[[0.25, 0.25]]], 1e-7)
        swapped = trace_of([second[None, None], first[None, None]], grid=(2,))
        close(rollout(swapped), [[[0.5, 0.0]]], 1e-7)

    @pytest.mark.parametrize("reads_prefix", [True, False])
    @pytest.mark.parametrize("heads", ["mean", "min", "max"])
    def test_rollout(self, heads, reads_prefix) -> None:
        weights = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64).softmax(-1)
        ours = rollout(trace_of(weights, prefix=2, reads_prefix=reads_prefix), heads=heads)
        assert ours.shape == (2, 1, 2, 3)
        for n in range(2):
            theirs = replicas.rollout(
                [each[n].numpy() for each in weights],
                2,
                [0] if reads_prefix else range(2, 8),
                {"mean": np.mean, "min": min, "max": max}[heads],
            )
            close(ours[n, 0].flatten(), theirs)

    def test_each_sample_as_if_alone(self) -> None:
        """A known implementation drops the weakest attention of the batch's first sample for all of them."""
        weights = torch.randn(3, 4, 2, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(3, 4, 2, 2, 7, 7, dtype=torch.float64)
        for method in (rollout, transformer_attribution, legrad):
            together = method(trace_of(weights, gradients, gradients))
            alone = method(trace_of(weights[:, 3:], gradients[:, 3:], gradients[:, 3:]))
            close(together[3], alone[0], 1e-15)

    def test_rollout_is_a_distribution(self) -> None:
        weights = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64).softmax(-1)
        close(rollout(trace_of(weights, prefix=0, reads_prefix=False)).sum((2, 3)), np.ones((2, 1)), 1e-12)

    @pytest.mark.parametrize("reads_prefix", [True, False])
    def test_transformer_attribution(self, reads_prefix) -> None:
        weights = torch.randn(3, 2, 4, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(3, 2, 5, 4, 7, 7, dtype=torch.float64)
        ours = transformer_attribution(trace_of(weights, gradients, reads_prefix=reads_prefix))
        assert ours.shape == (2, 5, 2, 3)
        for n, k in np.ndindex(2, 5):
            theirs = replicas.transformer_attribution(
                [each[n].numpy() for each in weights],
                [each[n, k].numpy() for each in gradients],
                1,
                [0] if reads_prefix else range(1, 7),
            )
            close(ours[n, k].flatten(), theirs)

    def test_transformer_attribution_of_one_layer_grows_with_the_score(self) -> None:
        weights = torch.randn(1, 2, 4, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(1, 2, 1, 4, 7, 7, dtype=torch.float64)
        once, thrice = (transformer_attribution(trace_of(weights, gradients * factor)) for factor in (1, 3))
        close(thrice, 3 * once)

    def test_legrad(self) -> None:
        gradients = torch.randn(3, 2, 5, 4, 8, 8, dtype=torch.float64)
        ours = legrad(trace_of([], (), gradients, suffix=1))
        assert ours.shape == (2, 5, 2, 3)
        for n, k in np.ndindex(2, 5):
            close(ours[n, k].flatten(), replicas.legrad([each[n, k].numpy() for each in gradients], 1)[:6])

    def test_from_the_model_to_the_map(self) -> None:
        """All three of one pass, against the replica with finite differences all the way."""
        model, x = vit(), picture(1)
        output, found = recorded(model, x)
        trace = trace_of(
            [each.weights for each in found],
            attention_gradients(output, found),
            layerwise_attention_gradients(model.tail, found),
        )
        attentions = replica(model, x[0])[0]
        of_scores = [
            replicas.slopes(lambda A, layer=layer: replica(model, x[0], {layer: A})[2], A)
            for layer, A in enumerate(attentions)
        ]
        of_layers = [
            replicas.slopes(
                lambda A, layer=layer: replicas.head(parameters(model), replica(model, x[0], {layer: A})[1][layer]), A
            )
            for layer, A in enumerate(attentions)
        ]
        close(rollout(trace)[0, 0].flatten(), replicas.rollout(attentions, 1, [0]))
        attributed, summed = transformer_attribution(trace), legrad(trace)
        for k in range(3):
            theirs = replicas.transformer_attribution(attentions, [each[k] for each in of_scores], 1, [0])
            close(attributed[0, k].flatten(), theirs, 1e-7)
            close(summed[0, k].flatten(), replicas.legrad([each[k] for each in of_layers], 1), 1e-7)

    def test_heads_that_there_are_not(self) -> None:
        with pytest.raises(OptionError, match="'mean', 'min', 'max'"):
            rollout(trace_of(torch.ones(1, 1, 1, 7, 7) / 7), heads="median")
