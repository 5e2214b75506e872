"""What a model is called with: against the same model wrapped so that it takes one tensor, and by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.engine.model_call import ModelCall, as_model_call
from torchpeek.errors import InputError, TargetError
from torchpeek.render.overlay import placed

Box, Pixels = tp.targets.Box, tp.targets.Pixels
N = 3


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Sided(nn.Module):
    """Two pictures, a row of a table beside them, and more; keyword-only in part. May write into all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=2)
        self.table, self.head = nn.Linear(7, 5), nn.Linear(5, 4)
        self.writes = False

    def forward(
        self, image: Tensor, second: Tensor, *, meta: dict[str, Any], scale: Tensor, flags: Tensor, hint: Any = None
    ) -> Tensor:
        assert hint is None
        table, ids = meta["table"], meta["ids"][0]
        a, b = torch.tanh(self.conv(image)), torch.tanh(self.other(second)).mean((2, 3))
        row = torch.tanh(self.table(table))
        a = a * (1 + b[:, :, None, None]) * scale + row[:, :, None, None] * a.square()
        a = a * (1 + 0.1 * ids[:, None, None, None]) + flags[:, None, None, None] * a.abs()
        if self.writes:
            for each in (image, second, table):
                each.mul_(0)
        return self.head(a.sigmoid().mean((2, 3)))


FIRST, SECOND = drawn(N, 3, 8, 6), drawn(N, 3, 11, 9, seed=2)


def rest(rows: Any = slice(None)) -> dict[str, Any]:
    """What else it takes, of some of the samples: by sample, broadcast, nested, integer, boolean, nothing."""
    return {
        "meta": {"table": drawn(N, 7, seed=3)[rows], "ids": [torch.tensor([1, 2, 3])[rows]]},
        "scale": torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True])[rows],
        "hint": None,
    }


class OfOne(nn.Module):
    """Takes one of the pictures of one sample, and knows the rest."""

    def __init__(self, model: nn.Module, picture: str, sample: int) -> None:
        super().__init__()
        self.model, self.picture, self.sample = model, picture, sample

    def forward(self, x: Tensor) -> Tensor:
        row = [self.sample] * len(x)
        pair = (x, SECOND[row]) if self.picture == "0" else (FIRST[row], x)
        return self.model(*pair, **rest(row))


@pytest.fixture(scope="module")
def sided() -> Sided:
    torch.manual_seed(0)
    return Sided().double().eval()


OPTIONS: dict[str, dict[str, Any]] = {"groupcam": {"groups": 3, "kernel": 5}, "opticam": {"steps": 2}}
METHODS = [
    *("gradcam", "eigencam", "scorecam", "groupcam", "integrated-gradcam", "smoothgradcam++", "ablationcam"),
    *("recipro-cam", "opticam", "fullgrad", "random"),
]


class TestBesideThePicture:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("picture", "layer"), [("0", "conv"), ("1", "other")])
    @pytest.mark.filterwarnings("ignore:fullgrad. the contributions do not add up")
    def test_is_the_wrapped_model(self, sided: Sided, method: str, picture: str, layer: str) -> None:
        """Of each sample by itself: so what goes with the samples follows them, and what is shared does not."""
        sided.writes = method not in ("opticam", "fullgrad")  # which is refused where gradients flow to the input
        given = tp.Arguments((FIRST, SECOND), rest(), picture=picture)
        options = OPTIONS.get(method, {})
        got = tp.explain(sided, given, method=method, layer=layer, target=[1, 2, 3], **options)
        own = (FIRST, SECOND)[int(picture)]
        for n in range(N):
            one = OfOne(sided, picture, n).eval()
            expected = tp.explain(one, own[n : n + 1], method=method, layer=f"model.{layer}", target=1 + n, **options)
            if method == "random":  # drawn for the batch
                assert got.values[n].shape == expected.values[0].shape
            else:
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


