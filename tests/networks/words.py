"""Small networks whose words, object queries or latent vectors read a picture through attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 32


class Encoder(nn.Module):
    """(N, 3, H, W) -> (N, C, H / 8, W / 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, CHANNELS, 8, 8), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Captioner(nn.Module):
    """A transformer decoder over the positions of a convolution. Its queries are words, or learned."""

    def __init__(self, queries: int = 0) -> None:
        super().__init__()
        self.encoder, self.embedding = Encoder(), nn.Embedding(50, CHANNELS)
        self.queries = nn.Parameter(torch.randn(1, queries, CHANNELS)) if queries else None
        layer = nn.TransformerDecoderLayer(CHANNELS, 2, 64, dropout=0, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(CHANNELS, 50)

    def after_encoder(self, activation: Tensor, words: Tensor | None = None) -> Tensor:
        tokens = self.embedding(words) if self.queries is None else self.queries.expand(len(activation), -1, -1)
        return self.head(self.decoder(tokens, activation.flatten(2).mT).mean(1))

    def forward(self, x: Tensor, words: Tensor | None = None) -> Tensor:
        return self.after_encoder(self.encoder(x), words)


class Latents(nn.Module):
    """Learned latent vectors that read the picture, then each other. `spelling` is how attention is written."""

    def __init__(self, count: int, spelling: str) -> None:
        super().__init__()
        self.encoder, self.latents = Encoder(), nn.Parameter(torch.randn(count, CHANNELS))
        self.query, self.key, self.value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 5)
        self.block = nn.TransformerEncoderLayer(CHANNELS, 2, 64, dropout=0, batch_first=True)
        self.spelling = spelling

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        match self.spelling:
            case "product":
                return (q @ k.mT / 5).softmax(-1) @ v
            case "keys first":
                return (k @ q.mT / 5).softmax(1).mT @ v
            case "channels first":
                return (v.mT @ (q @ k.mT / 5).softmax(-1).mT).mT
            case "einsum":
                return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)
            case "slots":
                weights = torch.einsum("bid,bjd->bij", q, k).softmax(1)
                return torch.einsum("bjd,bij->bid", v, weights / weights.sum(-1, keepdim=True))
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(x).flatten(2).mT
        latents = self.latents.expand(len(x), -1, -1)
        read = self.attend(self.query(latents), self.key(tokens), self.value(tokens))
        return self.head(self.block(self.norm(latents + read)).mean(1))


class Registers(nn.Module):
    """A transformer over the picture's tokens and learned ones, before or after them."""

    def __init__(self, count: int, *, last: bool) -> None:
        super().__init__()
        self.patches, self.registers = nn.Conv2d(3, CHANNELS, 8, 8), nn.Parameter(torch.randn(1, count, CHANNELS))
        self.positions, self.head = nn.Parameter(torch.randn(1, 64, CHANNELS)), nn.Linear(CHANNELS, 5)
        layer = nn.TransformerEncoderLayer(CHANNELS, 2, 64, dropout=0, batch_first=True)
        self.blocks, self.last = nn.TransformerEncoder(layer, 2), last

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.positions
        registers = self.registers.expand(len(x), -1, -1)
        joined = torch.cat([tokens, registers] if self.last else [registers, tokens], 1)
        return self.head(self.blocks(joined).mean(1))


class Pruned(nn.Module):
    """After the first block, only the `count` longest tokens go on."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, CHANNELS, 8, 8), nn.Linear(CHANNELS, 5)
        self.first, self.second = (
            nn.TransformerEncoderLayer(CHANNELS, 2, 64, dropout=0, batch_first=True) for _ in range(2)
        )
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(self.patches(x).flatten(2).mT)
        best = tokens.norm(dim=-1).topk(self.count, 1).indices[..., None]
        return self.head(self.second(tokens.gather(1, best.expand(-1, -1, CHANNELS))).mean(1))


class Recurrent(nn.Module):
    """Words, and the picture as one vector: the first word, added to each, or the first state."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.encoder, self.embedding, self.place = Encoder(), nn.Embedding(50, CHANNELS), place
        self.norm, self.cell = nn.LayerNorm(CHANNELS), nn.GRU(CHANNELS, CHANNELS, batch_first=True)
        self.head = nn.Linear(CHANNELS, 50)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        picture, tokens = self.encoder(x).mean((2, 3)), self.embedding(words)
        if self.place == "first":
            tokens = torch.cat([picture[:, None], tokens], 1)
        elif self.place == "added":
            tokens = tokens + picture[:, None]
        state = picture[None] if self.place == "state" else None
        return self.head(self.norm(self.cell(tokens, state)[0]).mean(1))
