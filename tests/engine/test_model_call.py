"""What a model is called with: several arguments, and which of them go with the samples."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.model_calls import FIRST, SECOND, N, OfOne, Sided, drawn, rest
from torchpeek.engine.model_call import ModelCall, as_model_call
from torchpeek.errors import InputError

Box, Pixels = tp.targets.Box, tp.targets.Pixels


@pytest.fixture(scope="module")
def sided() -> Sided:
    torch.manual_seed(0)
    return Sided().double().eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "groupcam": {"groups": 3, "kernel": 5},
    "opticam": {"steps": 2},
    "rise": {"samples": 5},
}
METHODS = [
    *("gradcam", "eigencam", "scorecam", "groupcam", "integrated-gradcam", "smoothgradcam++", "ablationcam"),
    *("recipro-cam", "opticam", "fullgrad", "random"),
    *("saliency", "input-x-gradient", "smoothgrad", "integrated-gradients", "occlusion", "rise"),
]


class TestFurtherArguments:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("picture", "layer"), [("0", "conv"), ("1", "other")])
    @pytest.mark.filterwarnings("ignore:fullgrad. the contributions do not add up")
    def test_is_the_wrapped_model(self, sided: Sided, method: str, picture: str, layer: str) -> None:
        """Of each sample by itself: so what goes with the samples follows them, and what is shared does not."""
        sided.writes = (
            method != "fullgrad" and not tp.METHODS[method].through_model
        )  # which is refused where gradients flow to the input
        given = tp.Arguments((FIRST, SECOND), rest(), picture=picture)
        options = OPTIONS.get(method, {})
        got = tp.explain(sided, given, method=method, layer=layer, target=[1, 2, 3], **options)
        own = (FIRST, SECOND)[int(picture)]
        for n in range(N):
            one = OfOne(sided, picture, n).eval()
            expected = tp.explain(one, own[n : n + 1], method=method, layer=f"model.{layer}", target=1 + n, **options)
            torch.testing.assert_close(got.values[n], expected.values[0], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(got.scores[n], expected.scores[0])

    def test_smoothing_turns_the_picture_only(self, sided: Sided) -> None:
        how = tp.Smoothing(factors=(0.9, 1.1))
        got = tp.explain(sided, tp.Arguments((FIRST, SECOND), rest()), layer="conv", target=1, smooth=how)
        expected = tp.explain(OfOne(sided, "0", 2).eval(), FIRST[2:], layer="model.conv", target=1, smooth=how)
        torch.testing.assert_close(got.values[2], expected.values[0])

    def test_nothing_of_the_callers_is_changed(self, sided: Sided) -> None:
        sided.writes = True
        kept = rest()
        pair = (FIRST.clone().requires_grad_(), SECOND.clone())
        for method in ("gradcam", "scorecam", "ablationcam"):
            tp.explain(sided, tp.Arguments(pair, kept), method=method, layer="conv")
        assert torch.equal(pair[0], FIRST)
        assert pair[0].grad is None
        assert torch.equal(pair[1], SECOND)
        assert torch.equal(kept["meta"]["table"], rest()["meta"]["table"])
        assert torch.equal(kept["scale"], rest()["scale"])

    def test_a_trace_asked_for_other_samples(self, sided: Sided) -> None:
        sided.writes = False
        trace = tp.trace(sided, tp.Arguments((FIRST, SECOND), rest()), layer="conv", target=2)
        rows = torch.tensor([2, 0, 2, 1])
        again = trace.again(FIRST[rows], rows=rows)
        torch.testing.assert_close(again.scores, trace.scores[rows])
        torch.testing.assert_close(again.gradients, trace.gradients[rows])

    def test_a_list_of_calls_of_different_sizes(self, sided: Sided) -> None:
        calls = [
            tp.Arguments((FIRST[n : n + 1, :, : 8 - n], SECOND[n : n + 1]), rest([n]), picture="0") for n in range(N)
        ]
        found = tp.explain(sided, calls, layer="conv", target=[1, 2, 3])
        assert [tuple(each.values.shape[2:]) for each in found] == [(8, 6), (7, 6), (6, 6)]
        for n, each in enumerate(found):
            alone = tp.explain(sided, calls[n], layer="conv", target=1 + n)
            assert torch.equal(each.values, alone.values)


class TestSampleArguments:
    """`shared`: a tensor of N entries may be for all of the samples."""

    class Prototypes(nn.Module):
        """How near each picture is to each of the prototypes that come with the call."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor, prototypes: Any) -> Tensor:
            table = prototypes["of"][0] if isinstance(prototypes, dict) else prototypes
            return torch.tanh(self.conv(x)).mean((2, 3)) @ table.T

    class Knows(nn.Module):
        def __init__(self, model: nn.Module, table: Tensor) -> None:
            super().__init__()
            self.model, self.table = model, table

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x, self.table)

    @pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "integrated-gradcam"])
    def test_as_many_as_there_are_samples(self, method: str) -> None:
        model, table = self.Prototypes().double().eval(), drawn(N, 4, seed=5)
        labels = [[0, 2], [1, 0], [2, 1]]
        expected = tp.explain(
            self.Knows(model, table).eval(), FIRST, method=method, layer="model.conv", target=labels
        ).values
        ways: list[tuple[Any, str | list[str]]] = [(table, "1"), (table, ["1"]), ({"of": [table]}, ["1"])]
        for given, shared in [*ways, ({"of": [table]}, ["1.of.0"])]:
            call = tp.Arguments((FIRST, given), shared=shared)
            got = tp.explain(model, call, method=method, layer="conv", target=labels)
            torch.testing.assert_close(got.values, expected)

    @pytest.mark.parametrize("method", ["gradcam", "scorecam"])
    def test_not_said_it_is_an_error_and_no_other_map(self, method: str) -> None:
        model = self.Prototypes().double().eval()
        with pytest.raises(
            InputError, match=r"another result for sample 2 alone .*arguments '1' .*shared=\["
        ) as caught:
            tp.explain(model, tp.Arguments((FIRST, drawn(N, 4))), method=method, layer="conv")
        assert "one by one" in str(caught.value)

    def test_of_one_sample_and_one_entry_both_are_the_same(self) -> None:
        model = self.Prototypes().double().eval()
        for method in ("scorecam", "integrated-gradcam"):
            maps = [
                tp.explain(model, tp.Arguments((FIRST[:1], drawn(1, 4)), shared=shared), method=method, layer="conv")
                for shared in ((), "1")
            ]
            torch.testing.assert_close(maps[0].values, maps[1].values)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"shared": "2"}, "shared names '2', which is no tensor of the call; besides the picture there are: '1'"),
            ({"shared": ["0"]}, "shared names '0', which is the picture"),
            ({"picture": "pixels"}, r"picture is 'pixels'; the call has tensors at: '0' \(3, 3, 8, 6\), '1' \(3, 4\)"),
            ({"picture": "7"}, "picture is '7'"),
        ],
    )
    def test_paths_that_are_not_there(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            tp.explain(self.Prototypes(), tp.Arguments((FIRST, drawn(N, 4)), **options), layer="conv")

    def test_a_position_may_be_a_number(self) -> None:
        given = as_model_call(nn.Identity(), tp.Arguments((drawn(2, 3, 4, 4), drawn(2, 3, 5, 5)), picture=1))
        assert given.size == (5, 5)

    def test_the_first_with_a_grid_is_the_picture(self) -> None:
        ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)
        given = as_model_call(nn.Identity(), {"input_ids": ids, "mask": mask, "pixel_values": drawn(2, 3, 4, 4)})
        assert given.picture_path == "1.pixel_values"
        assert given.sample_paths == {"1.input_ids", "1.mask"}
        _, kwargs = given.select(torch.tensor([1])).args_and_kwargs()
        assert [len(each) for each in kwargs.values()] == [1, 1, 1]


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    text = {"num_hidden_layers": 1, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49}
    vision = {"num_hidden_layers": 2, "image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**common, **text, "bos_token_id": 48, "pad_token_id": 1},
        vision_config={**common, **vision},
        projection_dim=12,
    )
    return transformers.CLIPModel(config).double().eval()


