"""Write a digest of every method's heatmap on fourteen networks, to prove that a change did not affect the numbers.

    python tools/heatmap_digests.py before.json          # on the old commit
    python tools/heatmap_digests.py after.json           # on the new one
    python tools/heatmap_digests.py --compare before.json after.json

The weights are random with a fixed seed, and one thread computes. Compare digests of one machine only, because another
processor rounds differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchpeek as tp

# Methods of many passes, with only a few of them.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sscam": {"samples": 2},
    "iscam": {"steps": 2},
    "integrated-gradcam": {"steps": 3},
    "opticam": {"steps": 3},
    "groupcam": {"groups": 4},
    "smoothgrad": {"samples": 2},
    "integrated-gradients": {"steps": 3},
    "rise": {"samples": 8},
}


def _timm(name: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **more)
        return model

    return build


def _torchvision(name: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **more)
        return model

    return build


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (_torchvision("resnet18"), 64),
    "mobilenet_v3_small": (_torchvision("mobilenet_v3_small"), 64),
    "squeezenet1_1": (_torchvision("squeezenet1_1"), 64),
    "inception_v3": (_timm("inception_v3"), 96),
    "convnext": (_timm("convnext_atto"), 64),
    "efficientnet": (_timm("efficientnet_lite0"), 64),
    "repvgg": (_timm("repvgg_a0"), 64),
    "vit": (_timm("vit_tiny_patch16_224", img_size=64), 64),
    "deit": (_timm("deit_tiny_distilled_patch16_224", img_size=64), 64),
    "swin": (_timm("swin_tiny_patch4_window7_224", img_size=64, window_size=2), 64),
    "pvt": (_timm("pvt_v2_b0"), 64),
    "mixer": (_timm("mixer_s32_224", img_size=64), 64),
    "hiera": (_timm("hiera_tiny_224", img_size=64), 64),
    "segmentation": (_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None), 64),
}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def _digests(build: Callable[[], nn.Module], size: int) -> dict[str, str]:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # a head of zeros gives the same score for everything
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    inputs = torch.rand(2, 3, size, size)
    found = {}
    for name in tp.METHODS:
        torch.manual_seed(1)
        target = tp.targets.Pixels() if type(model).__name__ == "LRASPP" else [[1, 2], [3, 4]]
        try:
            heatmap = tp.explain(model, inputs, method=name, target=target, **OPTIONS.get(name, {}))
        except tp.TorchpeekError as error:
            found[name] = type(error).__name__
        else:
            said = heatmap.provenance
            found[name] = f"{_digest(heatmap.values)} {_digest(heatmap.scores)} {said.layer} {said.layout}"
    return found


def main() -> int:
    """Write the digests to a file, or compare two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--compare", action="store_true", help="compare two files of digests")
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = (json.loads(file.read_text()) for file in arguments.files)
        pairs = {(network, method) for each in (before, after) for network in each for method in each[network]}
        differing = sorted(
            pair for pair in pairs if before.get(pair[0], {}).get(pair[1]) != after.get(pair[0], {}).get(pair[1])
        )
        for network, method in differing:
            print(f"{network} {method}: {before.get(network, {}).get(method)} -> {after.get(network, {}).get(method)}")
        print(f"{len(pairs) - len(differing)} of {len(pairs)} equal")
        return bool(differing)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for name, (build, size) in NETWORKS.items():
        found[name] = _digests(build, size)
        arguments.files[0].write_text(json.dumps(found, indent=1))
        print(name, len(found[name]), file=sys.stderr)

    return 0


if __name__ == "__main__":
    sys.exit(main())
