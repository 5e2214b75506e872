"""The layers of all scales of a detector: the outputs of its neck, which are known by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from engine.targets.test_dense_boxes import BY_OVERLAP, FORMS
from networks.dense_detectors import X, dense_detector
from networks.scales import Branches, Decoupled, Detector, FeaturePyramid, PathAggregation, coupled, detector

pytestmark = pytest.mark.usefixtures("one_thread")

Box = tp.targets.Box

INPUTS = torch.rand(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

NECKS: dict[Callable[[], nn.Module], list[str]] = {
    PathAggregation: ["neck.top_down.1", "neck.bottom_up.0", "neck.bottom_up.1"],
    FeaturePyramid: ["neck.smooth.0", "neck.smooth.1", "neck.smooth.2"],
    nn.Identity: ["body.stages.0", "body.stages.1", "body.stages.2"],
}
SETTINGS = [{}, {"shared": True}, {"pooled": True}, {"shared": True, "pooled": True}, {"objectness": True}]


def suggested(model: nn.Module, inputs: Any, **options: Any) -> tuple[list[str], str]:
    """The layers of the trace, and the reason for them."""
    trace = tp.trace(model, inputs, target=Box(**options), gradients=False)
    return list(trace.at), trace.origin.layer_reason


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_output(name: str) -> None:
    form, options = FORMS[name]
    layers, reason = suggested(dense_detector(form), X, **options)
    assert layers == ["neck.0", "neck.1", "neck.2"]
    assert reason == "the last layers of each of the 3 scales that the boxes are read from"


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("head", [Branches, coupled])
@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_and_head(neck: Any, head: Any, settings: dict[str, bool]) -> None:
    """A pooling that is no module makes one more scale of the coarsest map: the two have one layer."""
    layers, reason = suggested(detector(neck, head, **settings), INPUTS)
    assert layers == NECKS[neck]
    assert f"each of the {3 + settings.get('pooled', False)} scales" in reason


@pytest.mark.parametrize("neck", NECKS)
def test_branches_that_part_inside_the_head(neck: Any) -> None:
    """All that a scale predicts passes through the head's first convolution."""
    assert suggested(detector(neck, Decoupled), INPUTS)[0] == [f"head.{n}.stem" for n in range(3)]
    shared = suggested(detector(neck, Decoupled, shared=True), INPUTS)[0]
    assert shared == [f"head.0.stem[{n}]" for n in range(3)]


class Interleaved(Detector):
    """Each head runs as soon as its map is there, from the coarsest to the finest."""

    def forward(self, x: Tensor) -> Any:
        size, maps = (x.shape[2], x.shape[3]), self.body(x)
        above, rows = None, []
        for index in (2, 1, 0):
            each = self.neck.lateral[index](maps[index])
            above = each if above is None else each + nn.functional.interpolate(above, size=each.shape[2:])
            smooth = self.neck.smooth[index](above)
            self.head, heads = nn.ModuleList([self.head[index]]), self.head
            rows.insert(0, self.rows([smooth], size)[0])
            self.head = heads
        every = torch.cat(rows, 1)
        return torch.cat([every[..., :4], every[..., 5:]], 2).mT


class Detached(Detector):
    """The boxes are decoded without gradients, so only the scores show what a prediction is."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return torch.cat([out[:, :4].detach(), out[:, 4:]], 1)


class Softmax(Detector):
    """Class probabilities that add up to 1."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return torch.cat([out[:, :4], out[:, 4:].logit().softmax(1)], 1)


class TwoInputs(Detector):
    """A second input changes the coarsest map."""

    def __init__(self, *args: Any, **options: bool) -> None:
        super().__init__(*args, **options)
        self.other = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, x: Tensor, depth: Tensor) -> Any:
        maps = self.features(x)
        maps = [*maps[:2], maps[2] + self.other(depth)]
        every = torch.cat(self.rows(maps, (x.shape[2], x.shape[3])), 1)
        return torch.cat([every[..., :4], every[..., 5:]], 2).mT


@pytest.mark.parametrize("kind", [Interleaved, Detached, Softmax])
@pytest.mark.parametrize("head", [Branches, coupled])
def test_other_ways_to_run_a_head(kind: Any, head: Any) -> None:
    net = kind(FeaturePyramid, head).double().eval()
    assert suggested(net, INPUTS)[0] == NECKS[FeaturePyramid]


