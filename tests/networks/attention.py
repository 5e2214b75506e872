"""A small ViT that computes its attention in every common way, with the replica's parameters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from replicas import attention as replicas
from torchpeek.engine.attention.recorder import AttentionRecorder
from torchpeek.engine.preserve import preserved

LAYERS, HEADS, WIDTH = 2, 2, 8


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
        readout_weights=reading / reading.sum(2, keepdim=True),
    )


def close(ours, theirs, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)
