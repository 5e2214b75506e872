"""Try an installed torchpeek: its command line, and a Grad-CAM whose values are known. `make release` runs it.

It must run in isolated mode (python -I), so that neither the checkout nor PYTHONPATH is imported by accident. An
optional argument, such as v0.2.0, is the tag that the installed version must have.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import torchpeek as tp


def main(tag: str = "") -> int:
    installed = version("torchpeek")
    place = Path(tp.__file__).resolve()
    assert place.is_relative_to(Path(sys.prefix).resolve()), f"imported from {place}, not from {sys.prefix}"
    assert tag in ("", f"v{installed}"), f"the tag is {tag}, but the wheel has version {installed}"
    assert installed in _torchpeek("--version"), "torchpeek --version does not print the installed version"
    assert "gradcam" in _torchpeek("methods"), "torchpeek methods does not list gradcam"
    assert torch.equal(_heatmap(), _grad_cam_by_hand()), "Grad-CAM of a small network is wrong"
    print(f"torchpeek {installed} works: the command line, and a Grad-CAM, with torch {torch.__version__}")
    return 0


def _torchpeek(*arguments: str) -> str:
    """What the installed command prints."""
    command = [str(Path(sys.prefix) / "bin" / "torchpeek"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class _Net(nn.Module):
    """One convolution of fixed weights, global average pooling, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[4.0, 8.0], [-4.0, 4.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


_PICTURE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def _heatmap() -> torch.Tensor:
    return tp.explain(_Net(), _PICTURE, method="gradcam", layer="conv", target=0).values


def _grad_cam_by_hand() -> torch.Tensor:
    """Channel c is (c + 1) times the picture, and its gradient is 4 (c + 1) / 4 positions everywhere."""
    return 1.0 * _PICTURE + 2.0 * (2.0 * _PICTURE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