def test_another_input_beside_the_picture() -> None:
    """Its branch reaches one scale, and is no path to the picture."""
    torch.manual_seed(0)
    net, depth = TwoInputs(FeaturePyramid, Branches).double().eval(), torch.rand(2, 1, 4, 4).double()
    assert suggested(net, tp.Arguments((INPUTS, depth), picture="0"))[0] == NECKS[FeaturePyramid]


def test_a_frozen_network_and_no_grad() -> None:
    net = detector(PathAggregation, coupled).requires_grad_(False)
    with torch.inference_mode():
        assert suggested(net, INPUTS)[0] == NECKS[PathAggregation]
    assert suggested(net.float(), INPUTS.float())[0] == NECKS[PathAggregation]
    assert suggested(net.bfloat16(), INPUTS.bfloat16())[0] == NECKS[PathAggregation]


def test_three_passes() -> None:
    """The dry run, one that follows the boxes back, and the clean pass, in each call."""
    net, count = detector(PathAggregation, Decoupled), 0

    def called(module: nn.Module, args: Any) -> None:
        nonlocal count
        count += 1

    net.register_forward_pre_hook(called)
    for rank in (0, [1, 2]):
        count = 0
        tp.explain(net, INPUTS, target=Box(rank))
        assert count == 3


class BoxLater:
    """A target that is known to be of boxes only when it is bound."""

    def bind(self, output: Any) -> Any:
        return Box(classes=3).bind(output)


def test_a_target_that_turns_out_to_be_of_boxes() -> None:
    net = detector(PathAggregation, Branches)
    for _ in range(2):
        trace = tp.trace(net, INPUTS, target=BoxLater(), gradients=False)
        assert list(trace.at) == NECKS[PathAggregation]


@pytest.mark.parametrize("name", BY_OVERLAP)
def test_a_scale_without_a_box_among_the_rows(name: str) -> None:
    """Its layer is as far from the last one as those of the other scales are."""
    form, options = FORMS[name]
    net = dense_detector(form)
    with torch.no_grad():
        net.head[1].bias[5:] -= 100  # no row of the middle scale is among the best
    assert suggested(net, X, **options)[0] == ["neck.0", "neck.1", "neck.2"]


class TestTransformers:
    """Queries read feature maps of all scales through deformable attention."""

    @staticmethod
    def config(kind: str, **options: Any) -> Any:
        transformers = pytest.importorskip("transformers")
        backbone = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
        names = {"Deformable": "ResNetConfig", "RT": "RTDetrResNetConfig", "": "ResNetConfig"}
        stages = ["stage4"] if kind == "" else ["stage2", "stage3", "stage4"]
        small = {
            f"{half}_{name}": size
            for half in ("encoder", "decoder")
            for name, size in (("layers", 2), ("ffn_dim", 16), ("attention_heads", 2))
        }
        return getattr(transformers, f"{kind}DetrConfig")(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone_config=getattr(transformers, names[kind])(**backbone, out_features=stages),
            d_model=32,
            num_queries=8,
            num_labels=4,
            **small,
            **options,
        )

    @pytest.mark.parametrize(
        ("kind", "options", "layers"),
        [
            ("Deformable", {}, [f"model.input_proj.{n}" for n in range(4)]),
            ("Deformable", {"two_stage": True, "with_box_refine": True}, [f"model.input_proj.{n}" for n in range(4)]),
            (
                "RT",
                {"encoder_hidden_dim": 16, "encoder_in_channels": [16] * 3, "decoder_in_channels": [16] * 3},
                [f"model.decoder_input_proj.{n}" for n in range(3)],
            ),
            ("", {}, ["model.encoder"]),
        ],
    )
    def test_queries(self, kind: str, options: dict[str, Any], layers: list[str]) -> None:
        """DETR itself reads one scale, whose layer is chosen as ever."""
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}DetrForObjectDetection")(self.config(kind, **options)).eval()
        assert suggested(model, torch.rand(1, 3, 128, 128))[0] == layers
        heatmap = tp.explain(model, torch.rand(1, 3, 128, 128), target=Box([0, 1]))
        assert heatmap.values.flatten(2).any(2).all()