class TestTransformers:
    """CLIP as a whole: every picture against every text, by itself or from a processor's BatchFeature."""

    LAYER = "vision_model.encoder.layers.1.layer_norm1"

    @pytest.mark.parametrize("texts", [2, N])
    @pytest.mark.parametrize("shared", [(), ("input_ids", "attention_mask")])
    @pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
    def test_is_the_wrapped_model(self, clip: nn.Module, method: str, shared: tuple[str, ...], texts: int) -> None:
        from transformers import BatchFeature

        ids = torch.randint(2, 48, (texts, 5), generator=torch.Generator().manual_seed(1))
        ids[:, -1] = 49
        pictures, mask = drawn(N, 3, 24, 24), torch.ones_like(ids)

        class Compares(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.clip = clip

            def forward(self, x: Tensor) -> Tensor:
                return self.clip(input_ids=ids, pixel_values=x, attention_mask=mask).logits_per_image

        target = tp.targets.Classes([1, 0])
        given = BatchFeature({"input_ids": ids, "pixel_values": pictures, "attention_mask": mask})
        call = tp.Arguments(kwargs=given, shared=shared) if shared else given
        got = tp.explain(clip, call, method=method, layer=self.LAYER, target=target)
        expected = tp.explain(Compares().eval(), pictures, method=method, layer=f"clip.{self.LAYER}", target=target)
        torch.testing.assert_close(got.values, expected.values)
        assert got.provenance.score == "logit, from 'logits_per_image'"
        assert torch.equal(given["pixel_values"], pictures)

    def test_vit_with_keywords(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
        model = transformers.ViTForImageClassification(config).double().eval()
        x = drawn(2, 3, 16, 16)
        for method in ("gradcam", "ablationcam"):
            by_name = tp.explain(model, {"pixel_values": x}, method=method)
            torch.testing.assert_close(by_name.values, tp.explain(model, x, method=method).values)
        assert by_name.provenance.score == "logit, from 'logits'"


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (lambda: torch.zeros(0, 3, 8, 6), r"inputs has shape \(0, 3, 8, 6\)"),
            (lambda: torch.zeros(1, 3, 0, 6), r"inputs has shape \(1, 3, 0, 6\)"),
            (lambda: torch.zeros(2, 3, 8, 6).to_sparse(), "sparse_coo; allowed: a dense tensor.*to_dense"),
            (lambda: torch.zeros(2, 3, 8, 6, device="meta"), "on the meta device"),
            (lambda: torch.nested.nested_tensor([torch.zeros(3, 8, 6)] * 2, layout=torch.jagged), "nested"),
            (
                lambda: torch.quantize_per_tensor(torch.zeros(2, 3, 8, 6), 0.1, 0, torch.quint8),
                "quint8; allowed: a dense tensor.*dequantize",
            ),
            (lambda: np.zeros((2, 3, 8, 6)), "inputs is a ndarray"),
            (lambda: [np.zeros((2, 3, 8, 6))], "inputs is a ndarray"),
            (lambda: {1, 2}, "inputs is a set"),
            (lambda: None, "inputs is missing"),
            (list, "an empty list"),
            (dict, "There are: none"),
            (lambda: {"x": torch.zeros(2, 3, 8, 6, dtype=torch.long)}, r"There are: 'x' \(2, 3, 8, 6\)"),
            (lambda: tp.Arguments((3, "x")), "There are: none"),
            (lambda: tp.Arguments(torch.zeros(2, 3, 8, 6)), "args of type Tensor; allowed: a tuple"),  # type: ignore[arg-type]
            (lambda: tp.Arguments(kwargs={0: 1}), "keys are names"),  # type: ignore[dict-item]
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*(nested tensors is in prototype|are deprecated and will be removed)")
    def test_is_named(self, given: Callable[[], Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            tp.explain(PooledNet(), given(), target=1)

    def test_what_goes_with_the_samples_is_in_the_note(self, sided: Sided) -> None:
        with pytest.raises(KeyError) as caught:
            tp.explain(sided, tp.Arguments((FIRST, SECOND), rest() | {"meta": {}}), layer="conv")
        assert "its own part of '1', 'flags', unless tp.Arguments(shared=[...])" in str(caught.value.__notes__)


def test_two_threads_with_calls_of_their_own(sided: Sided) -> None:
    """At one model, each with its own samples and another layer as the target."""
    sided.writes = True
    calls = [tp.Arguments((FIRST[[n]], SECOND[[n]]), rest([n])) for n in range(2)]
    neurons = [tp.targets.Neuron("head", 0), tp.targets.Neuron("conv", 2)]

    def values(n: int) -> Tensor:
        return tp.explain(sided, calls[n], method="scorecam", layer="conv", target=neurons[n]).values

    alone = [values(n) for n in range(2)]
    together: dict[int, list[Tensor]] = {0: [], 1: []}
    threads = [threading.Thread(target=lambda n=n: together[n].extend(values(n) for _ in range(4))) for n in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for n in range(2):
        assert len(together[n]) == 4
        assert all(torch.equal(each, alone[n]) for each in together[n])


def test_a_model_call_keeps_no_second_copy_of_the_picture() -> None:
    """Each pass copies what is beside the picture, and not the picture once more."""
    given = as_model_call(nn.Identity(), tp.Arguments((drawn(2, 3, 4, 4),), {"table": drawn(2, 5)}))
    assert isinstance(given, ModelCall)
    assert given.arguments[0] == (None,)
    args, kwargs = given.with_picture(torch.ones(2, 3, 4, 4)).args_and_kwargs()
    assert torch.equal(args[0], torch.ones(2, 3, 4, 4))
    assert list(kwargs) == ["table"]


def test_arguments_that_cannot_be_shown() -> None:
    """What a user's object shows of itself may need its tensors, and the form of a call has none."""

    @dataclass
    class Prompt:
        tokens: Tensor

        def __repr__(self) -> str:
            return f"Prompt of {len(self.tokens)} tokens"

    class Prompted(nn.Conv2d):
        def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
            return super().forward(x).mean((2, 3)) * prompt.tokens.sum()

    inputs = tp.Arguments((torch.rand(1, 3, 8, 8), Prompt(torch.ones(2))))
    assert tp.activations(Prompted(3, 4, 3), inputs, "")[""].shape == (1, 4)


@pytest.mark.parametrize("many", [False, True])
def test_heatmaps_as_inputs(many: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heatmaps = tp.compare(model, torch.rand(1, 3, 8, 8), methods=["gradcam"], layer="0")
    with pytest.raises(tp.errors.InputError, match="give the inputs that they were made of"):
        tp.explain(model, heatmaps if many else heatmaps["gradcam"], layer="0")
