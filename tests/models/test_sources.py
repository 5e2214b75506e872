"""Model sources, preprocessing, weights files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError, ModelError, ModelNotFound, Notice, PictureError, WeightsError
from torchpeek.models import Preprocess

torchvision = pytest.importorskip("torchvision")

SIZES = [(640, 427), (427, 640), (300, 300), (224, 224), (100, 80), (231, 257), (1001, 333), (225, 224)]


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    generator = torch.Generator().manual_seed(width * 1000 + height)
    small = torch.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)


class TestPreprocess:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", ["mobilenet_v2", "inception_v3", "efficientnet_b1", "vit_h_14", "fcn_resnet50"])
    def test_is_torchvisions_own(self, name: str, size: tuple[int, int]) -> None:
        """Pixel for pixel: bilinear and bicubic, larger and smaller than the crop."""
        from torchpeek.models.torchvision_models import torchvision_preprocess

        entry = next(iter(torchvision.models.get_model_weights(name)))
        image = noise(size)
        tensor, _ = torchvision_preprocess(name, entry)(image)
        torch.testing.assert_close(tensor[0], entry.transforms()(image), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("crop", [("center", 0.9), ("squash", 1.0), ("squash", 0.95)])
    def test_is_timms_own(self, crop: tuple[str, float], size: tuple[int, int]) -> None:
        timm = pytest.importorskip("timm")
        from torchpeek.models.timm_models import timm_preprocess

        config = {
            "input_size": (3, 192, 192),
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
            "crop_pct": crop[1],
            "crop_mode": crop[0],
        }
        image = noise(size)
        tensor, _ = timm_preprocess("x", config)(image)
        theirs = timm.data.create_transform(**config, is_training=False)(image)
        torch.testing.assert_close(tensor[0], theirs, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES)
    def test_the_geometry_is_where_the_pixels_come_from(self, size: tuple[int, int]) -> None:
        """A picture whose red is x and whose green is y says for each input pixel where it was."""
        width, height = size
        x = torch.linspace(0, 255, width).repeat(height, 1)
        y = torch.linspace(0, 255, height)[:, None].repeat(1, width)
        image = Image.fromarray(torch.stack([x, y, torch.zeros_like(x)], -1).round().byte().numpy())
        tensor, geometry = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))(image)
        left, top, right, bottom = geometry.box
        for row, column in [(112, 112), (60, 150), (180, 40)]:
            at = (left + (column + 0.5) / 224 * (right - left), top + (row + 0.5) / 224 * (bottom - top))
            red, green = (tensor[0, :2, row, column] * 255).tolist()
            if 1 < at[0] < width - 1 and 1 < at[1] < height - 1:
                assert red / 255 * (width - 1) + 0.5 == pytest.approx(at[0], abs=width / 150 + 1)
                assert green / 255 * (height - 1) + 0.5 == pytest.approx(at[1], abs=height / 150 + 1)

    def test_grey(self) -> None:
        tensor, _ = Preprocess(mean=(0.5,), std=(0.5,))(noise((50, 40)))
        assert tensor.shape == (1, 1, 224, 224)
        with pytest.raises(InputError, match=r"1 \(grey\) or 3"):
            Preprocess(mean=(0.5, 0.5), std=(0.5, 0.5))

    @settings(max_examples=60, deadline=None)
    @given(width=st.integers(8, 400), height=st.integers(8, 400), resize=st.integers(16, 96), crop=st.integers(8, 120))
    def test_any_size_is_as_in_torchvision(self, width: int, height: int, resize: int, crop: int) -> None:
        from torchvision.transforms._presets import ImageClassification

        image = noise((width, height))
        ours, geometry = Preprocess(resize=resize, crop=(crop, crop))(image)
        theirs = ImageClassification(crop_size=crop, resize_size=resize)(image)
        torch.testing.assert_close(ours[0], theirs, atol=1e-6, rtol=0)
        left, top, right, bottom = geometry.box
        assert left < right
        assert top < bottom
        assert (left + right) / 2 == pytest.approx(width / 2, abs=width / resize + 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"interpolation": "cubic"},
            {"crop": 224},
            {"resize": 0},
            {"resize": (3, 0)},
            {"crop": (1, 2, 3)},
            {"pad": 300},
            {"longest": 0},
            {"longest": 300, "resize": (200, 200)},
            {"rounding": "up"},
        ],
    )
    def test_what_it_cannot_be(self, wrong) -> None:
        with pytest.raises(InputError, match="allowed"):
            Preprocess(**wrong)

    def test_a_line_of_pixels_is_refused(self) -> None:
        """Its shorter side would be resized to 256, and so it as a whole to a gigapixel."""
        with pytest.raises(PictureError, match="too long for its width"):
            Preprocess()(Image.new("RGB", (20_000, 1)))

    def test_whole_picture_as_it_is(self) -> None:
        tensor, geometry = Preprocess(resize=None, crop=None)(noise((50, 40)))
        assert tensor.shape == (1, 3, 40, 50)
        assert geometry == tp.Geometry.whole((50, 40))

    @pytest.mark.parametrize("size", SIZES)
    def test_a_longest_side(self, size: tuple[int, int]) -> None:
        """No side is longer than allowed, the shape is kept to a pixel, and one of the two limits is met."""
        tensor, geometry = Preprocess(resize=60, longest=80, crop=None)(noise(size))
        height, width = tensor.shape[2:]
        assert max(height, width) <= 80
        assert min(height, width) == 60 or 79 <= max(height, width) <= 80
        assert width / height == pytest.approx(size[0] / size[1], abs=1.5 * max(size) / min(size) / min(height, width))
        assert geometry.box == pytest.approx(tp.Geometry.whole(size).box)

    def test_padding(self) -> None:
        """Zeros, on the right and at the bottom; the geometry reaches as far beyond the picture."""
        image = noise((50, 40))
        tensor, geometry = Preprocess(resize=20, crop=None, pad=(30, 50))(image)
        inner, _ = Preprocess(resize=20, crop=None)(image)
        assert torch.equal(tensor[:, :, :20, :25], inner)
        assert tensor[:, :, 20:].count_nonzero() == tensor[:, :, :, 25:].count_nonzero() == 0
        assert geometry.box == (0, 0, 100, 60)
        with pytest.raises(PictureError, match="does not fit into 24 x 30"):
            Preprocess(resize=20, crop=None, pad=(30, 24))(image)

    def test_blue_first(self) -> None:
        image = noise((50, 40))
        plain = {"resize": None, "crop": None}
        mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
        flipped, _ = Preprocess(**plain, mean=mean, std=std, bgr=True)(image)
        straight, _ = Preprocess(**plain, mean=mean[::-1], std=std[::-1])(image)
        assert torch.equal(flipped, straight.flip(1))

    @pytest.mark.parametrize(("have", "want", "left"), [(9, 4, 2), (10, 4, 3), (11, 4, 3), (4, 9, -3), (4, 8, -2)])
    def test_half_a_pixel_goes_to_the_top_left_if_rounded_down(self, have: int, want: int, left: int) -> None:
        _, geometry = Preprocess(resize=None, crop=(want, want), rounding="down")(noise((have, have)))
        assert geometry.box == (left, left, left + want, left + want)

    def test_says_what_it_does(self) -> None:
        assert str(Preprocess(resize=(10, 20), crop=None)).startswith("resize to 10 x 20 (bilinear, antialiased); mean")
        said = str(Preprocess(resize=10, longest=20, crop=None, pad=(20, 20), bgr=True))
        for words in ("10, shorter side, the longer at most 20", "blue first; pad to 20 x 20"):
            assert words in said


class TestDetectors:
    @settings(max_examples=25, deadline=None)
    @given(
        width=st.integers(20, 300),
        height=st.integers(20, 300),
        least=st.integers(30, 90),
        most=st.integers(90, 120),
        multiple=st.sampled_from([1, 16, 32]),
        fixed=st.sampled_from([None, (64, 48)]),
    )
    def test_the_box_is_what_the_layers_see(
        self, width: int, height: int, least: int, most: int, multiple: int, fixed: tuple[int, int] | None
    ) -> None:
        """Of torchvision's own transform: the sizes that it makes, and where a ramp of colours lands in it."""
        from torchvision.models.detection.transform import GeneralizedRCNNTransform

        net = nn.Module()
        net.transform = GeneralizedRCNNTransform(
            [7, least], most, [0, 0, 0], [1, 1, 1], size_divisible=multiple, fixed_size=fixed
        ).eval()
        x = torch.linspace(0, 255, width).repeat(height, 1)
        y = torch.linspace(0, 255, height)[:, None].repeat(1, width)
        image = Image.fromarray(torch.stack([x, y, x], -1).round().byte().numpy())
        picture = tp.LoadedModel(net).read(image)
        torch.testing.assert_close(picture.tensor[0], torchvision.transforms.functional.to_tensor(image))

        inside, _ = net.transform(picture.tensor)
        (seen_height, seen_width), (padded_height, padded_width) = inside.image_sizes[0], inside.tensors.shape[2:]
        left, top, right, bottom = picture.geometry.box
        assert (left, top) == (0, 0)
        assert right == pytest.approx(width * padded_width / seen_width)
        assert bottom == pytest.approx(height * padded_height / seen_height)
        row, column = seen_height // 2, seen_width // 3
        red, green = inside.tensors[0, :2, row, column].tolist()
        assert red * (width - 1) + 0.5 == pytest.approx((column + 0.5) / padded_width * right, abs=width / 100 + 1)
        assert green * (height - 1) + 0.5 == pytest.approx((row + 0.5) / padded_height * bottom, abs=height / 100 + 1)

    @pytest.mark.parametrize(
        ("name", "classes", "box"),
        [
            # 451 x 300, of which the shorter side gets 320, the longer at most 640; in multiples of 32
            ("fasterrcnn_mobilenet_v3_large_320_fpn", 91, (451 * 512 / 481, 300)),
            ("ssdlite320_mobilenet_v3_large", 91, (451, 300)),  # squashed to 320 x 320
        ],
    )
    def test_of_torchvision(self, name: str, classes: int, box: tuple[float, float]) -> None:
        loaded = tp.load_model(f"torchvision:{name}", "random")
        assert len(loaded.class_names) == classes
        picture = loaded.read(noise((451, 300)))
        assert picture.tensor.shape == (1, 3, 300, 451)
        assert 0 <= picture.tensor.min() < picture.tensor.max() <= 1
        assert picture.geometry.box[2:] == pytest.approx(box)
        assert "inside: resize to 3" in str(loaded.preprocess)

    def test_a_users_own(self, in_folder) -> None:
        """Where nothing is said, the detector's own; also of a callable, without a notice."""
        (in_folder / "mine_detects.py").write_text(
            "from torchvision.models import get_model\n"
            "name = 'fasterrcnn_mobilenet_v3_large_320_fpn'\n"
            "make = lambda: get_model(name, weights=None, weights_backbone=None, num_classes=3)\n"
        )
        loaded = tp.load_model("mine_detects:make")
        assert loaded.read(noise((30, 20))).tensor.shape == (1, 3, 20, 30)
        mine = tp.LoadedModel(loaded.module, Preprocess(crop=(32, 32)))
        assert mine.read(noise((30, 20))).tensor.shape == (1, 3, 32, 32)

    def test_sizes_that_are_set_later(self) -> None:
        loaded = tp.load_model("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "random")
        loaded.module.transform.min_size = (64,)
        assert "64, shorter side" in str(loaded.preprocess)
        # 96 x 64 in multiples of 32: nothing to pad
        assert loaded.read(noise((300, 200))).geometry == tp.Geometry.whole((300, 200))


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

    def test_random_weights_fetch_nothing(self, monkeypatch) -> None:
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
        tp.load_model("torchvision:lraspp_mobilenet_v3_large", "random")

    def test_callables_that_are_none(self, in_folder) -> None:
        (in_folder / "mine_bad.py").write_text("make = lambda: 3\nimport_error = 1\n")
        with pytest.raises(ModelError, match="gave a int"):
            tp.load_model("mine_bad:make")
        (in_folder / "mine_broken.py").write_text("import no_such_dependency\n")
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            tp.load_model("mine_broken:make")


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


def test_a_preprocessing_of_the_users_own() -> None:
    loaded = tp.LoadedModel(PooledNet(), lambda image: torch.zeros(3, 8, 8))
    picture = loaded.read(noise((20, 10)))
    assert picture.tensor.shape == (1, 3, 8, 8)
    assert picture.geometry == tp.Geometry.whole((20, 10))
    assert "whole picture" in picture.notes[-1]


def test_what_a_loaded_model_cannot_be() -> None:
    for names in ("cat", [1, 2]):
        with pytest.raises(InputError, match="list of strings"):
            tp.LoadedModel(PooledNet(), class_names=names)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a path or a PIL image"):
        tp.LoadedModel(PooledNet()).read(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="preprocess gave a ndarray"):
        tp.LoadedModel(PooledNet(), lambda image: np.zeros((3, 8, 8))).read(noise((20, 10)))


def test_layers_takes_what_explain_takes(photograph) -> None:
    loaded = tp.LoadedModel(PooledNet(), Preprocess(resize=16, crop=(16, 16)))
    table = tp.layers(loaded, photograph)
    assert table[0].name == "features"
    assert "suggested for heatmaps: act" in str(table)
    assert "<table>" in table._repr_html_()


def test_half_precision_models_read_half_precision() -> None:
    loaded = tp.LoadedModel(PooledNet().half())
    assert loaded.read(noise((20, 10))).tensor.dtype == torch.float16