class TestAnatomy:
    """What looks inside takes the same calls, and leaves the caller's tensors as they were."""

    LOOKS: tuple[tuple[str, Callable[[nn.Module, Any], Any]], ...] = (
        ("layers", lambda model, given: [(row.name, row.output) for row in tp.layers(model, given).rows]),
        ("activations", lambda model, given: tp.activations(model, given, "*conv")),
        ("plan", lambda model, given: [(row.output, row.nbytes) for row in tp.plan(model, given, "*conv").rows]),
        ("statistics", lambda model, given: [r.output.summary() for r in tp.statistics(model, [given], "*conv").rows]),
        ("gradient_flow", lambda model, given: tp.gradient_flow(model, given, 1).loss),
    )

    @pytest.mark.parametrize(("name", "look"), LOOKS, ids=[name for name, _ in LOOKS])
    def test_is_the_wrapped_model(self, sided: Sided, name: str, look: Callable[[nn.Module, Any], Any]) -> None:
        sided.writes = name != "gradient_flow"  # such a model cannot be trained
        pair, kept = (FIRST[:1].clone(), SECOND[:1].clone()), rest([0])
        got = look(sided, tp.Arguments(pair, kept))
        expected = look(OfOne(sided, "0", 0).eval(), FIRST[:1])
        if name == "layers":
            assert [(f"model.{layer}", said) for layer, said in got] == expected[1:]
        elif name == "activations":
            assert torch.equal(got["conv"], expected["model.conv"])
        else:
            assert got == expected
        assert torch.equal(pair[0], FIRST[:1])
        assert torch.equal(kept["meta"]["table"], rest([0])["meta"]["table"])

    def test_of_a_plain_tensor_neither(self) -> None:
        class Writes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.my_conv = nn.Conv2d(3, 4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.my_conv(x.mul_(2))

        x = torch.randn(2, 3, 8, 6)
        before = x.clone()
        for _, look in self.LOOKS[:4]:
            look(Writes().eval(), x)
        assert torch.equal(x, before)


class TestWhichGoWithTheSamples:
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
        with pytest.raises(InputError, match=r"sample 2 alone gives something else .*\('1'\).*shared=\[") as caught:
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
        assert given.path == "1.pixel_values"
        assert given.by_sample == {"1.input_ids", "1.mask"}
        _, kwargs = given.of(torch.tensor([1])).arguments()
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

        target = [[0, 1], [1, 0], [1, 0]]
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
            (lambda: torch.zeros(2, 3, 8, 6).to_sparse(), "sparse_coo on cpu"),
            (lambda: torch.zeros(2, 3, 8, 6, device="meta"), "strided on meta"),
            (lambda: torch.nested.nested_tensor([torch.zeros(3, 8, 6)] * 2, layout=torch.jagged), "nested"),
            (lambda: torch.quantize_per_tensor(torch.zeros(2, 3, 8, 6), 0.1, 0, torch.quint8), "quantised"),
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

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.bool])
    def test_another_dtype_is_the_models_own_error_with_what_it_was_given(self, dtype: torch.dtype) -> None:
        with pytest.raises(RuntimeError) as caught:
            tp.explain(PooledNet(), torch.zeros(1, 3, 8, 6).to(dtype), target=1)
        assert f"given {dtype} of shape (1, 3, 8, 6) on cpu; its parameters are torch.float32" in str(
            caught.value.__notes__
        )

    def test_what_goes_with_the_samples_is_in_the_note(self, sided: Sided) -> None:
        with pytest.raises(TypeError) as caught:
            tp.explain(sided, tp.Arguments((FIRST, SECOND), {"flags": rest()["flags"]}), layer="conv")
        assert "its own part of '1', 'flags', unless tp.Arguments(shared=[...])" in str(caught.value.__notes__)


# ---- detectors: they scale and pad their pictures themselves ----


class Bright(nn.Module):
    """A detector of brightness: one box around it all, as sure as the brightest cells of a stride of 8 are bright."""

    def __init__(self, divisible: int = 32, least: int = 64, most: int = 96) -> None:
        super().__init__()
        detection = pytest.importorskip("torchvision.models.detection.transform")
        self.transform = detection.GeneralizedRCNNTransform(least, most, [0.0] * 3, [1.0] * 3, size_divisible=divisible)
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 192)
            self.conv.bias.zero_()

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        scaled, _ = self.transform(pictures)
        seen = self.conv(scaled.tensors)  # (N, 2, h, w), as padded
        scores = torch.sigmoid(seen.square().mean((1, 2, 3)))
        boxes = [[0.0, 0.0, picture.shape[2], picture.shape[1]] for picture in pictures]
        return [
            {"boxes": torch.tensor([box]), "scores": score[None], "labels": torch.tensor([1])}
            for box, score in zip(boxes, scores, strict=True)
        ]


