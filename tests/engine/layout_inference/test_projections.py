"""The suggested layer does not depend on how a projection is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks.spellings import SPELLINGS, Wrapped, respelled
from networks.transformers import inputs, made
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.projections import is_projection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:timm"),
    pytest.mark.usefixtures("one_thread"),
]

QUERIES = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj")
HIDDEN = (*QUERIES, "proj", "fc1", "fc2", "dense")


def suggested(model: nn.Module, x: Tensor) -> str:
    layer = tp.layers(model, x).suggested
    assert layer is not None
    return layer.layer


class TestSpellings:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("names", [QUERIES, HIDDEN], ids=["queries", "all"])
    @pytest.mark.parametrize("name", ["vit", "vit, mean", "hf vit"])
    def test_the_same_layer_and_map(self, name: str, names: tuple[str, ...], spelling: str) -> None:
        model, x = made(name), inputs(name)
        if spelling == "a convolution of one size" and (name == "vit, mean" or names is HIDDEN):
            pytest.skip("another number of tokens")
        other = respelled(model, names, SPELLINGS[spelling])
        assert suggested(other, x) == suggested(model, x)
        for method in ("gradcam", "eigencam"):
            expected = tp.explain(model, x, method=method, target=1).values
            torch.testing.assert_close(tp.explain(other, x, method=method, target=1).values, expected)

    @pytest.mark.parametrize("name", ["vit", "hf vit"])
    def test_projections_that_are_not_linear(self, name: str) -> None:
        """Two layers with an activation function, and an adapter of such beside the linear layer."""

        class Adapted(nn.Module):
            def __init__(self, base: nn.Linear) -> None:
                super().__init__()
                self.base, self.down, self.up = base, nn.Linear(base.in_features, 3), nn.Linear(3, base.out_features)

            def forward(self, x: Tensor) -> Tensor:
                return self.base(x) + self.up(F.relu(self.down(x)))

        def two_layers(base: nn.Linear) -> nn.Module:
            return nn.Sequential(nn.Linear(base.in_features, 7), nn.GELU(), nn.Linear(7, base.out_features))

        model, x = made(name), inputs(name)
        for spelling in (Adapted, two_layers):
            assert suggested(respelled(model, QUERIES, spelling), x) == suggested(model, x)

    @pytest.mark.parametrize("wrap", [False, True])
    def test_logits_of_each_position(self, wrap: bool) -> None:
        """A linear head before the mean over the positions is no feature map, whatever module computes it."""

        class Dense(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patch, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
                self.head = Wrapped(nn.Linear(6, 5)) if wrap else nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.norm(self.patch(x).flatten(2).mT)).mean(1)

        assert suggested(Dense().eval(), torch.randn(1, 3, 16, 16)) == "norm"


class TestExperiment:
    @staticmethod
    def found(
        module: nn.Module, shape: tuple[int, ...] = (1, 9, 6), *, kind: str = "tokens", inside: bool = True
    ) -> bool:
        x = torch.randn(shape)
        module.eval()
        meta_output = module(x).to("meta")
        layout = Layout(kind, (3, 3))  # type: ignore[arg-type]
        return is_projection(
            module, ((x.to("meta"),), {}), meta_output, layout, torch.device("cpu"), inside_grid_layer=inside
        )

    @pytest.mark.parametrize(
        "module",
        [nn.Linear(6, 6), nn.Linear(6, 4, bias=False), nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)), nn.Bilinear],
        ids=str,
    )
    @pytest.mark.parametrize("inside", [False, True])
    def test_linear(self, module: nn.Module, inside: bool) -> None:
        if module is nn.Bilinear:  # frozen and in another dtype
            module = Wrapped(nn.Linear(6, 6).double().requires_grad_(False)).float()
        assert self.found(module, inside=inside)

    @pytest.mark.parametrize(
        "module",
        [
            nn.LayerNorm(6),
            nn.RMSNorm(6),
            nn.GELU(),
            nn.GLU(),
            nn.Identity(),
            nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
            nn.GRU,
        ],
        ids=str,
    )
    def test_what_is_none(self, module: nn.Module) -> None:
        if module is nn.GRU:

            class Recurrent(nn.GRU):
                def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
                    return super().forward(x)[0]

            module = Recurrent(6, 6, batch_first=True)
        assert not self.found(module)

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 1.0])
    def test_a_block_whose_branch_adds_little(self, scale: float) -> None:
        """Layer scale starts near zero: such a block is the identity, and not a matrix."""

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.MultiheadAttention(6, 2, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                return x + scale * self.mix(x, x, x)[0]

        assert not self.found(Block())

    def test_not_linear(self) -> None:
        """Two layers count inside another layer with a grid; elsewhere they may be a block of the network."""
        module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        assert self.found(module)
        assert not self.found(module, inside=False)

    def test_the_model_is_left_as_found(self) -> None:
        model, x = respelled(made("vit"), QUERIES, SPELLINGS["LoRA"]), inputs("vit")
        model.train()
        before, state = torch.get_rng_state(), {name: each.clone() for name, each in model.state_dict().items()}
        suggested(model, x)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())

    def test_no_more_passes(self) -> None:
        """The experiment calls layers, with a few positions each; the model runs three times in all, as without it."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        passes: list[int] = []
        model.register_forward_hook(lambda *_: passes.append(1))
        tp.explain(model, torch.randn(1, 3, 8, 8))
        assert len(passes) == 3
