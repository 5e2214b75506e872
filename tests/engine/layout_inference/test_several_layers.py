"""Several layers in one pass, each with a layout of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.layouts import Applied

pytestmark = pytest.mark.usefixtures("one_thread")


GRIDS = {
    "0": lambda a: a,
    "1": lambda a: a.permute(0, 3, 1, 2),
    "3": lambda a: a.mT.unflatten(2, (4, 6)),
    "4": lambda a: a.mT.unflatten(2, (4, 6)),
    "5": lambda a: a.unflatten(2, (4, 6)),
    "6": lambda a: a.permute(1, 2, 0).unflatten(2, (4, 6)),
}


class TestSeveralLayers:
    """Of different layouts, in one trace and in one map."""

    def network(self) -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(3, 6, 4, 4),
            Applied(lambda a: torch.tanh(a).permute(0, 2, 3, 1)),
            nn.LayerNorm(6),
            Applied(lambda a: torch.sin(a).flatten(1, 2)),
            nn.Linear(6, 6),
            Applied(lambda a: a.mT),
            Applied(lambda a: torch.tanh(a).permute(2, 0, 1)),
            Applied(lambda a: torch.tanh(a).mean(0)),
            nn.Linear(6, 4),
        )
        return model.double().eval()

    def test_in_one_pass(self) -> None:
        model, x = self.network(), torch.randn(2, 3, 16, 24).double()
        trace = tp.trace(model, x, layer=list(GRIDS), target=[[0, 2], [0, 2]])
        seen: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
            for name in GRIDS
        ]
        output = model(x)
        for handle in handles:
            handle.remove()
        for k, label in enumerate((0, 2)):
            found = torch.autograd.grad(output[:, label].sum(), list(seen.values()), retain_graph=True)
            for (name, turn), gradient in zip(GRIDS.items(), found, strict=True):
                torch.testing.assert_close(trace.gradients_at[name][:, k], turn(gradient), rtol=1e-10, atol=1e-14)
                torch.testing.assert_close(trace.at[name].activation, turn(seen[name]).detach())

    def test_fused(self) -> None:
        model, x = self.network(), torch.randn(2, 3, 16, 24).double()
        maps = [tp.explain(model, x, layer=name, target=1).positive().unit().values for name in GRIDS]
        for fuse, together in (("max", torch.stack(maps).amax(0)), ("mean", torch.stack(maps).mean(0))):
            found = tp.explain(model, x, layer=list(GRIDS), fuse=fuse, target=1)
            torch.testing.assert_close(found.values, together)
            assert "channels-last 4x6" in found.provenance.layout
            assert "sequence-first 4x6" in found.provenance.layout