class TestDetectors:
    @pytest.mark.parametrize(("width", "height"), [(200, 150), (130, 210), (97, 64), (333, 90)])
    @pytest.mark.parametrize("divisible", [8, 32])
    def test_heat_lies_where_the_object_is(self, width: int, height: int, divisible: int) -> None:
        """Anywhere in the original picture, whatever was padded: the centre of the heat is that of the object."""
        model = Bright(divisible).eval()
        loaded = tp.LoadedModel(model)
        for across, down in [(0.2, 0.25), (0.75, 0.7), (0.5, 0.8)]:
            pixels = np.zeros((height, width, 3), np.uint8)
            top, left, side = int(down * height), int(across * width), max(6, min(width, height) // 8)
            pixels[top : top + side, left : left + side] = 255
            picture = loaded.read(Image.fromarray(pixels))
            heatmap = tp.explain(loaded, picture, layer="conv", target=Box())
            heat = np.nan_to_num(placed(heatmap.positive().values[0, 0], picture.geometry))
            assert heat.shape == (height, width)
            share = heat / heat.sum()
            centre = [float(share.sum(axis) @ (np.arange(heat.shape[1 - axis]) + 0.5)) for axis in (0, 1)]
            cell = 8 * width / model.transform([torch.zeros(3, height, width)])[0].image_sizes[0][1]
            assert abs(centre[0] - (left + side / 2)) < 0.6 * cell
            assert abs(centre[1] - (top + side / 2)) < 0.6 * cell

    def test_a_list_of_pictures_of_different_sizes(self) -> None:
        model = Bright().eval()
        pictures = [torch.rand(3, *size, generator=torch.Generator().manual_seed(n)) for n, size in enumerate(SIZES)]
        found = tp.explain(model, pictures, layer="conv", target=Box())
        for picture, heatmap in zip(pictures, found, strict=True):
            alone = tp.explain(model, picture, layer="conv", target=Box())
            torch.testing.assert_close(heatmap.values, alone.values)
            scaled = model.transform([picture])[0].tensors
            assert tuple(heatmap.values.shape[2:]) == tuple(size // 8 for size in scaled.shape[2:])
            # By hand: d sigmoid(m) / d a = s (1 - s) 2 a / count, m the mean square.
            a = model.conv(scaled).detach()  # (1, 2, h, w)
            score = torch.sigmoid(a.square().mean())
            gradient = score * (1 - score) * 2 * a / a.numel()
            torch.testing.assert_close(heatmap.values, (gradient.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))

    def test_a_batch_of_one_size_is_each_by_itself(self) -> None:
        model, batch = Bright().eval(), torch.rand(2, 3, 60, 80)
        together = tp.explain(model, batch, method="scorecam", layer="conv", target=Box())
        for n in range(2):
            alone = tp.explain(model, batch[n], method="scorecam", layer="conv", target=Box())
            torch.testing.assert_close(together.values[n], alone.values[0], rtol=1e-4, atol=1e-6)

    def test_no_class_is_predicted_of_a_detector(self) -> None:
        """Its boxes are (Q, 4), which is no batch of class scores."""
        for given in (torch.rand(3, 60, 80), torch.rand(2, 3, 60, 80)):
            with pytest.raises(TargetError, match="Box for a detector"):
                tp.explain(Bright().eval(), given, layer="conv")

    def test_other_arguments(self) -> None:
        with pytest.raises(InputError, match=r"Bright takes a list of pictures .*several of one size \(N, C, H, W\)"):
            tp.explain(Bright(), tp.Arguments(([torch.rand(3, 60, 80)],)), target=Box())

    def test_a_function_of_what_it_returns(self) -> None:
        model, batch = Bright().eval(), torch.rand(2, 3, 60, 80)
        target = tp.targets.Computed(lambda output, rows: torch.stack([each["scores"].sum() for each in output]))
        got = tp.explain(model, batch, layer="conv", target=target)
        torch.testing.assert_close(got.values, tp.explain(model, batch, layer="conv", target=Box()).values)

    def test_detr_with_a_mask_of_the_pixels(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        halves = {
            f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 16))
        }
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone_config=backbone,
            d_model=16,
            num_queries=4,
            num_labels=3,
            **halves,
        )
        model = transformers.DetrForObjectDetection(config).eval()
        x, mask = drawn(2, 3, 64, 64).float(), torch.ones(2, 64, 64, dtype=torch.long)
        mask[1, :, 48:] = 0
        layer = "model.input_projection"
        given = {"pixel_values": x, "pixel_mask": mask}
        for method in ("gradcam", "scorecam"):
            together = tp.explain(model, given, method=method, layer=layer, target=Box())
            for n in range(2):
                one = {"pixel_values": x[n : n + 1], "pixel_mask": mask[n : n + 1]}
                alone = tp.explain(model, one, method=method, layer=layer, target=Box())
                largest = float(alone.values.abs().max())
                torch.testing.assert_close(together.values[n], alone.values[0], rtol=0, atol=1e-3 * largest)
        blind = tp.explain(model, x[1:], layer=layer, target=Box())
        assert not torch.allclose(blind.scores, together.scores[1:])  # the mask went with its sample


