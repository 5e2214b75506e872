"""Small models of transformers, their processors and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GRID = {"image_size": 32, "patch_size": 8}


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


def write_processor(folder: Path, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_clip_tokenizer(folder: Path) -> None:
    """Letters, two of which may be merged."""
    letters = "abcdefghijklmnopqrst"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "at</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    marks = {"bos_token": words[0], "eos_token": words[1], "pad_token": words[1], "unk_token": words[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **marks}))


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
