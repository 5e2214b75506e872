"""Model sources: torchvision, timm, and callables of the user's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from images import noise
from torchpeek.errors import InputError, ModelError, ModelNotFound, Notice, WeightsError

torchvision = pytest.importorskip("torchvision")


class TestSources:
    def test_torchvision_random(self) -> None:
        loaded = tp.load_model("torchvision:resnet18", "random")
        assert loaded.weights == "random"
        assert loaded.spec == "torchvision:resnet18"
        assert len(loaded.class_names) == 1000
        assert not loaded.module.training

    @pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
    def test_torchvision_segmentation(self, name: str) -> None:
        """Without a crop, so that the whole picture is segmented; the same for random weights."""
        loaded = tp.load_model(f"torchvision:{name}", "random")
        assert loaded.class_names[8] == "cat"
        picture = loaded.read(noise((300, 200)))
        assert picture.tensor.shape == (1, 3, 520, 780)
        assert picture.geometry == tp.Geometry.whole((300, 200))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("r3d_18", r"takes videos; give a tensor \(N, 3, frames, 112, 112\)"),
            ("s3d", r"\(N, 3, frames, 224, 224\), of at least 14 frames"),
            ("raft_small", r"takes two pictures, each a tensor.*tp.Arguments\(\(first, second\)\)"),
        ],
    )
    def test_torchvision_of_no_pictures(self, name: str, words: str) -> None:
        loaded = tp.load_model(f"torchvision:{name}", "random")
        with pytest.raises(InputError, match=words):
            loaded.read(noise((30, 20)))
        assert loaded.class_names is None or len(loaded.class_names) == 400

    def test_timm_random(self) -> None:
        pytest.importorskip("timm")
        loaded = tp.load_model("timm:resnet18", "random")
        assert "tabby, tabby cat" in loaded.class_names
        assert loaded.preprocess.interpolation == "bicubic"
        assert len(loaded.class_names) == 1000

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("torchvision:resnet5", "closest: 'resnet50'"),
            ("timm:resnet5", "closest: "),
            ("timm:resnet18.nonsense", "nonsense"),
            ("resnet50", "allowed: torchvision:NAME"),
            ("torchvision:", "allowed"),
            ("", "allowed"),
            ("no.such.module:make", "no module 'no'"),
            ("json:nothing", "has no 'nothing'"),
        ],
    )
    def test_models_that_are_not_there(self, spec: str, words: str) -> None:
        with pytest.raises(ModelNotFound, match=words):
            tp.load_model(spec)

    def test_weights_that_cannot_be_fetched(self, monkeypatch) -> None:
        from urllib.error import URLError

        def fail(*_, **__):
            raise URLError("no network here")

        monkeypatch.setattr(torchvision.models, "get_model", fail)
        with pytest.raises(WeightsError, match="--weights random"):
            tp.load_model("torchvision:vgg19")

    def test_weights_by_name(self) -> None:
        with pytest.raises(WeightsError, match="IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
            tp.load_model("torchvision:mobilenet_v2", "IMAGENET1K_V3")

    def test_a_callable_in_the_working_directory(self, in_folder) -> None:
        (in_folder / "mine_here.py").write_text(
            "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))"
        )
        with pytest.warns(Notice, match="ImageNet's way is used"):
            loaded = tp.load_model("mine_here:make")
        assert isinstance(loaded.module, nn.Sequential)
        assert loaded.class_names is None

    def test_a_callable_that_says_everything(self, in_folder) -> None:
        (in_folder / "mine_full.py").write_text(
            "import torch, torchpeek as tp\n"
            "class Zoo:\n"
            "    @staticmethod\n"
            "    def make():\n"
            "        preprocess = tp.Preprocess(crop=(32, 32))\n"
            "        return tp.LoadedModel(torch.nn.Conv2d(3, 2, 3), preprocess, ['a', 'b'], weights='mine')\n"
        )
        loaded = tp.load_model("mine_full:Zoo.make")
        assert loaded.class_names == ["a", "b"]
        assert loaded.weights == "mine"

    def test_random_weights_of_a_callable_are_its_own_business(self, in_folder) -> None:
        (in_folder / "mine_again.py").write_text("import torch\nmake = lambda: torch.nn.Conv2d(3, 2, 3)")
        with pytest.raises(WeightsError, match="decides itself"):
            tp.load_model("mine_again:make", "random")

    def test_a_source_in_other_letters(self) -> None:
        with pytest.raises(ModelNotFound, match="no source 'TorchVision'; write torchvision:resnet18"):
            tp.load_model("TorchVision:resnet18", "random")

    def test_random_weights_fetch_nothing(self, monkeypatch) -> None:
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
        tp.load_model("torchvision:lraspp_mobilenet_v3_large", "random")

    def test_callables_that_are_none(self, in_folder) -> None:
        (in_folder / "mine_bad.py").write_text("make = lambda: 3\nimport_error = 1\n")
        with pytest.raises(ModelError, match="gave an int"):
            tp.load_model("mine_bad:make")
        (in_folder / "mine_broken.py").write_text("import no_such_dependency\n")
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            tp.load_model("mine_broken:make")