SIZES = [(60, 80), (90, 50), (60, 80)]


class TestSegmentation:
    """Which of several parts is the segmentation is found: against the function that takes that part."""

    @staticmethod
    def mean_of(part: str, label: int, mask: Tensor) -> Any:
        return tp.targets.Computed(lambda output, rows: output[part][:, label][:, mask].mean(1))

    @pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
    def test_torchvision(self, name: str) -> None:
        segmentation = pytest.importorskip("torchvision.models.segmentation")
        torch.manual_seed(0)
        extra = {"aux_loss": True} if name.startswith("deeplab") else {}
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, **extra).eval()
        mask = torch.zeros(32, 48, dtype=torch.bool)
        mask[4:20, 8:30] = True
        x = torch.rand(2, 3, 32, 48)
        got = tp.explain(model, x, layer="backbone.16", target=Pixels(1, mask))
        expected = tp.explain(model, x, layer="backbone.16", target=self.mean_of("out", 1, mask))
        torch.testing.assert_close(got.values, expected.values)
        assert got.provenance.score == "mean logit of the masked pixels, from 'out'"
        with pytest.raises(TargetError, match=r"mask has shape \(48, 32\); allowed: \(32, 48\), or \(2, 32, 48\)"):
            tp.explain(model, x, layer="backbone.16", target=Pixels(1, mask.T))

    def test_segformer(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=4,
        )
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        x, mask = torch.rand(2, 3, 64, 64), torch.zeros(16, 16, dtype=torch.bool)
        mask[3:9, 2:12] = True
        layer = "decode_head.linear_fuse"
        labels = {"labels": torch.zeros(2, 64, 64, dtype=torch.long)}  # with which a loss is returned, too
        for given in ({"pixel_values": x}, {"pixel_values": x, **labels}):
            got = tp.explain(model, given, layer=layer, target=Pixels(1, mask))
            expected = tp.explain(model, x, layer=layer, target=self.mean_of("logits", 1, mask))
            torch.testing.assert_close(got.values, expected.values)
            assert got.provenance.score == "mean logit of the masked pixels, from 'logits'"


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


def test_given_keeps_no_second_copy_of_the_picture() -> None:
    """Each pass copies what is beside the picture, and not the picture once more."""
    given = as_model_call(nn.Identity(), tp.Arguments((drawn(2, 3, 4, 4),), {"table": drawn(2, 5)}))
    assert isinstance(given, ModelCall)
    assert given.call[0] == (None,)
    args, kwargs = given.changed(torch.ones(2, 3, 4, 4)).arguments()
    assert torch.equal(args[0], torch.ones(2, 3, 4, 4))
    assert list(kwargs) == ["table"]
