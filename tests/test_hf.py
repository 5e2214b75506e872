"""Models of transformers: from folders that save_pretrained wrote, without a network, against transformers itself."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import torchpeek as tp
from torchpeek.engine.targets import Similarity
from torchpeek.errors import InputError, ModelError, ModelNotFound, Notice, WeightsError
from torchpeek.models import Preprocess

transformers = pytest.importorskip("transformers")

IMAGES = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.[pj][np]g"))
OLD = int(transformers.__version__.split(".")[0]) < 5
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GRID = {"image_size": 32, "patch_size": 8}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is read without one."""
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a network call"))


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


def vit(**settings: Any) -> Any:
    config = transformers.ViTConfig(**SMALL, **GRID, **settings)
    return transformers.ViTForImageClassification(config).eval()


def detr() -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=3,
        id2label={0: "N/A", 1: "cat"},
    )
    return transformers.DetrForObjectDetection(config).eval()


def two_towers(name: str, words: int = 43) -> Any:
    text = {**SMALL, "vocab_size": words, "max_position_embeddings": 12, "projection_dim": 6, "projection_size": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config={**SMALL, **GRID, "projection_dim": 6}, projection_dim=6
    )
    return getattr(transformers, f"{name}Model")(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "ViTForImageClassification": vit,
    "SwinForImageClassification": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
    ),
    "Dinov2Model": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, **GRID)),
    "SegformerForSemanticSegmentation": lambda: transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            hidden_sizes=[4, 4, 4, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
        )
    ),
    "DetrForObjectDetection": detr,
    "CLIPForImageClassification": lambda: transformers.CLIPForImageClassification(two_towers("CLIP").config),
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model, and what else belongs to its checkpoint, to a folder."""

    def save(*parts: Any, **config: Any) -> Path:
        folder = tmp_path / "checkpoint"
        for part in parts:
            part.save_pretrained(folder)
        said = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({key: each for key, each in said.items() if each is not None}))
        return folder

    return save


def write_processor(folder: Path, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def theirs(folder: Path, image: Image.Image, backend: str = "pil") -> torch.Tensor:
    how = {"use_fast": backend != "pil"} if OLD else {"backend": backend}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)
    return processor(image, return_tensors="pt")["pixel_values"].float()


def write_clip_tokenizer(folder: Path) -> None:
    """Letters, two of which may be merged."""
    letters = "abcdefghijklmnopqrst"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "at</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    marks = {"bos_token": words[0], "eos_token": words[1], "pad_token": words[1], "unk_token": words[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **marks}))


class TestWhichClass:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_one_that_was_saved_with_its_weights(self, name: str, saved) -> None:
        model = MODELS[name]()
        folder = saved(model)
        with pytest.warns(Notice, match="ImageNet's way"):
            loaded = tp.load_model(f"hf:{folder}")
        assert type(loaded.module).__name__ == name
        assert not loaded.module.training
        assert loaded.weights == "checkpoint"
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.module.state_dict()[key], value), key

    @pytest.mark.parametrize("name", ["ViTForImageClassification", "SegformerForSemanticSegmentation"])
    def test_by_the_kind_of_config_where_no_class_is_named_classification_first(self, name: str, saved) -> None:
        folder = saved(MODELS[name](), architectures=None)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}", "random")
        assert type(loaded.module).__name__.endswith("ForImageClassification")

    def test_attention_is_fused_unless_asked(self, saved) -> None:
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{saved(vit())}")
        assert loaded.module.config._attn_implementation == "sdpa"

    def test_random_weights_need_only_the_config(self, saved) -> None:
        folder = saved(vit())
        (folder / "model.safetensors").unlink()
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}", "random")
        assert loaded.weights == "random"
        with pytest.raises(WeightsError, match=r"no weights can be read from the folder.*random"):
            tp.load_model(f"hf:{folder}")

    def test_a_weights_file(self, saved, tmp_path) -> None:
        folder, other = saved(vit()), vit()
        save_file(other.state_dict(), tmp_path / "other.safetensors")
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}", tmp_path / "other.safetensors")
        assert torch.equal(loaded.module.classifier.weight, other.classifier.weight)
        assert loaded.weights == "other.safetensors"

    def test_half_precision_becomes_single(self, saved) -> None:
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{saved(vit().half())}")
        assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}

    def test_what_the_checkpoint_lacks_is_said(self, saved) -> None:
        folder = saved(transformers.ViTModel(vit().config), architectures=["ViTForImageClassification"])
        with pytest.warns(Notice) as caught:
            tp.load_model(f"hf:{folder}")
        assert any("2 parameters, which are random now: classifier.bias" in str(each.message) for each in caught)

    def test_class_names(self, saved) -> None:
        folder = saved(vit(id2label={0: "cat", 1: "dog", 2: "fish"}))
        with pytest.warns(Notice):
            assert tp.load_model(f"hf:{folder}").class_names == ["cat", "dog", "fish"]
        with pytest.warns(Notice):
            assert tp.load_model(f"hf:{saved(vit())}").class_names is None  # LABEL_0, LABEL_1

    def test_a_backbone_has_no_classes(self, saved) -> None:
        folder = saved(MODELS["Dinov2Model"](), id2label={"0": "cat", "1": "dog"})
        with pytest.warns(Notice):
            assert tp.load_model(f"hf:{folder}").class_names is None

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (
                lambda: transformers.ASTForAudioClassification(
                    transformers.ASTConfig(**SMALL, max_length=24, num_mel_bins=16)
                ),
                r"spectrograms; give a tensor \(N, 24, 16\)",
            ),
            (
                lambda: transformers.VideoMAEForVideoClassification(
                    transformers.VideoMAEConfig(**SMALL, **GRID, num_frames=4)
                ),
                r"videos; give a tensor \(N, 4, 3, 32, 32\)",
            ),
            (
                lambda: transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=20)),
                "takes no picture alone, but input_ids",
            ),
        ],
    )
    def test_what_pictures_are_not_given_to(self, make, words, saved, photograph) -> None:
        loaded = tp.load_model(f"hf:{saved(make())}")
        with pytest.raises(InputError, match=words):
            loaded.read(photograph)


# As the checkpoints on the hub have them, but smaller; each with the step that it is about.
PROCESSORS = {
    "squash": {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 40}, "resample": 2},
    "an old one": {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "image_mean": [0.5, 0.5, 0.5]},
    "crop": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 57}, "crop_size": 44},
    "crop, squashed": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 64, "width": 64},
        "crop_size": {"height": 56, "width": 56},
        "resample": 3,
    },
    "crop by a share": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 50}},
    "longest edge": {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 60, "longest_edge": 71}},
    "pad": {
        "image_processor_type": "DetrImageProcessor",
        "size": {"shortest_edge": 60, "longest_edge": 71},
        "pad_size": {"height": 80, "width": 90},
    },
    "no mean": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 40},
        "do_normalize": False,
    },
    "no scale": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 40},
        "do_rescale": False,
        "do_normalize": False,
    },
    "another scale": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 40},
        "rescale_factor": 1 / 127.5,
    },
    "blue first": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 60}, "crop_size": 50},
}


class TestPictures:
    @pytest.mark.parametrize("how", PROCESSORS)
    def test_the_processors_own_pixels(self, how: str, saved) -> None:
        """Exactly, with Pillow; with torchvision's fixed-point numbers to two of 255 levels."""
        folder = saved(vit())
        write_processor(folder, **PROCESSORS[how])
        loaded = tp.load_model(f"hf:{folder}", "random")
        assert isinstance(loaded.preprocess, Preprocess)
        for file in IMAGES:
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


