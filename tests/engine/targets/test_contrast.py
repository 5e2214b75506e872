"""Contrast: a class less the classes that it is told apart from."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.errors import TargetError


class TestContrast:
    LOGITS = torch.tensor([[1.0, 5.0, 4.0, -2.0, 4.5], [0.0, 0.1, 3.0, 2.5, -9.0]])

    def test_by_hand(self) -> None:
        question = tp.targets.Contrast(against=2, strength=0.5).bind(self.LOGITS)
        assert question.labels.tolist() == [[1], [2]]
        assert question.others.tolist() == [[[4, 2]], [[3, 1]]]
        scores = question(self.LOGITS, torch.arange(2))
        torch.testing.assert_close(scores, torch.tensor([[5.0 - 0.5 * 4.25], [3.0 - 0.5 * 1.3]]))
        assert question(self.LOGITS[1:], torch.tensor([1])).tolist() == [scores[1].tolist()]

    def test_against_classes_by_index_and_name(self, net: SplitNet) -> None:
        loaded = tp.LoadedModel(net, tp.Preprocess(None, None), ["ant", "bee", "cat", "dog"])
        by_name = tp.explain(loaded, X, layer="prefix", target=tp.targets.Contrast("cat", ["ant", "dog"], 1.0))
        by_index = tp.explain(loaded, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 1.0))
        assert torch.equal(by_name.values, by_index.values)
        assert by_name.provenance.score == "logit less 1 times the mean logit of 2 other classes"

    @pytest.mark.parametrize("classes", [2, 3, 4, 5])
    def test_with_fewer_than_four_classes_all_others(self, classes: int) -> None:
        logits = self.LOGITS[:1, :classes].double().requires_grad_()
        question = tp.targets.Contrast(0).bind(logits)
        assert question.others.shape == (1, 1, min(3, classes - 1))
        score = question(logits, torch.arange(1))
        others = logits[0, question.others[0, 0]]
        torch.testing.assert_close(score[0, 0], logits[0, 0] - 0.6 * others.mean())
        (gradient,) = torch.autograd.grad(score.sum(), logits)
        expected = torch.zeros(1, classes, dtype=torch.float64)
        expected[0, question.others[0, 0]] = -0.6 / min(3, classes - 1)
        expected[0, 0] = 1.0
        torch.testing.assert_close(gradient, expected)

    def test_of_one_class(self) -> None:
        with pytest.raises(TargetError, match="the model has 1 classes; there are 0 others"):
            tp.targets.Contrast(0).bind(torch.zeros(1, 1))

    def test_gradcam_is_linear_in_it(self, net: SplitNet) -> None:
        """Grad-CAM of a difference is the difference of the Grad-CAMs, before the ReLU."""
        contrast = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 0.6)).values
        own, one, other = (tp.explain(net, X, layer="prefix", target=each).values for each in (2, 0, 3))
        torch.testing.assert_close(contrast, own - 0.6 * (one + other) / 2)

    def test_without_strength_it_is_the_plain_class(self, net: SplitNet) -> None:
        for method in ("gradcam++", "scorecam", "ablationcam"):
            contrast = tp.explain(net, X, method=method, layer="prefix", target=tp.targets.Contrast(2, strength=0.0))
            plain = tp.explain(net, X, method=method, layer="prefix", target=2)
            torch.testing.assert_close(contrast.values, plain.values)

    def test_cam_is_exact_for_it_too(self) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="cam", layer="act", target=tp.targets.Contrast(2, [0, 3], 0.5))
        bias = model.head.bias.detach()
        mean = heatmap.values.mean((2, 3)) + bias[2] - 0.5 * (bias[0] + bias[3]) / 2
        torch.testing.assert_close(mean, heatmap.scores)

    def test_of_inputs_of_different_sizes(self) -> None:
        model = PooledNet().double().eval()
        for target in (tp.targets.Contrast, tp.targets.ClassProbability, tp.targets.ClassLogOdds):
            asked = target(torch.tensor([1, 2]))
            one, two = tp.explain(model, [X[:1], X[1:, :, :5]], layer="act", target=asked)
            torch.testing.assert_close(one.values, tp.explain(model, X[:1], layer="act", target=target(1)).values)
            torch.testing.assert_close(
                two.values, tp.explain(model, X[1:, :, :5], layer="act", target=target(2)).values
            )

    def test_several_classes_and_indexing(self, net: SplitNet) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(tp.targets.TopClasses(2), 1))
        assert heatmap.question.others.shape == (2, 2, 1)
        assert heatmap[1, 0].question.others.tolist() == [[heatmap.question.others[1, 0].tolist()]]

    def test_saved_and_loaded(self, net: SplitNet, tmp_path) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 0.25))
        tp.save(heatmap, tmp_path / "contrast.safetensors")
        again = tp.load(tmp_path / "contrast.safetensors")
        assert torch.equal(again.values, heatmap.values)
        assert torch.equal(again.question.others, heatmap.question.others)
        assert again.question.strength == 0.25
        assert again.question.kind == heatmap.question.kind

    def test_bad_requests(self, net: SplitNet) -> None:
        for given in ({"against": 0}, {"against": []}, {"against": True}, {"against": "cat"}, {"strength": -1}):
            with pytest.raises(TargetError):
                tp.targets.Contrast(**given)
        with pytest.raises(TargetError, match="the model has 4 classes; there are 3 others"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(against=4))
        with pytest.raises(TargetError, match="a class is not set against itself"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [2, 3]))
        with pytest.raises(TargetError, match="names classes"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(tp.targets.ClassProbability()))
