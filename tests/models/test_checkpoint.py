"""Weights files: formats, keys that do not fit, and pickles that run no code unless trusted."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import WeightsError


class TestWeightsFiles:
    @pytest.fixture
    def source(self, in_folder) -> str:
        (in_folder / "pooled_here.py").write_text(
            "import torchpeek as tp\nfrom networks import PooledNet\nmake = lambda: tp.LoadedModel(PooledNet())\n"
        )
        return "pooled_here:make"

    def test_safetensors_and_state_dicts(self, source, in_folder) -> None:
        wanted = PooledNet().state_dict()
        save_file(wanted, in_folder / "w.safetensors")
        torch.save(wanted, in_folder / "w.pth")
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in wanted.items()}}, in_folder / "c.pth"
        )
        for file in ("w.safetensors", "w.pth", "c.pth"):
            loaded = tp.load_model(source, file)
            assert torch.equal(loaded.module.head.weight, wanted["head.weight"])
            assert loaded.weights == file

    def test_keys_that_do_not_fit(self, source, in_folder) -> None:
        state = PooledNet(classes=7).state_dict()
        state["extra"] = state.pop("features.0.bias")
        save_file(state, in_folder / "w.safetensors")
        with pytest.raises(WeightsError) as caught:
            tp.load_model(source, in_folder / "w.safetensors")
        for words in ("1 missing: features.0.bias", "1 unexpected: extra", "head.weight (7, 6) instead of (5, 6)"):
            assert words in str(caught.value)

    def test_a_pickle_runs_no_code_unless_trusted(self, source, in_folder) -> None:
        torch.save(PooledNet(), in_folder / "whole.pt")
        with pytest.raises(WeightsError, match="--trust-pickle"):
            tp.load_model(source, in_folder / "whole.pt")
        assert tp.load_model(source, in_folder / "whole.pt", trust_pickle=True).weights == "whole.pt"

        class Evil:
            def __reduce__(self):
                return (open, ("evil.txt", "w"))

        with open(in_folder / "evil.pt", "wb") as file:
            pickle.dump({"state_dict": Evil()}, file, protocol=2)
        with pytest.raises(WeightsError):
            tp.load_model(source, in_folder / "evil.pt")
        assert not (in_folder / "evil.txt").exists()

    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_damaged_files(self, source, in_folder, content, suffix) -> None:
        (in_folder / f"w{suffix}").write_bytes(content)
        with pytest.raises(WeightsError, match=f"w{suffix}"):
            tp.load_model(source, in_folder / f"w{suffix}")

    def test_no_such_file_and_no_state_dict(self, source, in_folder) -> None:
        with pytest.raises(WeightsError, match="no weights file"):
            tp.load_model(source, "missing.pth")
        torch.save({"a": 1}, in_folder / "w.pth")
        with pytest.raises(WeightsError, match="holds no state_dict"):
            tp.load_model(source, "w.pth")
