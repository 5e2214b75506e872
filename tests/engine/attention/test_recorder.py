"""Recorded attention weights and their gradients, against the replica and finite differences."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from networks.attention import HEADS, WAYS, WIDTH, Block, close, parameters, picture, recorded, replica, vit
from replicas import attention as replicas
from torchpeek.engine.attention.gradients import attention_gradients, layerwise_attention_gradients
from torchpeek.errors import GradUnavailable, MethodNotApplicable, NotConnected

pytestmark = pytest.mark.usefixtures("one_thread")


class TestWeights:
    @pytest.mark.parametrize("way", WAYS)
    def test_are_those_of_the_replica(self, way) -> None:
        model, x = vit(way), picture()
        output, found = recorded(model, x)
        for n in range(len(x)):
            attentions, _, scores = replica(model, x[n])
            close(output[n].detach(), scores)
            for ours, theirs in zip(found, attentions, strict=True):
                close(ours.weights[n], theirs)
        assert [each.block for each in found] == ["blocks.0", "blocks.1"]
        inner = "blocks.1.attn.soft" if way == "module" else "blocks.1.attn"
        assert found[1].layer == inner

    @pytest.mark.parametrize("way", WAYS)
    def test_gradients_are_those_of_the_fused_way(self, way) -> None:
        x = picture()
        output, found = recorded(vit(), x)
        other, others = recorded(vit(way), x)
        for one, two in zip(attention_gradients(output, found), attention_gradients(other, others), strict=True):
            assert one.shape == (2, 3, HEADS, 7, 7)
            close(one, two)

    def test_gradients_are_the_slopes_of_the_scores(self) -> None:
        model, x = vit(), picture()
        output, found = recorded(model, x)
        gradients = attention_gradients(output, found)
        for n in range(len(x)):
            attentions = replica(model, x[n])[0]
            for layer, A in enumerate(attentions):
                slopes = replicas.slopes(lambda A, n=n, layer=layer: replica(model, x[n], {layer: A})[2], A)
                close(gradients[layer][n], slopes, 1e-7)

    @pytest.mark.parametrize("returns", ["tensor", "tuple", "sequence", "in-place"])
    def test_layerwise_gradients_are_the_slopes_of_the_head_on_that_blocks_tokens(self, returns) -> None:
        model, x = vit(returns=returns), picture(1)
        _, found = recorded(model, x)
        gradients = list(layerwise_attention_gradients(model.tail, found))
        for layer, A in enumerate(replica(model, x[0])[0]):

            def score(A, layer=layer):
                return replicas.head(parameters(model), replica(model, x[0], {layer: A})[1][layer])

            close(gradients[layer][0], replicas.slopes(score, A), 1e-7)

    def test_many_classes_in_chunks_are_the_same(self, monkeypatch) -> None:
        model, x = vit(), picture()
        output, found = recorded(model, x)
        whole = attention_gradients(output, found)
        monkeypatch.setattr("torchpeek.engine.gradients._BYTES", 1)
        for one, two in zip(whole, attention_gradients(output, found), strict=True):
            close(one, two, 1e-12)

    def test_frozen_and_inside_no_grad_and_inference_mode(self) -> None:
        model, x = vit(), picture()
        expected = attention_gradients(*recorded(model, x))
        model.requires_grad_(False)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                output, found = recorded(model, x)
                made = attention_gradients(output, found)
            for one, two in zip(made, expected, strict=True):
                assert torch.equal(one, two)

    def test_graph_starts_at_the_first_attention(self) -> None:
        model, on = vit(), []
        model.blocks[0].norm1.register_forward_hook(lambda *_: on.append(torch.is_grad_enabled()))
        model.blocks[0].norm2.register_forward_hook(lambda *_: on.append(torch.is_grad_enabled()))
        _, found = recorded(model, picture())
        assert on == [False, True]
        assert isinstance(found[0].handle, torch.Tensor)
        assert found[0].handle.is_leaf

    def test_without_gradients(self) -> None:
        output, found = recorded(vit(), picture(), gradients=False)
        assert not output.requires_grad
        with pytest.raises(GradUnavailable, match="gradients=False"):
            attention_gradients(output, found)

    def test_a_score_that_does_not_depend_on_them(self) -> None:
        output, found = recorded(vit(), picture())
        with pytest.raises(NotConnected, match=r"'blocks\.0\.attn', 'blocks\.1\.attn'"):
            attention_gradients(output.detach(), found)
        with pytest.raises(NotConnected, match=r"'blocks\.0\.attn'"):
            list(layerwise_attention_gradients(lambda z: z.detach()[:, 0], found))

    def test_checkpointed(self) -> None:
        model = vit()

        def forward(z):
            for block in model.blocks._modules.values():
                z = torch.utils.checkpoint.checkpoint(block, z, use_reentrant=False)
            return z

        model.blocks.forward = forward
        output, found = recorded(model, picture())
        with pytest.raises(GradUnavailable, match="checkpoint"):
            attention_gradients(output, found)


class TestRefused:
    def test_scripted(self) -> None:
        class Eager(nn.Module):
            def forward(self, z: torch.Tensor) -> torch.Tensor:
                return (z @ z.transpose(1, 2)).softmax(-1) @ z

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which kind of warning depends on torch
            model = nn.Sequential(nn.Identity(), torch.jit.script(Eager()))
        with pytest.raises(MethodNotApplicable, match="scripted parts, which this model has"):
            recorded(model, torch.randn(2, 5, 8))

    def test_fewer_tokens_later(self) -> None:
        class Pool(nn.Module):
            def forward(self, z):
                return z[:, ::2]

        block = Block("fused")
        model = nn.Sequential(block, copy.deepcopy(block), Pool(), copy.deepcopy(block))
        with pytest.raises(MethodNotApplicable, match=r"among 6 tokens, but that in '3\.attn'"):
            recorded(model, torch.randn(2, 6, WIDTH))

    def test_several_branches(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fine, self.coarse = (nn.ModuleList(Block("fused") for _ in range(2)) for _ in range(2))

            def forward(self, z):
                few = z[:, ::2]
                for fine, coarse in zip(self.fine, self.coarse, strict=True):
                    z, few = fine(z), coarse(few)
                return z[:, 0] + few[:, 0]

        with pytest.raises(MethodNotApplicable, match="in several branches"):
            recorded(Branches(), torch.randn(2, 6, WIDTH))

    def test_earlier_stages_with_more_tokens_are_left_out(self) -> None:
        class Pool(nn.Module):
            def forward(self, z):
                return z[:, ::2]

        block = Block("fused")
        model = nn.Sequential(block, Pool(), copy.deepcopy(block), copy.deepcopy(block))
        _, found = recorded(model, torch.randn(2, 6, WIDTH))
        assert [each.block for each in found] == ["2", "3"]
