"""One detected box of models of torchvision and transformers: scores, gradients and heatmaps."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.detectors import ROWS, WHAT, Cells, Listing, Queries, X, detector
from replicas.boxes import found_again, listed, ranked
from torchpeek.errors import TargetError

Box = tp.targets.Box


class TestHeatmaps:
    """Through trace and explain, on the small detectors."""

    @pytest.mark.parametrize("kind", [Listing, Queries])
    @pytest.mark.parametrize("what", ["score", "right"])
    def test_a_trace_has_the_gradients_of_autograd(self, kind: type[Cells], what: Any) -> None:
        model = detector(kind)
        trace = tp.trace(model, X, layer="conv", target=Box([0, 2], what=what))
        kept: list[Tensor] = []
        handle = model.conv.register_forward_hook(lambda module, args, out: kept.append(out))
        scores = trace.question(model(X), ROWS)
        handle.remove()
        torch.testing.assert_close(trace.scores, scores.detach())
        for k in range(2):
            (gradient,) = torch.autograd.grad(scores[:, k].sum(), kept[0], retain_graph=True)
            torch.testing.assert_close(trace.gradients[:, k], gradient)

    @pytest.mark.parametrize("method", ["gradcam", "hirescam", "scorecam", "recipro-cam"])
    @pytest.mark.filterwarnings("ignore:whole passes for each change")
    def test_heatmaps_are_of_their_box(self, method: str, tmp_path: Any) -> None:
        """A heatmap of several boxes is that of each; it is named, and written."""
        loaded = tp.LoadedModel(detector(Listing), tp.Preprocess(None, None), ["none", "ant", "bee", "cat"])
        heatmap = tp.explain(loaded, X, method=method, layer="conv", target=Box([0, 1]))
        alone = tp.explain(loaded, X[1:], method=method, layer="conv", target=Box(1))
        torch.testing.assert_close(heatmap.values[1:, 1:], alone.values)
        label = int(heatmap.question.labels[0, 0])
        assert heatmap.provenance.class_name(label) == ["none", "ant", "bee", "cat"][label]
        assert heatmap.provenance.score == "score of a detected box"
        tp.save(heatmap, tmp_path / "map.safetensors")
        again = tp.load(tmp_path / "map.safetensors")
        assert again.provenance.score == heatmap.provenance.score
        assert torch.equal(again.question.labels, heatmap.question.labels)

    def test_by_name(self) -> None:
        model = detector(Listing)
        names = ["none", "ant", "bee", "cat"]
        label = int(model(X[:1])[0]["labels"][0])
        loaded = tp.LoadedModel(model, tp.Preprocess(None, None), names)
        by_name = tp.explain(loaded, X[:1], layer="conv", target=Box(label=names[label]))
        assert torch.equal(by_name.values, tp.explain(model, X[:1], layer="conv", target=Box(0)).values)

    def test_of_a_classifier(self, net: nn.Module) -> None:
        with pytest.raises(TargetError, match="Box reads what a detector returns; got a tensor"):
            tp.explain(net, torch.rand(2, 3, 8, 6).double(), layer="prefix", target=Box())


# ---- the detectors that people use, at a small size and with random weights ----

SMALL = {"weights": None, "weights_backbone": None, "num_classes": 4}
DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        {"box_score_thresh": 0.0, "box_detections_per_img": 12, "min_size": 64, "max_size": 96},
        "backbone.fpn.layer_blocks.0",
        "roi_heads.box_predictor",
    ),
    "ssdlite320_mobilenet_v3_large": (
        {"score_thresh": 0.0, "detections_per_img": 12, "topk_candidates": 50},
        "backbone.features.0",
        "head.classification_head",
    ),
}


@pytest.fixture(scope="module", params=DETECTORS)
def torchvision_detector(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    detection = pytest.importorskip("torchvision.models.detection")
    options, layer, head = DETECTORS[request.param]
    torch.manual_seed(0)
    model = getattr(detection, request.param)(**SMALL, **options).eval()
    for parameter in model.get_submodule(head).parameters():
        parameter.data *= 20  # so that the scores of random weights differ
    return model, layer


PICTURES = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(2))


class TestTorchvision:
    def test_values_are_the_models_own(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, _ = torchvision_detector
        with torch.no_grad():
            output = model(PICTURES)
        for what in WHAT:
            question = Box([0, 3], what=what).bind(output)
            own = [each["scores"] if what == "score" else each["boxes"][:, WHAT.index(what) - 1] for each in output]
            torch.testing.assert_close(question(output, ROWS), torch.stack([each[[0, 3]] for each in own]))
            assert torch.equal(question.labels, torch.stack([each["labels"][[0, 3]] for each in output]))

    @pytest.mark.parametrize("what", ["score", "left"])
    def test_the_gradient_reaches_the_picture(self, torchvision_detector: tuple[nn.Module, str], what: Any) -> None:
        model, _ = torchvision_detector
        given = PICTURES[[1, 0]].clone().requires_grad_()
        output = model(given)
        # An edge that was clipped to the picture has no gradient.
        inside = [int((each["boxes"][:, 0] > 1).float().argmax()) for each in output]
        for n, rank in enumerate(inside):
            question = Box(rank, what=what).bind(output)
            (gradient,) = torch.autograd.grad(question(output, ROWS)[n, 0], given, retain_graph=True)
            assert gradient[n].any()
            assert not gradient[1 - n].any()

    def test_found_again_in_changed_pictures(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, _ = torchvision_detector
        rows = torch.tensor([1, 0, 1])
        with torch.no_grad():
            clean, changed = model(PICTURES), model(PICTURES[rows] + 0.02 * torch.randn(3, 3, 64, 80))
        question = Box([0, 1, 2]).bind(clean)
        expected = [
            [found_again(each, picture, "score", 0.5) for each in ranked(listed(clean)[row])[:3]]
            for row, picture in zip(rows.tolist(), listed(changed), strict=True)
        ]
        scores = question(changed, rows)
        torch.testing.assert_close(scores, torch.tensor(expected))
        assert scores.any()

    def test_heatmaps(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, layer = torchvision_detector
        heatmap = tp.explain(model, PICTURES, layer=layer, target=Box([0, 1]))
        assert heatmap.values.shape[:2] == (2, 2)
        torch.testing.assert_close(heatmap.scores, Box([0, 1]).bind(model(PICTURES)).values, rtol=1e-4, atol=1e-5)
        assert heatmap.values.flatten(2).any(2).all()


@pytest.fixture(scope="module")
def detr() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=16, num_queries=7, num_labels=4, **sizes, **heads
    )
    model = transformers.DetrForObjectDetection(config).double().eval()
    for parameter in (*model.bbox_predictor.parameters(), *model.class_labels_classifier.parameters()):
        parameter.data *= 3  # so that the queries of random weights differ
    return model


class TestTransformers:
    GIVEN = torch.randn(2, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def test_detections_are_those_of_its_processor(self, detr: nn.Module) -> None:
        module = pytest.importorskip("transformers.models.detr.image_processing_detr")
        with torch.no_grad():
            output = detr(self.GIVEN)
        question = Box(range(7)).bind(output)
        theirs = module.DetrImageProcessor().post_process_object_detection(output, threshold=0.0)
        for n, each in enumerate(theirs):
            order = each["scores"].argsort(descending=True)
            torch.testing.assert_close(question.confidences[n], each["scores"][order])
            torch.testing.assert_close(question.boxes[n], each["boxes"][order])
            assert torch.equal(question.labels[n], each["labels"][order])
        torch.testing.assert_close(question(output, ROWS), question.confidences, rtol=0, atol=0)

    @pytest.mark.parametrize("what", ["score", "top"])
    def test_gradients_are_finite_differences(self, detr: nn.Module, what: Any) -> None:
        with torch.no_grad():
            question = Box([0, 2], what=what).bind(detr(self.GIVEN))
        given = self.GIVEN[[1, 0]].clone().requires_grad_()
        scores = question(detr(given), torch.tensor([1, 0]))
        (gradient,) = torch.autograd.grad(scores.sum(), given)
        step = 1e-6 * torch.randn_like(given)
        with torch.no_grad():
            above, below = (question(detr(given + sign * step), torch.tensor([1, 0])).sum() for sign in (1, -1))
        assert float((gradient * step).sum()) == pytest.approx(float(above - below) / 2, rel=1e-5)

    def test_heatmaps(self, detr: nn.Module) -> None:
        layer = "model.backbone.model.encoder.stages.1"
        heatmap = tp.explain(detr, self.GIVEN, layer=layer, target=Box([0, 1]))
        with torch.no_grad():
            expected = Box([0, 1]).bind(detr(self.GIVEN)).confidences
        torch.testing.assert_close(heatmap.scores, expected)
        assert heatmap.values.flatten(2).any(2).all()

    @pytest.mark.parametrize(
        ("family", "name", "processor"),
        [
            ("yolos", "Yolos", "yolos"),
            ("table_transformer", "TableTransformer", "detr"),
            ("conditional_detr", "ConditionalDetr", "conditional_detr"),
            ("deformable_detr", "DeformableDetr", "deformable_detr"),
            ("rt_detr", "RTDetr", "rt_detr"),
            ("d_fine", "DFine", "rt_detr"),
        ],
    )
    def test_the_output_says_how_scores_are_made(self, family: str, name: str, processor: str) -> None:
        """The surest detection is the one that the family's own processor puts first."""
        pytest.importorskip("transformers")
        made = getattr(importlib.import_module(f"transformers.models.{family}"), f"{name}ForObjectDetection")
        kind = getattr(importlib.import_module(made.__module__), f"{name}ObjectDetectionOutput")
        output = kind(logits=torch.randn(2, 9, 4), pred_boxes=torch.rand(2, 9, 4))
        module = importlib.import_module(f"transformers.models.{processor}.image_processing_{processor}")
        (process,) = [
            getattr(module, each)
            for each in vars(module)
            if each.endswith("ImageProcessor") and getattr(module, each).__module__ == module.__name__
        ]
        theirs = process().post_process_object_detection(output, threshold=0.0, target_sizes=torch.ones(2, 2))
        question = Box().bind(output)
        for n, each in enumerate(theirs):
            first = int(each["scores"].argmax())
            assert float(question.confidences[n, 0]) == pytest.approx(float(each["scores"][first]))
            assert int(question.labels[n, 0]) == int(each["labels"][first])
            torch.testing.assert_close(question.boxes[n, 0], each["boxes"][first])


class TestSuggestedLayer:
    """Each box hangs on one level of a pyramid; a layer that was right for another box would give a map of zeros."""

    def test_the_layer_is_of_the_box(self) -> None:
        torch.manual_seed(0)
        models = pytest.importorskip("torchvision.models.detection")
        model = models.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=160, max_size=200
        ).eval()
        picture = torch.rand(3, 150, 110)
        with torch.no_grad():
            count = len(model([picture])[0]["boxes"])
        for of in (0, count // 2, count - 1, [0, count // 2, count - 1]):
            heatmap = tp.explain(model, [picture], target=Box(of))[0]
            assert (heatmap.values.flatten(2).abs().amax(2) > 0).all()
            assert heatmap.provenance.layer.startswith("backbone.")
