"""Attention computed step by step in place of the fused function: outputs and gradients are those of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks.attention import close
from torchpeek.engine.attention.gradients import attention_gradients
from torchpeek.engine.attention.recorder import AttentionRecorder
from torchpeek.errors import MethodNotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")


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
