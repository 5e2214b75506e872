"""Models of transformers, recorded in all layers: their outputs and gradients stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.hooks import containers

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 16,
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 1), ("ffn_dim", 16))},
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
LENGTHS = {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32, "max_position_embeddings": 32}


def text_model(name: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    config = getattr(transformers, f"{name}Config")(**{**TEXT, **options})
    tokens = torch.randint(3, 40, (2, 8))
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), {"input_ids": tokens, "labels": tokens}


def prophet_net() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1}
    heads = {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    config = transformers.ProphetNetConfig(vocab_size=50, hidden_size=16, max_position_embeddings=32, **sizes, **heads)
    tokens = torch.randint(3, 40, (2, 8))
    return transformers.ProphetNetForConditionalGeneration(config), {"input_ids": tokens, "labels": tokens}


def forecaster(name: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    config = getattr(transformers, f"{name}Config")(
        prediction_length=4,
        context_length=8,
        lags_sequence=[1, 2],
        num_time_features=1,
        **{key: value for key, value in TEXT.items() if key != "vocab_size"},
        **options,
    )
    times = {"past_values": (2, 10), "past_time_features": (2, 10, 1), "future_values": (2, 4)}
    inputs = {key: torch.rand(shape) for key, shape in {**times, "future_time_features": (2, 4, 1)}.items()}
    return getattr(transformers, f"{name}ForPrediction")(config), {**inputs, "past_observed_mask": torch.ones(2, 10)}


def detector() -> tuple[nn.Module, dict[str, Any]]:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    options = {key: value for key, value in TEXT.items() if key != "vocab_size"}
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, num_queries=5, **options
    )
    return transformers.DetrForObjectDetection(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


MODELS = {
    "DETR": detector,
    "LED": lambda: text_model("LED", attention_window=4, **LENGTHS),
    "Pegasus": lambda: text_model("Pegasus", **LENGTHS),
    "ProphetNet": prophet_net,
    "Informer": lambda: forecaster("Informer"),
    "Autoformer": lambda: forecaster("Autoformer", moving_average=3, label_length=2),
    "TimeSeriesTransformer": lambda: forecaster("TimeSeriesTransformer"),
}


@pytest.mark.parametrize("name", MODELS)
def test_is_the_same_when_it_is_recorded(name: str) -> None:
    torch.manual_seed(0)
    try:
        model, inputs = MODELS[name]()
    except (AttributeError, TypeError) as error:
        pytest.skip(f"this version of transformers has other options: {error}")
    model.eval()
    results = []
    for recorded in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        if recorded:
            with tp.record(model, "*", inputs=True, gradients=True) as tape:
                outputs = dict(containers.leaves(model(**inputs)))
                (outputs["loss"] if "loss" in outputs else outputs["logits"].square().sum()).backward()
        else:
            outputs = dict(containers.leaves(model(**inputs)))
            (outputs["loss"] if "loss" in outputs else outputs["logits"].square().sum()).backward()
        results.append((outputs, {key: parameter.grad for key, parameter in model.named_parameters()}))
    (outputs, gradients), (recorded_outputs, recorded_gradients) = results
    assert outputs.keys() == recorded_outputs.keys()
    for key, tensor in outputs.items():
        assert torch.equal(recorded_outputs[key], tensor), key
    for key, gradient in gradients.items():
        # Not bit for bit: the gradients of one tensor are added up layer by layer. These models have no float64.
        torch.testing.assert_close(recorded_gradients[key], gradient, rtol=1e-4, atol=1e-6, msg=key)
    assert any(call.has_gradients for layer in tape for call in tape[layer])
