"""rollout, legrad and transformer-attribution: by hand and against the replicas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks.attention import close, parameters, picture, recorded, replica, trace_of, vit
from replicas import attention as replicas
from torchpeek.cam.attention import legrad, rollout, transformer_attribution
from torchpeek.engine.attention.gradients import attention_gradients, layerwise_attention_gradients
from torchpeek.errors import OptionError

pytestmark = pytest.mark.usefixtures("one_thread")


class TestMethods:
    def test_rollout_of_two_layers_by_hand(self) -> None:
        """A class token and two positions; the second layer looks at position 1 only, the first moves 2 to 1."""
        first = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0]])
        second = torch.tensor([[0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]])
        # Halves with the identity: row 0 of the second is (1/2, 1/2, 0), rows of the first (1, 0, 0), (0, 1/2, 1/2).
        trace = trace_of([first[None, None], second[None, None]], grid=(2,))
        close(rollout(trace), [[[0.25, 0.25]]], 1e-7)
        swapped = trace_of([second[None, None], first[None, None]], grid=(2,))
        close(rollout(swapped), [[[0.5, 0.0]]], 1e-7)

    @pytest.mark.parametrize("reads_prefix", [True, False])
    @pytest.mark.parametrize("heads", ["mean", "min", "max"])
    def test_rollout(self, heads, reads_prefix) -> None:
        weights = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64).softmax(-1)
        ours = rollout(trace_of(weights, prefix=2, reads_prefix=reads_prefix), heads=heads)
        assert ours.shape == (2, 1, 2, 3)
        for n in range(2):
            theirs = replicas.rollout(
                [each[n].numpy() for each in weights],
                2,
                [0] if reads_prefix else range(2, 8),
                {"mean": np.mean, "min": min, "max": max}[heads],
            )
            close(ours[n, 0].flatten(), theirs)

    def test_each_sample_as_if_alone(self) -> None:
        """A known implementation drops the weakest attention of the batch's first sample for all of them."""
        weights = torch.randn(3, 4, 2, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(3, 4, 2, 2, 7, 7, dtype=torch.float64)
        for method in (rollout, transformer_attribution, legrad):
            together = method(trace_of(weights, gradients, gradients))
            alone = method(trace_of(weights[:, 3:], gradients[:, 3:], gradients[:, 3:]))
            close(together[3], alone[0], 1e-15)

    def test_rollout_is_a_distribution(self) -> None:
        weights = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64).softmax(-1)
        close(rollout(trace_of(weights, prefix=0, reads_prefix=False)).sum((2, 3)), np.ones((2, 1)), 1e-12)

    @pytest.mark.parametrize("reads_prefix", [True, False])
    def test_transformer_attribution(self, reads_prefix) -> None:
        weights = torch.randn(3, 2, 4, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(3, 2, 5, 4, 7, 7, dtype=torch.float64)
        ours = transformer_attribution(trace_of(weights, gradients, reads_prefix=reads_prefix))
        assert ours.shape == (2, 5, 2, 3)
        for n, k in np.ndindex(2, 5):
            theirs = replicas.transformer_attribution(
                [each[n].numpy() for each in weights],
                [each[n, k].numpy() for each in gradients],
                1,
                [0] if reads_prefix else range(1, 7),
            )
            close(ours[n, k].flatten(), theirs)

    def test_transformer_attribution_of_one_layer_grows_with_the_score(self) -> None:
        weights = torch.randn(1, 2, 4, 7, 7, dtype=torch.float64).softmax(-1)
        gradients = torch.randn(1, 2, 1, 4, 7, 7, dtype=torch.float64)
        once, thrice = (transformer_attribution(trace_of(weights, gradients * factor)) for factor in (1, 3))
        close(thrice, 3 * once)

    def test_legrad(self) -> None:
        gradients = torch.randn(3, 2, 5, 4, 8, 8, dtype=torch.float64)
        ours = legrad(trace_of([], (), gradients, suffix=1))
        assert ours.shape == (2, 5, 2, 3)
        for n, k in np.ndindex(2, 5):
            close(ours[n, k].flatten(), replicas.legrad([each[n, k].numpy() for each in gradients], 1)[:6])

    def test_from_the_model_to_the_map(self) -> None:
        """All three of one pass, against the replica with finite differences all the way."""
        model, x = vit(), picture(1)
        output, found = recorded(model, x)
        trace = trace_of(
            [each.weights for each in found],
            attention_gradients(output, found),
            layerwise_attention_gradients(model.tail, found),
        )
        attentions = replica(model, x[0])[0]
        of_scores = [
            replicas.slopes(lambda A, layer=layer: replica(model, x[0], {layer: A})[2], A)
            for layer, A in enumerate(attentions)
        ]
        of_layers = [
            replicas.slopes(
                lambda A, layer=layer: replicas.head(parameters(model), replica(model, x[0], {layer: A})[1][layer]), A
            )
            for layer, A in enumerate(attentions)
        ]
        close(rollout(trace)[0, 0].flatten(), replicas.rollout(attentions, 1, [0]))
        attributed, summed = transformer_attribution(trace), legrad(trace)
        for k in range(3):
            theirs = replicas.transformer_attribution(attentions, [each[k] for each in of_scores], 1, [0])
            close(attributed[0, k].flatten(), theirs, 1e-7)
            close(summed[0, k].flatten(), replicas.legrad([each[k] for each in of_layers], 1), 1e-7)

    def test_heads_that_there_are_not(self) -> None:
        with pytest.raises(OptionError, match="'mean', 'min', 'max'"):
            rollout(trace_of(torch.ones(1, 1, 1, 7, 7) / 7), heads="median")
