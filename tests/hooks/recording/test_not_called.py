"""Why a layer has no call, or several: the reason is the true one, and the next step can be taken."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import AmbiguousCall, InputError, LayerNotFound, NotFired

X = torch.ones(1, 3, 4, 4)


class TestNotFired:
    def reason(self, tape: tp.Recording, layer: str = "act") -> str:
        with pytest.raises(NotFired, match="was not called") as error:
            _ = tape[layer].output
        assert "takes a path" not in str(error.value)
        return str(error.value)

    def test_the_recording_was_never_opened(self) -> None:
        assert "was not opened" in self.reason(tp.record(PooledNet(), "act"))

    @pytest.mark.parametrize("passes", ["last", "all"])
    def test_the_model_was_never_called(self, passes) -> None:
        model = PooledNet()
        with tp.record(model, "act", passes=passes) as tape:
            copy.deepcopy(model)(X)
            assert "the model was not called in the block" in self.reason(tape)
        assert "the model was not called in the block" in self.reason(tape)

    def test_it_was_called_before_and_after_the_block(self) -> None:
        model = PooledNet()
        model(X)
        with tp.record(model, "act") as tape:
            pass
        model(X)
        assert "the model was not called in the block" in self.reason(tape)

    def test_a_part_was_called(self) -> None:
        model = PooledNet()
        with tp.record(model, "*") as tape:
            model.features(X)
        assert "the part or method of it that was called does not use this layer" in self.reason(tape, "head")
        assert tape["features"].output.shape == (1, 6, 4, 4)

    def test_a_part_was_called_after_new_pass(self) -> None:
        model = PooledNet()
        with tp.record(model, "*") as tape:
            model(X)
            tape.new_pass()
            model.features(X)
        assert "since tape.new_pass()" in self.reason(tape, "head")

    def test_an_exception_came_first(self) -> None:
        model = PooledNet()
        with tp.record(model, "head") as tape, contextlib.suppress(RuntimeError):
            model(torch.ones(1, 2, 4, 4))
        assert "an exception ended the pass" in self.reason(tape, "head")

    def test_forward_takes_another_path(self) -> None:
        class Skips(PooledNet):
            def forward(self, x):
                return self.features(x)

        model = Skips()
        with tp.record(model, "head") as tape:
            model(X)
        with pytest.raises(NotFired, match="forward takes a path without it"):
            _ = tape["head"].output


class TestAmbiguousCall:
    def test_a_part_was_called_twice(self) -> None:
        model = PooledNet()
        with tp.record(model, "features") as tape:
            for factor in (1, 2):
                model.features(factor * X)
            with pytest.raises(AmbiguousCall, match=r"called 2 times.*tape\.new_pass\(\) before it begins one"):
                _ = tape["features"].output
            tape.new_pass()
            model.features(3 * X)
            torch.testing.assert_close(tape["features"].output, model.features(3 * X).detach())

    def test_the_model_called_it_twice(self) -> None:
        relu = nn.ReLU()
        model = nn.Sequential(relu, nn.Linear(4, 4), relu)
        with tp.record(model, "0") as tape:
            model(X)
        with pytest.raises(AmbiguousCall, match=r"record\(model, '0\[0\]'\) records one call") as error:
            _ = tape["0"].output
        assert "passes=" not in str(error.value)
        with tp.record(model, "0[0]") as tape:
            model(X)
        assert torch.equal(tape["0[0]"].output, X)


class TestSlices:
    def model(self) -> nn.Module:
        class Blocks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
                self.stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

            def forward(self, x):
                x = self.stem(x)
                for block in self.blocks:
                    x = block(x)
                return x

        return Blocks()

    def test_a_slice_selects_its_members(self) -> None:
        model = self.model()
        for selection, names in (
            (model.blocks[1:3], ["blocks.1", "blocks.2"]),
            (model.blocks[-1:], ["blocks.3"]),
            (model.stem[:2], ["stem.0", "stem.1"]),
            ([model.stem[:1], "blocks.0", model.blocks[3:]], ["blocks.0", "blocks.3", "stem.0"]),
            (nn.ModuleDict({"a": model.blocks[0]}), ["blocks.0"]),
            (nn.ModuleList([model.blocks]), ["blocks"]),
            (model.stem, ["stem"]),
        ):
            with tp.record(model, selection) as tape:
                model(torch.ones(1, 4))
            assert list(tape) == names

    def test_everywhere(self) -> None:
        model, x = self.model(), torch.ones(1, 4)
        assert list(tp.activations(model, x, model.blocks[:2])) == ["blocks.0", "blocks.1"]
        assert list(tp.kernels(model, model.blocks[:2])) == ["blocks.0", "blocks.1"]
        with tp.edit(model, outputs={model.blocks[2:]: lambda output: output * 0}):
            assert not model(x).any()
        with tp.record(model, "blocks.*", exclude=model.blocks[:3], keep={model.blocks[3:]: torch.sum}) as tape:
            model(x)
        assert list(tape) == ["blocks.3"]
        assert tape["blocks.3"].output.ndim == 0

    def test_what_is_of_another_model_or_empty(self) -> None:
        model = self.model()
        with pytest.raises(LayerNotFound, match=r"this Linear .is it from another copy"):
            tp.record(model, copy.deepcopy(model).blocks[:2])
        with pytest.raises(LayerNotFound, match=r"this ModuleList .it has no members"):
            tp.record(model, model.blocks[:0])

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
    def test_a_slice_of_scripted_layers(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU()))
        with pytest.raises(InputError, match="'1' is scripted"):
            tp.record(model, model[1:])
