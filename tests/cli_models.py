"""Models that the tests of the command line name with --model MODULE:NAME."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.dense_detectors import DenseDetector, yolov8_with_raw

PREPROCESS = tp.Preprocess(resize=16, crop=(16, 16))
CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def pooled(preprocess: Any = PREPROCESS, **facts: Any) -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(PooledNet(), preprocess, CLASSES, **facts)


untrained = partial(pooled, weights="random")
any_size = partial(pooled, tp.Preprocess(None, None))
plain = partial(tp.LoadedModel, nn.Sequential(nn.Flatten()), PREPROCESS)
upwards = partial(tp.LoadedModel, nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU()), PREPROCESS)
waving = partial(tp.LoadedModel, nn.Sequential(nn.Conv2d(3, 2, 1, dtype=torch.complex64)), PREPROCESS)
first = partial(tp.LoadedModel, nn.Sequential(OrderedDict([("first kernels", nn.Conv2d(3, 2, 1))])), PREPROCESS)


def separable() -> tp.LoadedModel:
    """A depthwise convolution between others, one of which has kernels of size 1."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
    return tp.LoadedModel(nn.Sequential(*layers), PREPROCESS)


def tiny_weights() -> tp.LoadedModel:
    """Weights whose squares underflow."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).double()
    conv.weight.data *= 1e-199
    return tp.LoadedModel(nn.Sequential(conv), PREPROCESS)


def broken() -> tp.LoadedModel:
    """One weight is NaN: so is what most layers return, and what flows back."""
    loaded = pooled()
    loaded.module.features[0].weight.data[0, 0, 0, 0] = float("nan")
    return loaded


def regression() -> tp.LoadedModel:
    """One output."""
    torch.manual_seed(0)
    return tp.LoadedModel(nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), PREPROCESS)


def trained() -> tp.LoadedModel:
    """Train mode matters."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()]
    return tp.LoadedModel(nn.Sequential(*parts, nn.Linear(4, 5)), PREPROCESS, CLASSES)


class Tokens(nn.Module):
    """Channels last, one of which is dead; a ModuleList; and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norms, self.head = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([nn.LayerNorm(8)]), nn.Linear(8, 5)
        self.act = nn.ReLU()
        self.norms[0].weight.data[2] = 0

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norms[0](self.act(self.patches(x)).flatten(2).transpose(1, 2))
        return self.head(self.act(tokens).mean(1))


tokens = partial(tp.LoadedModel, Tokens(), PREPROCESS)


class Odd(nn.Module):
    """Layers that return a tuple, complex numbers, no tensor, an empty one, and a batch made of one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.waves, self.words = nn.Conv2d(3, 4, 3), nn.LSTM(14, 5), Waves(), Words()
        self.halves, self.last, self.none = Halves(), nn.Linear(14, 6), Nothing()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.lstm(x[0]), self.waves(x), self.words(x), self.halves(x), self.none(x)
        return self.last(x).mean((1, 2))


class Idle(nn.Module):
    """One of two convolutions has no part in the score."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.used = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.used(x).mean((2, 3))


class Waves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x)


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "words"


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(x.chunk(2, dim=1))


def odd() -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(Odd(), PREPROCESS)


idle = partial(tp.LoadedModel, Idle(), PREPROCESS)
one_size = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2))
picky = partial(tp.LoadedModel, one_size, tp.Preprocess(None, None))


# Of other tasks than classification, and transformers.

CORNERS = torch.tensor([[2.0, 1.0, 10.0, 9.0], [4.0, 4.0, 16.0, 16.0], [0.0, 0.0, 6.0, 8.0]])
LABELS = torch.tensor([2, 1, 2])


class Detector(nn.Module):
    """Three boxes at the same places in every picture; how sure it is of each depends on the pixels inside."""

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        self.features, self.head, self.listed = (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
            nn.Linear(4, 3),
            listed,
        )

    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        inside = [maps[:, :, y:bottom, x:right].mean((2, 3)) for x, y, right, bottom in CORNERS.int().tolist()]
        logits = self.head(torch.stack(inside, 1))  # (N, boxes, classes)
        if not self.listed:
            centres = torch.cat([(CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]], 1) / 16
            return {"logits": logits, "pred_boxes": centres.expand(len(x), -1, -1)}
        # Nothing but red says that there is a box at all.
        found = x[:, 0].mean((1, 2)) > -1
        scores = logits[..., 0].sigmoid()
        return [
            {"boxes": CORNERS[:n], "scores": each[:n], "labels": LABELS[:n]}
            for each, n in zip(scores, (found * 3).tolist(), strict=True)
        ]


class Segmenter(nn.Module):
    """Like torchvision's: a dict, with an auxiliary output beside."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = nn.functional.interpolate(self.head(self.backbone(x)), x.shape[2:], mode="bilinear")
        return {"out": out, "aux": out.flip(1)}


class Embedder(nn.Module):
    """The vision half of a model that compares pictures with texts: an embedding, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.project = nn.Sequential(nn.Conv2d(3, 7, 4, 4), nn.GELU()), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.features(x)
        return {"image_embeds": self.project(maps.mean((2, 3))), "last_hidden_state": maps.flatten(2).mT}


def made(module: Any, **facts: Any) -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(module().eval(), PREPROCESS, CLASSES, **facts)


def texts(given: Any, device: torch.device) -> Tensor:
    return torch.tensor([[float(ord(text[0])) - 100, len(text), 1.0] for text in given])


def transformer() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    made = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=24, num_classes=5)
    nn.init.normal_(made.heads.head.weight)  # torchvision's is zero
    return made


listing = partial(made, partial(Detector, listed=True))
queries = partial(made, partial(Detector, listed=False))
segmenter = partial(made, Segmenter)
embedder = partial(made, Embedder, texts=texts, spec="an embedder")
without_texts = partial(made, Embedder)
attentive = partial(made, transformer)
convolutional = partial(made, lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


# Models whose output needs a word about how it is read.


class Several(PooledNet):
    """Returns its features beside its logits, and no names."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits.flip(1), logits


def several() -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(Several(), PREPROCESS, CLASSES)


def binary() -> tp.LoadedModel:
    """One logit."""
    torch.manual_seed(0)
    return tp.LoadedModel(PooledNet(classes=1), PREPROCESS)


def foreground() -> tp.LoadedModel:
    """A segmentation of one class."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 1, bias=False)
    return tp.LoadedModel(nn.Sequential(*layers), PREPROCESS)


def dense() -> tp.LoadedModel:
    """A detector with a box for each cell of three grids."""
    return tp.LoadedModel(DenseDetector(yolov8_with_raw), tp.Preprocess(resize=64, crop=(64, 64)), CLASSES[:3])


def grey() -> nn.Module:
    """A bare network of one channel, whose pictures are read as three."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def named_as_markup() -> tp.LoadedModel:
    """Layers and classes whose names are markup."""
    torch.manual_seed(0)
    name = "<b>&\"'"
    parts = [(f"{name}{n}", nn.Sequential(nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1), nn.ReLU())) for n in range(2)]
    parts += [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), (f"{name}head", nn.Linear(4, 3))]
    return tp.LoadedModel(nn.Sequential(OrderedDict(parts)), PREPROCESS, [f"{name}{n}" for n in range(3)])


def deep() -> tp.LoadedModel:
    """More convolutions than a page shows without an index."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(24)]
    return tp.LoadedModel(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), PREPROCESS)
