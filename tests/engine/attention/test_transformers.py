"""Attention methods on transformers of timm, torchvision and transformers, against the replicas."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.transformers import asked, hooked, inputs, made
from replicas import attention as replicas
from torchpeek.errors import GradUnavailable, MethodNotApplicable, NoSpatialLayer

# Other packages' own, as they are imported and made; what is done with the networks is under errors again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]

ATTENTION = ("rollout", "legrad", "transformer-attribution")


# ---- Attention through the front door ----


def by_hand(name: str, model: nn.Module, x: Tensor, labels: list[int]) -> dict[str, Tensor]:
    """The maps (N, K, positions) by the replicas, of attention weights that a copy makes step by step."""
    model = copy.deepcopy(model)
    weights: list[Tensor] = []
    after: list[Tensor] = []
    blocks = {
        "timm": lambda: list(model.blocks),
        "torchvision": lambda: list(model.encoder.layers),
        "hf": lambda: list(model.base_model.layers),
    }[name]()
    for block in blocks:
        attention = {"timm": "attn", "torchvision": "self_attention", "hf": "attention"}[name]
        module = getattr(block, attention)
        if name == "hf":
            module = getattr(module, "attention", module)
        module.forward = step_by_step(name, module, weights)
        block.register_forward_hook(
            lambda _, args, output: after.append(output[0] if isinstance(output, tuple) else output)
        )
    last: list[Tensor] = []
    output = model(x)
    scores = (output if isinstance(output, Tensor) else output.logits)[:, labels]
    made_weights, tokens = list(weights), list(after)
    layerwise = []
    for z in tokens:
        last[:] = [z]

        def instead(_: nn.Module, args: Any, output: Any) -> Any:
            return (last[0], *output[1:]) if isinstance(output, tuple) else last[0]

        with hooked(blocks[-1], instead):
            output = model(x)
        layerwise.append((output if isinstance(output, Tensor) else output.logits)[:, labels])
    made = {method: torch.zeros(len(x), len(labels), 0) for method in ATTENTION}
    prefix = tokens[0].shape[1] - 16
    (reach,) = torch.autograd.grad(scores.sum(), tokens[-1], retain_graph=True)
    reached = (reach[0] != 0).any(1).nonzero().flatten().tolist()
    read = list(range(prefix, prefix + 16)) if max(reached) >= prefix else reached
    rows: dict[str, list[Any]] = {method: [] for method in ATTENTION}
    for n in range(len(x)):
        A = [each[n].detach().numpy() for each in made_weights]
        for k in range(len(labels)):
            g = torch.autograd.grad(scores[n, k], made_weights, retain_graph=True)
            of_layers = [
                torch.autograd.grad(score[n, k], weight, retain_graph=True)[0]
                for score, weight in zip(layerwise, made_weights, strict=True)
            ]
            g, of_layers = ([each[n].numpy() for each in group] for group in (g, of_layers))
            rows["rollout"].append(replicas.rollout(A, prefix, read))
            rows["transformer-attribution"].append(replicas.transformer_attribution(A, g, prefix, read))
            rows["legrad"].append(replicas.legrad(of_layers, prefix))
    for method in ATTENTION:
        made[method] = torch.tensor(np.array(rows[method])).unflatten(0, (len(x), len(labels)))
    return made


def step_by_step(name: str, module: nn.Module, weights: list[Tensor]) -> Callable[..., Any]:
    """Attention from its parameters: softmax(q k^T / sqrt(d)) v, the weights kept in the graph."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
        weights.append(exponentials / exponentials.sum(-1, keepdim=True))
        return (weights[-1] @ v).transpose(1, 2).flatten(2)

    def of_timm(z: Tensor, *args: Any, **options: Any) -> Tensor:
        return module.proj(attend(*module.qkv(z).chunk(3, dim=-1), module.num_heads))

    def of_torchvision(z: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        parts = (z @ module.in_proj_weight.mT + module.in_proj_bias).chunk(3, dim=-1)
        return module.out_proj(attend(*parts, module.num_heads)), None

    def of_hf(z: Tensor, *args: Any, **options: Any) -> Any:
        parts = [getattr(module, each)(z) for each in ("q_proj", "k_proj", "v_proj")]
        return module.o_proj(attend(*parts, module.config.num_attention_heads)), None

    return {"timm": of_timm, "torchvision": of_torchvision, "hf": of_hf}[name]


SOURCES = {
    "vit": "timm",
    "vit, mean": "timm",
    "vit, registers": "timm",
    "torchvision vit": "torchvision",
    "hf vit": "hf",
}


def test_tokens_in_the_order_of_merging_are_refused() -> None:
    """Hiera's are not in the picture's order before its last stage: a changed corner shows elsewhere."""
    model, x = made("hiera"), inputs("hiera")
    assert tp.explain(model, x).provenance.layer == "blocks.3"
    with pytest.raises(NoSpatialLayer, match="in the order in which they are merged"):
        tp.explain(model, x, layer="blocks.0")
    assert "blocks.0" not in tp.explain(model, x, fuse="max").provenance.layer


def test_two_tokens_beside_the_grid_are_read_alike() -> None:
    """A distilled DeiT's score is the mean of two heads, of the class and of the distillation token."""
    trace = tp.trace(made("deit"), inputs("deit"), attention=True)
    assert trace.readout_weights[0, 0, :4].tolist() == [0.5, 0.5, 0.0, 0.0]


class TestAttention:
    @pytest.mark.parametrize("name", SOURCES)
    def test_against_the_replicas(self, name: str) -> None:
        model, x = made(name), inputs(name)
        if name == "hf vit" and not hasattr(model.base_model, "layers"):
            pytest.skip("this release of transformers has other names")
        expected = by_hand(SOURCES[name], model, x, [1, 3])
        found = tp.compare(model, x, methods=ATTENTION, target=tp.targets.Classes([1, 3]))
        for method, heatmap in found.items():
            values = heatmap.values.flatten(2)
            assert values.shape == (2, 2, 16)
            scale = float(expected[method].abs().max())
            torch.testing.assert_close(values, expected[method], rtol=1e-7, atol=1e-9 * scale)
            assert heatmap.provenance.layer == "every layer"

    @pytest.mark.parametrize("method", ATTENTION)
    @pytest.mark.parametrize("name", ["deit", "eva", "beit", "cait", "hf deit", "hf registers", "hf clip", "hf yolos"])
    def test_a_batch_is_as_one_by_one_and_many_classes_as_each(self, name: str, method: str) -> None:
        model, x, target = made(name), inputs(name), asked(name)
        together = tp.explain(model, x, method=method, target=target).values
        assert together.shape == (2, 2, 4, 4)
        assert bool(torch.isfinite(together).all())
        for n in range(2):
            alone = tp.explain(model, x[n : n + 1], method=method, target=target).values
            torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-8, atol=1e-12)
        first = {
            "hf clip": tp.targets.Output([1], part="image_embeds"),
            "hf yolos": tp.targets.Output([9], part="logits"),
        }.get(name, tp.targets.Classes([3]))
        alone = tp.explain(model, x, method=method, target=first).values
        torch.testing.assert_close(together[:, 1:], alone, rtol=1e-8, atol=1e-12)

    def test_of_volumes(self) -> None:
        found = tp.compare(made("hf videomae"), inputs("hf videomae"), methods=ATTENTION, target=[[0, 1], [2, 3]])
        assert {heatmap.values.shape for heatmap in found.values()} == {(2, 2, 2, 4, 4)}

    @pytest.mark.parametrize("method", ATTENTION)
    def test_smoothed(self, method: str) -> None:
        model, x = made("vit"), inputs("vit")
        smooth = tp.Smoothing(factors=(1.0, 1.2))
        found = tp.explain(model, x, method=method, target=2, smooth=smooth).values
        versions = [x, x * 1.2, x.flip(-1), x.flip(-1) * 1.2]
        plain = [tp.explain(model, each, method=method, target=2).values for each in versions]
        expected = (plain[0] + plain[1] + plain[2].flip(-1) + plain[3].flip(-1)) / 4
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)

    def test_without_gradients(self) -> None:
        """What the class token reads is not known then: an error, or the same map, but no other one."""
        model, x = made("vit"), inputs("vit")
        expected = tp.explain(model, x, method="rollout", target=1).values
        trace = tp.trace(model, x, target=1, attention=True, gradients=False)
        with contextlib.suppress(GradUnavailable):
            torch.testing.assert_close(tp.explain(trace, method="rollout").values, expected)

    def test_compared_with_methods_of_one_layer(self) -> None:
        model, x = made("vit"), inputs("vit")
        methods = ["gradcam", "rollout", "eigencam", "legrad", "transformer-attribution", "recipro-cam"]
        found = tp.compare(model, x, methods=methods, target=[[0, 2], [1, 1]])
        assert list(found) == methods
        for method, heatmap in found.items():
            alone = tp.explain(model, x, method=method, target=[[0, 2], [1, 1]])
            torch.testing.assert_close(heatmap.values, alone.values, rtol=1e-9, atol=1e-12)
            assert heatmap.provenance.layer == ("every layer" if method in ATTENTION else "blocks.1.norm1")
        assert torch.equal(found["rollout"].values[:, 0], found["rollout"].values[:, 1])

    def test_a_trace_that_kept_attention(self) -> None:
        model, x = made("torchvision vit"), inputs("torchvision vit")
        trace = tp.trace(model, x, target=[[0, 2], [1, 1]], attention=True)
        for method in (*ATTENTION, "gradcam"):
            alone = tp.explain(model, x, method=method, target=[[0, 2], [1, 1]]).values
            torch.testing.assert_close(tp.explain(trace, method=method).values, alone, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        ("name", "why"),
        [("swin", "inside windows"), ("hf timesformer", "inside windows"), ("xcit", "between channels")],
    )
    @pytest.mark.parametrize("method", ATTENTION)
    def test_other_attention_is_refused(self, name: str, why: str, method: str) -> None:
        with pytest.raises(MethodNotApplicable, match=why):
            tp.explain(made(name), inputs(name), method=method, target=1)
