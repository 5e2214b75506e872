"""Words, object queries and latent vectors: their number may be that of a grid, and they are no positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.words import Captioner, Latents, Pruned, Recurrent, Registers
from torchpeek.errors import NoSpatialLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COUNTS = [4, 5, 16, 17, 48, 49, 64, 65]


def made(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def word_indices(count: int) -> Tensor:
    return torch.arange(count)[None] % 40 + 3


def gradcam(scores: Tensor, activation: Tensor) -> Tensor:
    """(1, 1, H, W): Grad-CAM by plain autograd; `activation` is (1, C, H, W)."""
    (gradient,) = torch.autograd.grad(scores.sum(), activation)
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).detach()


class TestCaptioner:
    @pytest.mark.parametrize("learned", [False, True])
    @pytest.mark.parametrize("count", COUNTS)
    def test_the_map_is_over_the_picture(self, count: int, learned: bool) -> None:
        model = made(Captioner(count if learned else 0))
        words = None if learned else word_indices(count)
        heatmap = tp.explain(model, X if words is None else tp.Arguments((X, words)), target=7)
        assert heatmap.provenance.layer == "encoder.act"
        assert heatmap.provenance.layout == "channels-first 8x8"
        activation = model.encoder(X).detach().requires_grad_()
        expected = gradcam(model.after_encoder(activation, words)[:, 7], activation)
        torch.testing.assert_close(heatmap.values, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("layer", ["decoder", "decoder.layers.1", "decoder.layers.0.norm3"])
    def test_named_word_tokens_are_refused(self, layer: str) -> None:
        model, call = made(Captioner()), tp.Arguments((X, word_indices(16)))
        with pytest.raises(NoSpatialLayer, match=rf"'{layer}' returned .*not positions of the picture.*layer="):
            tp.explain(model, call, layer=layer, target=7)

    def test_unless_the_user_says_that_they_are_a_grid(self) -> None:
        model, call = made(Captioner()), tp.Arguments((X, word_indices(16)))
        heatmap = tp.explain(model, call, layer="decoder", layout="tokens 4x4", target=7)
        assert heatmap.values.shape == (1, 1, 4, 4)

    def test_takes_no_more_passes(self) -> None:
        model, passes = made(Captioner(16)), []
        model.register_forward_hook(lambda *_: passes.append(1))
        tp.explain(model, X, target=7)
        assert len(passes) == 3

    def test_a_batch(self) -> None:
        model, pictures = made(Captioner()), torch.cat([X, -X, 2 * X])
        words = word_indices(16).expand(3, -1)
        heatmap = tp.explain(model, tp.Arguments((pictures, words)), target=7)
        one = tp.explain(model, tp.Arguments((-X, words[:1])), target=7)
        torch.testing.assert_close(heatmap.values[1:2], one.values, rtol=1e-9, atol=1e-12)


class TestLatents:
    @pytest.mark.parametrize("spelling", ["product", "keys first", "channels first", "einsum", "slots", "fused"])
    @pytest.mark.parametrize("count", [16, 49, 65, 256])
    def test_however_attention_is_written(self, count: int, spelling: str) -> None:
        model = made(Latents(count, spelling))
        assert tp.trace(model, X, target=1).layer == "encoder.act"
        with pytest.raises(NoSpatialLayer, match="not positions of the picture"):
            tp.trace(model, X, layer="block", target=1)

    @pytest.mark.parametrize("place", ["first", "added", "state"])
    @pytest.mark.parametrize("count", [3, 4, 15, 16, 64])
    def test_one_vector_for_the_whole_picture(self, count: int, place: str) -> None:
        model, call = made(Recurrent(place)), tp.Arguments((X, word_indices(count)))
        assert tp.trace(model, call, target=7).layer == "encoder.act"

    @pytest.mark.parametrize("count", [16, 17, 49])
    def test_a_selection_of_tokens_has_no_grid(self, count: int) -> None:
        model = made(Pruned(count))
        trace = tp.trace(model, X, target=1)
        assert (trace.layer, str(trace.at["first"].layout)) == ("first", "tokens 8x8")
        with pytest.raises(NoSpatialLayer, match="not positions of the picture"):
            tp.trace(model, X, layer="second", target=1)


class TestTokensBesideTheGrid:
    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("count", [4, 16, 49])
    def test_registers(self, count: int, last: bool) -> None:
        trace = tp.trace(made(Registers(count, last=last)), X, target=1)
        assert trace.layer == "blocks"
        assert str(trace.at["blocks"].layout) == (f"tokens 8x8+{count}" if last else f"tokens {count}+8x8")


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VISION: dict[str, Any] = {**SMALL, "image_size": 64, "patch_size": 8}


def last_logit(output: Any, rows: Tensor) -> Tensor:
    return output.logits[:, -1, 7:8]


def call_with(count: int) -> dict[str, Tensor]:
    return {"pixel_values": X, "input_ids": word_indices(count)}


class TestTransformers:
    """Models of the library transformers, with the map computed by a hook of our own and autograd."""

    def expected(self, model: nn.Module, layer: str, call: dict[str, Tensor], prefix: int) -> Tensor:
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.append(output[0] if not isinstance(output, Tensor) else output)

        handle = dict(model.named_modules())[layer].register_forward_hook(keep)
        score = last_logit(model(**call), torch.tensor([0])).sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(score, found[-1])
        tokens, gradient = found[-1][:, prefix : prefix + 64], gradient[:, prefix : prefix + 64]
        return (gradient.mean(1, keepdim=True) * tokens).sum(-1).view(1, 1, 8, 8).detach()

    @pytest.mark.parametrize("count", [4, 5, 16, 17, 48, 64])
    @pytest.mark.parametrize("name", ["blip", "git", "vision encoder decoder"])
    def test_words_in_and_beside_the_picture(self, name: str, count: int) -> None:
        transformers = pytest.importorskip("transformers")
        call = call_with(count)
        if name == "blip":
            text = {**SMALL, "vocab_size": 50, "encoder_hidden_size": 32, "projection_dim": 16}
            ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2}
            config = transformers.BlipConfig(
                text_config={**text, **ids, "max_position_embeddings": 80},
                vision_config={**VISION, "projection_dim": 16},
            )
            model = transformers.BlipForConditionalGeneration(config)
            inside, layout = "vision_model", "tokens 1+8x8"
        elif name == "git":
            config = transformers.GitConfig(
                vision_config=VISION, **SMALL, vocab_size=50, max_position_embeddings=80, bos_token_id=1, eos_token_id=2
            )
            model = transformers.GitForCausalLM(config)
            inside, layout = "git.encoder.layer", f"tokens 1+8x8+{count}"
        else:
            decoder = transformers.BertConfig(
                **SMALL, vocab_size=50, is_decoder=True, add_cross_attention=True, max_position_embeddings=80
            )
            both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                transformers.ViTConfig(**VISION), decoder
            )
            model = transformers.VisionEncoderDecoderModel(both)
            call = {"pixel_values": X, "decoder_input_ids": word_indices(count)}
            inside, layout = "encoder", "tokens 1+8x8"
        model = made(model)
        heatmap = tp.explain(model, call, target=tp.targets.Computed(last_logit))
        assert heatmap.provenance.layer.startswith(inside)
        assert heatmap.provenance.layout == layout
        expected = self.expected(model, heatmap.provenance.layer, call, 1)
        torch.testing.assert_close(heatmap.values, expected, rtol=1e-7, atol=1e-12)

    def test_patches_in_random_order_have_no_grid(self) -> None:
        """ViLT shuffles the patches of every picture."""
        transformers = pytest.importorskip("transformers")
        config = transformers.ViltConfig(**SMALL, image_size=64, patch_size=16, vocab_size=50)
        model = made(transformers.ViltForQuestionAnswering(config))
        trace = tp.trace(model, call_with(4), target=tp.targets.Output(0))
        assert str(trace.at[trace.layer].layout) == "channels-first 4x4"