class TestTexts:
    def test_clip_compares_as_the_whole_does(self, saved, photograph) -> None:
        whole = two_towers("CLIP")
        folder = saved(whole)
        write_clip_tokenizer(folder)
        write_processor(folder, **PROCESSORS["squash"] | {"size": {"height": 32, "width": 32}})
        loaded = tp.load_model(f"hf:{folder}")
        assert type(loaded.module).__name__ == "CLIPVisionModelWithProjection"
        texts = ["a cat", "dog", "a b c d"]
        embeddings = loaded.embed(texts)
        assert embeddings.shape == (3, 6)
        assert not embeddings.requires_grad

        picture = loaded.read(photograph)
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = loaded.module(picture.tensor)
            expected = whole(pixel_values=picture.tensor, **tokens).logits_per_image  # cosines times a scale
        question = Similarity(to=embeddings, part="image_embeds").bind(output)
        cosines = question(output, torch.tensor([0]))
        torch.testing.assert_close(cosines * whole.logit_scale.exp(), expected)

    def test_a_text_is_embedded_as_it_is_alone(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        together = loaded.embed(["a", "a b c d e"])
        torch.testing.assert_close(together[:1], loaded.embed("a"))
        torch.testing.assert_close(together[1:], loaded.embed("a b c d e"))

    def test_siglip_compares_as_the_whole_does(self, saved) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        whole = two_towers("Siglip")
        folder = saved(whole)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "cat": 3}, "</s>"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>"
        ).save_pretrained(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        assert type(loaded.module).__name__ == "SiglipVisionModel"
        pixels = torch.rand(2, 3, 32, 32)
        ids = torch.tensor([[2, 3, *[0] * 10], [3, *[0] * 11]])
        with torch.no_grad():
            output = loaded.module(pixels)
            expected = whole(input_ids=ids, pixel_values=pixels).logits_per_image
        question = Similarity(to=loaded.embed(["a cat", "cat"]), part="pooler_output").bind(output)
        scores = question(output, torch.tensor([0, 1])) * whole.logit_scale.exp() + whole.logit_bias
        torch.testing.assert_close(scores, expected)

    def test_random_halves_need_no_weights(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        (folder / "model.safetensors").unlink()
        with pytest.warns(Notice):
            assert tp.load_model(f"hf:{folder}", "random").embed("a").shape == (1, 6)

    @pytest.mark.parametrize("name", ["CLIP", "Siglip"])
    def test_no_tokenizer(self, name: str, saved) -> None:
        """Of CLIP transformers would make one that knows no word."""
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{saved(two_towers(name))}")
        with pytest.raises(ModelError, match=r"has no tokenizer that can be used.*tokenizer.save_pretrained"):
            loaded.embed("a cat")

    def test_what_cannot_be_embedded(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        with pytest.raises(InputError, match="has 14 tokens; allowed: 12"):
            loaded.embed(["a", "abcdefghijkl"])
        for wrong in ([], "", ["a", 3], [" "]):
            with pytest.raises(InputError, match="a text, or a list"):
                loaded.embed(wrong)  # type: ignore[arg-type]

    def test_other_models_have_no_text_half(self, saved, tmp_path) -> None:
        folder = saved(vit())
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        with pytest.raises(ModelError, match="has no text half; CLIP and SigLIP"):
            loaded.embed("a cat")

    def test_nor_has_one_with_other_weights(self, saved, tmp_path) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            state = tp.load_model(f"hf:{folder}").module.state_dict()
        save_file(state, tmp_path / "vision.safetensors")
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}", tmp_path / "vision.safetensors")
        with pytest.raises(ModelError, match="with their own weights"):
            loaded.embed("a")


REMOTE = """
import os, torch
from transformers import PretrainedConfig, PreTrainedModel

open({seen!r}, "w").close()

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv2d(3, 2, 3)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values):
        return self.conv(pixel_values)
"""


class TestWhatCannotBeLoaded:
    def test_a_checkpoints_own_code_runs_only_if_trusted(self, tmp_path, monkeypatch) -> None:
        from transformers import dynamic_module_utils

        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the terminal"))
        folder, seen = tmp_path / "own", tmp_path / "seen"
        folder.mkdir()
        (folder / "own.py").write_text(REMOTE.format(seen=str(seen)))
        auto = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"}
        said = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto}
        (folder / "config.json").write_text(json.dumps(said))
        with pytest.raises(ModelError, match=r"code of its own.*--trust-remote-code"):
            tp.load_model(f"hf:{folder}", "random")
        (folder / "config.json").write_text(json.dumps(said | {"model_type": "vit"}))  # one that transformers knows
        with pytest.raises(ModelError, match=r"code of its own.*--trust-remote-code"):
            tp.load_model(f"hf:{folder}", "random")
        assert not seen.exists()

        (folder / "config.json").write_text(json.dumps(said))
        with pytest.warns(Notice, match="ImageNet's way"):
            loaded = tp.load_model(f"hf:{folder}", "random", trust_remote_code=True)
        assert seen.exists()
        assert type(loaded.module).__name__ == "OwnModel"

    def test_an_empty_folder(self, tmp_path) -> None:
        with pytest.raises(ModelNotFound, match=r"has no config.json.*save_pretrained"):
            tp.load_model(f"hf:{tmp_path}")

    def test_a_folder_with_a_config_only(self, saved) -> None:
        folder = saved(vit().config)
        with pytest.raises(WeightsError, match="--weights random"):
            tp.load_model(f"hf:{folder}")

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("{nope", "cannot be read"),
            ("{}", "cannot make a model"),
            ('{"model_type": "zork"}', "zork.*newer transformers"),
            ('{"model_type": "vit", "architectures": ["ViTWithProjection"]}', "has no class 'ViTWithProjection'"),
        ],
    )
    def test_configs_that_say_nothing(self, config: str, words: str, tmp_path) -> None:
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ModelError, match=words):
            tp.load_model(f"hf:{tmp_path}", "random")

    @pytest.mark.parametrize("content", [b"", b"not weights", b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}"])
    def test_damaged_weights(self, content: bytes, saved) -> None:
        folder = saved(vit())
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(WeightsError):
            tp.load_model(f"hf:{folder}")

    def test_weights_of_another_shape(self, saved) -> None:
        folder = saved(vit(), hidden_size=32)
        with pytest.raises(WeightsError):
            tp.load_model(f"hf:{folder}")

    def test_weights_are_not_named(self, saved) -> None:
        with pytest.raises(WeightsError, match="allowed: random, a file"):
            tp.load_model(f"hf:{saved(vit())}", "DEFAULT")

    def test_no_such_folder(self) -> None:
        for name in ("./nowhere", "/no/such/folder", "a/b/c"):
            with pytest.raises(ModelNotFound, match="no folder"):
                tp.load_model(f"hf:{name}")

    def test_a_name_that_cannot_be_fetched(self, monkeypatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no network here")

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
        with pytest.raises(WeightsError, match=r"hf:someone/something could not be fetched \(no network here\)"):
            tp.load_model("hf:someone/something")

    def test_transformers_that_is_not_there(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModelNotFound, match=r"torchpeek\[hf\]"):
            tp.load_model("hf:someone/something")

    def test_transformers_own_settings_are_left_as_they_were(self, saved) -> None:
        logging = transformers.utils.logging
        before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        with pytest.warns(Notice):
            tp.load_model(f"hf:{saved(vit())}")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_image_in_grey_is_read_in_colour(saved) -> None:
    folder = saved(vit())
    write_processor(folder, **PROCESSORS["squash"])
    grey = Image.fromarray((np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64))
    picture = tp.load_model(f"hf:{folder}", "random").read(grey)
    torch.testing.assert_close(picture.tensor, theirs(folder, grey.convert("RGB")), rtol=0, atol=1e-5)
