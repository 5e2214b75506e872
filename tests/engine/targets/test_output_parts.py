"""Outputs with several parts: which one is asked about, how it is named, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.outputs import MASK, Returns, X, embedding, segmentation
from torchpeek.errors import Notice, TargetError


class TestOutputParts:
    """Of a container the part that is meant is found where only one makes sense, and the provenance names it."""

    @pytest.mark.parametrize(
        ("make", "target", "score"),
        [
            (lambda a: {"logits": embedding(a)}, 2, "logit, from 'logits'"),
            (lambda a: (embedding(a), 3), 2, "logit, from '0'"),
            (embedding, 2, "logit"),
            (lambda a: {"logits": embedding(a)}, tp.targets.ClassProbability(2), "probability, from 'logits'"),
            (
                lambda a: {"logits": embedding(a)},
                tp.targets.Contrast(2),
                "logit less 0.6 times the mean logit of 3 other classes, from 'logits'",
            ),
            (lambda a: {"logits": embedding(a), "x": a}, tp.targets.Output(1), "output entry, from 'logits'"),
            (
                lambda a: {"aux": a, "out": torch.tanh(a)},
                tp.targets.Pixels(),
                "mean logit of the masked pixels, from 'out'",
            ),
            (
                lambda a: {"last_hidden_state": a, "pooler_output": embedding(a)},
                tp.targets.Similarity(torch.ones(4)),
                "cosine similarity, from 'pooler_output'",
            ),
            (
                lambda a: SimpleNamespace(image_embeds=embedding(a), text_embeds=a[0, 0]),
                tp.targets.Similarity(torch.ones(4)),
                "cosine similarity, from 'image_embeds'",
            ),
        ],
    )
    def test_is_named(self, make: Callable[[Tensor], Any], target: Any, score: str, tmp_path: Any) -> None:
        for method in ("gradcam", "ablationcam"):
            heatmap = tp.explain(Returns(make).double().eval(), X, method=method, layer="conv", target=target)
            assert heatmap.provenance.score == score
        assert heatmap.values.any()

    def test_out_is_not_aux(self) -> None:
        model = Returns(lambda a: {"aux": -a, "out": a}).double().eval()
        maps = [
            tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK, part=part)) for part in ("", "out")
        ]
        assert torch.equal(maps[0].values, maps[1].values)
        aux = tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK, part="aux"))
        torch.testing.assert_close(aux.values, -maps[0].values)

    @pytest.mark.parametrize(
        ("make", "target", "message"),
        [
            (
                lambda a: {"a": a, "b": a},
                tp.targets.Pixels(1),
                r"the target does not name one; .* 'a' \(2, 4, 8, 6\)",
            ),
            (embedding, tp.targets.Output(0, part="1"), "returns one tensor, and no part '1'; leave part= out"),
            (lambda a: None, tp.targets.Output(0), "returned None of no floating-point tensor"),
            (lambda a: a.sum(), tp.targets.Output(0), "a Tensor of one number for all the samples"),
            (lambda a: SimpleNamespace(x="y"), tp.targets.Computed(lambda o, rows: rows), "how many there are cannot"),
            (lambda a: [{"boxes": a.flatten(2)[0, :, :4]}] * 2, None, "Box for a detector"),
            (lambda a: {"pred_boxes": a.flatten(2)[0]}, None, "Box for a detector"),
        ],
    )
    def test_bad_requests(self, make: Callable[[Tensor], Any], target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            tp.explain(Returns(make).double(), X, layer="conv", target=target)

    def test_attributes_of_an_object_of_the_models_own(self) -> None:
        got = tp.explain(
            Returns(lambda a: SimpleNamespace(mine=embedding(a))).double().eval(),
            X,
            layer="conv",
            target=tp.targets.Computed(lambda output, rows: output.mine[:, 2]),
        )
        torch.manual_seed(0)
        model = Returns(lambda a: SimpleNamespace(logits=embedding(a))).double().eval()
        assert got.values.any()
        assert tp.explain(model, X, layer="conv", target=2).provenance.score == "logit, from 'logits'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (tp.targets.Pixels(0, [[1]]), r"mask has shape \(1, 1\)"),  # type: ignore[arg-type]
        (tp.targets.Pixels(0, "mask"), "mask is a str"),  # type: ignore[arg-type]
        (tp.targets.Pixels(0, torch.full((8, 6), 0.5)), "other values than 0 and 1"),
        (tp.targets.Pixels(0, torch.full((8, 6), torch.nan)), "other values than 0 and 1"),
        (tp.targets.Pixels(0, torch.ones(2, 1, 8, 6)), r"mask has shape \(2, 1, 8, 6\)"),
        (tp.targets.Output("a", part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Output(1.5, part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Output(None, part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Similarity(torch.ones(0, 192)), r"got shape \(0, 192\)"),
        (tp.targets.Similarity(torch.zeros(192)), "an embedding that is zero, which has no direction"),
        (tp.targets.Similarity(torch.full((192,), torch.inf)), "has NaN or infinity"),
    ],
)
def test_odd_requests(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tp.explain(Returns(segmentation).double(), X, layer="conv", target=target)


def test_masks_and_entries_from_numpy() -> None:
    model = Returns(segmentation).double().eval()
    for given in (MASK.numpy(), MASK.numpy().astype("uint8"), MASK.tolist()):
        got = tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, given))
        assert torch.equal(got.values, tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK)).values)
    for entries in (torch.tensor(5), torch.tensor([5]).numpy(), range(5, 6)):
        question = tp.trace(model, X, layer="conv", target=tp.targets.Output(entries)).question  # type: ignore[arg-type]
        assert question.labels.tolist() == [[5], [5]]


class TestPositionsAndSamples:
    """What is asked has to move with the samples of a list, and must not with a mirrored picture."""

    def test_a_function_is_told_the_samples_of_the_whole_list(self) -> None:
        model, x = SplitNet().double().eval(), torch.randn(4, 3, 8, 6, dtype=torch.float64)
        wanted = torch.tensor([0, 1, 2, 3])
        target = tp.targets.Computed(lambda output, rows: output[torch.arange(len(rows)), wanted[rows]])
        together = tp.explain(model, x, layer="prefix", target=target).values
        apart = tp.explain(model, [x[:1], x[1:2], x[2:]], layer="prefix", target=target)
        torch.testing.assert_close(torch.cat([each.values for each in apart]), together)
        alone = tp.targets.Computed(lambda output, rows: output[:, 3])
        torch.testing.assert_close(together[3:], tp.explain(model, x[3:], layer="prefix", target=alone).values)

    def test_in_runs_of_their_own(self) -> None:
        model = PooledNet().double().eval()
        inputs = [torch.randn(1, 3, size, size, dtype=torch.float64) for size in (6, 8, 6)]
        wanted = torch.tensor([4, 0, 2])
        target = tp.targets.Computed(lambda output, rows: output[torch.arange(len(rows)), wanted[rows]])
        for n, heatmap in enumerate(tp.explain(model, inputs, layer="act", target=target)):
            expected = tp.explain(model, inputs[n], layer="act", target=int(wanted[n])).values
            torch.testing.assert_close(heatmap.values, expected)

    def test_masks_of_each_sample_in_a_list(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
        x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
        masks = torch.rand(3, 6, 6) > 0.5
        together = tp.explain(model, x, layer="1", target=tp.targets.Pixels(1, masks)).values
        apart = tp.explain(model, [x[:2], x[2:]], layer="1", target=tp.targets.Pixels(1, masks))
        torch.testing.assert_close(torch.cat([each.values for each in apart]), together)

    def test_a_place_is_not_mirrored(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:, :2] = True
        x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        with pytest.warns(Notice, match="not mirrored: mean logit of the masked pixels is about a position"):
            found = tp.explain(model, x, layer="1", target=tp.targets.Pixels(0, mask), smooth=tp.Smoothing())
        assert found.provenance.steps == ("the mean over inputs times 0.9, 1, 1.1",)
        gradients = tp.trace(model, x, layer="1", target=tp.targets.Pixels(0, mask)).gradients
        assert (gradients[..., 3:] == 0).all()

    @pytest.mark.parametrize("part", ["pooler_output", "image_embeds"])
    def test_an_embedding_is_no_class(self, part: str) -> None:
        with pytest.raises(TargetError, match="Similarity for an embedding"):
            tp.targets.Predicted().bind({part: torch.randn(1, 7), "last_hidden_state": torch.randn(1, 5, 7)})
