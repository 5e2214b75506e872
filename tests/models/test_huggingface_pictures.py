"""Preprocessing of transformers checkpoints: the pixels are those of the checkpoint's own processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import torchpeek as tp
from networks.huggingface import PROCESSORS, detr, vit, write_processor
from paths import IMAGES
from torchpeek.errors import InputError, Notice
from torchpeek.models import Preprocess

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_network", "quiet_transformers")

PHOTOGRAPHS = sorted(IMAGES.glob("*.[pj][np]g"))
OLD = int(transformers.__version__.split(".")[0]) < 5


def theirs(folder: Path, image: Image.Image, backend: str = "pil") -> torch.Tensor:
    how = {"use_fast": backend != "pil"} if OLD else {"backend": backend}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)
    return processor(image, return_tensors="pt")["pixel_values"].float()


class TestPictures:
    @pytest.mark.parametrize("how", PROCESSORS)
    def test_the_processors_own_pixels(self, how: str, saved) -> None:
        """Exactly, with Pillow; with torchvision's fixed-point numbers to two of 255 levels."""
        folder = saved(vit())
        write_processor(folder, **PROCESSORS[how])
        loaded = tp.load_model(f"hf:{folder}", "random")
        assert isinstance(loaded.preprocess, Preprocess)
        for file in PHOTOGRAPHS:
            picture = loaded.read(file)
            torch.testing.assert_close(picture.tensor, theirs(folder, picture.image), rtol=0, atol=1e-4)
            pytest.importorskip("torchvision")
            if OLD and how == "crop by a share":
                continue  # of which the two backends of transformers 4 cut other parts
            levels = 255 * torch.tensor(loaded.preprocess.std).view(-1, 1, 1)
            apart = (picture.tensor - theirs(folder, picture.image, "torchvision")).abs() * levels
            assert apart.max() < 2.01

    def test_where_the_pixels_come_from(self, saved) -> None:
        """By hand, of a picture 200 x 100."""
        boxes = {
            "squash": (0, 0, 200, 100),
            "crop": (35 / 0.57, 6 / 0.57, 79 / 0.57, 50 / 0.57),
            "longest edge": (0, 0, 200, 100),
            "pad": (0, 0, 200 * 90 / 71, 100 * 80 / 36),
        }
        for how, box in boxes.items():
            folder = saved(vit())
            write_processor(folder, **PROCESSORS[how])
            geometry = tp.load_model(f"hf:{folder}", "random").read(Image.new("RGB", (200, 100))).geometry
            assert geometry.box == pytest.approx(box), how

    def test_a_mask_of_what_is_padding_is_not_dropped(self, saved) -> None:
        """DETR's processor can pad, and says where; the logits without that are others."""
        folder = saved(detr())
        write_processor(
            folder,
            image_processor_type="DetrImageProcessor",
            pad_size={"height": 99, "width": 99},
            size={"shortest_edge": 30, "longest_edge": 64},
        )
        loaded = tp.load_model(f"hf:{folder}", "random")
        with pytest.raises(InputError, match="pads pictures, and the model needs the mask"):
            loaded.read(Image.new("RGB", (60, 40)))

    @pytest.mark.parametrize("name", ["EfficientNetImageProcessor", "YolosImageProcessor", "GLPNImageProcessor"])
    def test_another_way_is_the_processors_own(self, name: str, saved, photograph) -> None:
        folder = saved(vit())
        write_processor(folder, image_processor_type=name, size={"height": 32, "width": 32})
        if name != "EfficientNetImageProcessor":
            write_processor(folder, image_processor_type=name)
        loaded = tp.load_model(f"hf:{folder}", "random")
        picture = loaded.read(photograph)
        assert torch.equal(picture.tensor, theirs(folder, picture.image))
        assert "whole picture" in picture.notes[-1]
        assert name in str(loaded.preprocess)

    def test_a_checkpoint_of_timms(self, tmp_path, photograph) -> None:
        timm = pytest.importorskip("timm")
        pretrained = {"input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3]}
        said = {"architecture": "resnet10t", "num_classes": 1000, "num_features": 512, "pretrained_cfg": pretrained}
        (tmp_path / "config.json").write_text(json.dumps(said))
        save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
        loaded = tp.load_model(f"hf:{tmp_path}")
        picture = loaded.read(photograph)
        expected = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture.image)["pixel_values"]
        torch.testing.assert_close(picture.tensor, expected, rtol=0, atol=1e-5)
        assert isinstance(loaded.preprocess, Preprocess)
        assert picture.geometry.box == pytest.approx((451 / 2 - 120, 30, 451 / 2 + 120, 270), abs=2)

    def test_none_at_all_is_imagenets_way_at_the_models_size(self, saved, photograph) -> None:
        with pytest.warns(Notice, match="crop the centre 32 x 32"):
            loaded = tp.load_model(f"hf:{saved(vit())}", "random")
        assert loaded.read(photograph).tensor.shape == (1, 3, 32, 32)

    def test_a_processor_that_makes_no_picture(self, saved, photograph) -> None:
        folder = saved(vit())
        write_processor(folder, image_processor_type="Siglip2ImageProcessor")
        with pytest.raises(InputError, match=r"makes no input of a picture \(.*made shape"):
            tp.load_model(f"hf:{folder}", "random").read(photograph)

    @pytest.mark.parametrize("written", ["{nope", '{"image_processor_type": "NoSuchImageProcessor"}'])
    def test_a_processor_that_cannot_be_made(self, written: str, saved, photograph) -> None:
        """Never ImageNet's way in its place; the layers and kernels can be looked at even so."""
        folder = saved(vit())
        (folder / "preprocessor_config.json").write_text(written)
        loaded = tp.load_model(f"hf:{folder}")
        with pytest.raises(InputError, match=r"cannot be made: .*torchpeek\[vision\]"):
            loaded.read(photograph)

    def test_the_same_scores_as_in_transformers(self, saved, photograph) -> None:
        model = vit()
        folder = saved(model)
        write_processor(folder, image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32})
        loaded = tp.load_model(f"hf:{folder}")
        picture = loaded.read(photograph)
        with torch.no_grad():
            expected = model(theirs(folder, picture.image)).logits
            torch.testing.assert_close(loaded.module(picture.tensor).logits, expected)


def test_an_image_in_grey_is_read_in_colour(saved) -> None:
    folder = saved(vit())
    write_processor(folder, **PROCESSORS["squash"])
    grey = Image.fromarray((np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64))
    picture = tp.load_model(f"hf:{folder}", "random").read(grey)
    torch.testing.assert_close(picture.tensor, theirs(folder, grey.convert("RGB")), rtol=0, atol=1e-5)
