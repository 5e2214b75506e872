"""Loading models of transformers from folders that save_pretrained wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import torchpeek as tp
from networks.huggingface import GRID, SMALL, detr, two_towers, vit
from torchpeek.errors import InputError, ModelError, ModelNotFound, Notice, WeightsError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_network", "quiet_transformers")


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


class TestModelClass:
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


class TestLoadErrors:
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
