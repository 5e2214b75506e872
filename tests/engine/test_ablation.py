"""Scores with the layer's output changed: chunks, memory, precision, and changes that are refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.replay import Counted, WritesInPlace, WritesIntoItsInput
from replicas.ablation import by_whole_passes, other
from torchpeek.errors import InputError, OptionError


class TestAliasing:
    def test_a_tensor_of_the_users_is_not_written_into(self) -> None:
        model = WritesInPlace().eval()
        trace = tp.trace(model, torch.randn(1, 3, 8, 8), layer="layer", gradients=False)
        mine = torch.randn(3, 4, 8, 8)
        before = mine.clone()
        for _ in range(3):
            trace.ablate(lambda given, rows, trials: mine, 3)
            assert torch.equal(mine, before)

    def test_nor_are_the_traces_own(self) -> None:
        model = WritesInPlace().double().eval()
        trace = tp.trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), layer="layer", gradients=False)
        activations = trace.activations.clone()
        for _ in range(3):
            got = trace.ablate(lambda given, rows, trials: given, 3)
            torch.testing.assert_close(got, trace.scores.unsqueeze(1).expand(-1, 3, -1))
        assert torch.equal(trace.activations, activations)

    def test_notes_die_with_the_trace(self) -> None:
        trace = tp.trace(PooledNet(), torch.randn(1, 3, 8, 8), layer="act", gradients=False, ablations=True)
        kept = [weakref.ref(call.output) for call in trace.forward_pass.prefixes[trace.layer].calls]
        assert kept
        del trace
        gc.collect()
        assert all(reference() is None for reference in kept)


class TestBadChanges:
    @pytest.mark.parametrize("kind", ["rescore", "ablate"])
    @pytest.mark.parametrize(
        "wrong", [lambda given, *_: given[:1], lambda given, *_: None, lambda given, *_: given.sum(1)]
    )
    def test_a_change_that_returns_something_else(self, kind: str, wrong: Callable[..., Any]) -> None:
        trace = tp.trace(PooledNet(), torch.randn(2, 3, 8, 6), layer="act", gradients=False)
        with pytest.raises(InputError, match=r"the change returned .*; allowed: a tensor of shape \("):
            getattr(trace, kind)(wrong, 3)


class TestChunks:
    X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    @pytest.fixture
    def trace(self) -> tp.Trace:
        return tp.trace(PooledNet().double().eval(), self.X, layer="act", target=tp.targets.Classes([0, 3, 1]))

    @pytest.mark.parametrize("kind", ["rescore", "ablate"])
    def test_however_they_are_cut(self, trace: tp.Trace, kind: str) -> None:
        ask = getattr(trace, kind)
        whole = ask(other, 7)
        assert whole.shape == (2, 7, 3)
        for batch in (1, 2, 3, 5, 7, 100):
            torch.testing.assert_close(ask(other, 7, batch=batch), whole, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("kind", ["rescore", "ablate"])
    def test_what_is_not_live_is_not_run(self, trace: tp.Trace, kind: str) -> None:
        live = torch.tensor([[True, False, True, False], [False, False, False, True]])
        asked: list[tuple[int, int]] = []

        def edit(given: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
            asked.extend(zip(rows.tolist(), trials.tolist(), strict=True))
            return other(given, rows, trials)

        got = getattr(trace, kind)(edit, 4, live=live)
        assert sorted(asked) == [(0, 0), (0, 2), (1, 3)]
        whole = getattr(trace, kind)(other, 4)
        expected = torch.where(live.unsqueeze(2), whole, trace.scores.unsqueeze(1))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(getattr(trace, kind)(edit, 4, live=torch.zeros_like(live))[:, 0], trace.scores)

    @pytest.mark.parametrize("kind", ["rescore", "ablate"])
    def test_out_of_memory_halves_them(self, trace: tp.Trace, kind: str) -> None:
        getattr(trace, kind)(other, 9, batch=9)  # what there is to learn is learned
        sizes: list[int] = []

        def edit(given: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
            sizes.append(len(rows))
            if len(rows) > 2:
                raise torch.OutOfMemoryError("no")
            return other(given, rows, trials)

        torch.testing.assert_close(getattr(trace, kind)(edit, 9, batch=9), getattr(trace, kind)(other, 9))
        assert sizes[:5] == [9, 9, 4, 4, 2]  # each once more, because a failure may be that of one moment
        assert max(sizes[4:]) == 2

    def test_out_of_memory_while_a_replay_is_checked(self) -> None:
        model = PooledNet().double().eval()
        trace = tp.trace(model, self.X, layer="features", gradients=False, target=tp.targets.Classes([1]))
        expected = by_whole_passes(model, "features", self.X, [1], 9)

        def refuse(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if len(args[0]) > 4:
                raise torch.OutOfMemoryError("no")

        model.act.register_forward_pre_hook(refuse)
        torch.testing.assert_close(trace.ablate(other, 9, batch=9), expected)

    def test_another_question_of_the_same_pass_takes_no_more_passes(self) -> None:
        model = PooledNet().double().eval()
        trace = tp.trace(model, self.X, layer="act", target=1, gradients=False)
        trace.with_target(tp.targets.Classes([2])).ablate(other, 3)
        first = Counted(model.features[0])
        for k in (0, 1, 2):
            trace.with_target(tp.targets.Classes([k])).ablate(other, 3)
        assert first.count == 0

    def test_an_output_beside_the_logits_that_is_not_finite(self) -> None:
        class Beside(PooledNet):
            def forward(self, x: Tensor) -> Any:
                y = super().forward(x)
                return {"logits": y, "nan": y * torch.nan, "none": y[:, :0]}

        trace = tp.trace(Beside().eval(), self.X.float(), layer="act", target=1)
        assert torch.isfinite(trace.rescore(other, 3)).all()
        assert torch.isfinite(trace.ablate(other, 3)).all()

    def test_not_even_one_fits(self, trace: tp.Trace) -> None:
        def edit(given: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no")

        with pytest.raises(torch.OutOfMemoryError):
            trace.rescore(edit, 4)

    def test_a_part_that_insists_on_the_usual_memory_format(self) -> None:
        class Views(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 6, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.conv(x).view(len(x), -1))

        model = Views().double().eval()
        trace = tp.trace(model, self.X, layer="conv", target=1)
        got = trace.rescore(lambda given, rows, trials: given * 0.5, 2)
        torch.testing.assert_close(got[:, 0, 0], model(self.X * 0.5)[:, 1].detach())

    @pytest.mark.parametrize("how", ["asserts", "strides"])
    def test_a_part_that_minds_it_in_another_way(self, how: str) -> None:
        class Minds(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 6, 3)

            def forward(self, x: Tensor) -> Tensor:
                if how == "asserts":
                    assert x.is_contiguous()
                a = self.conv(x)
                if how == "strides":
                    a = a.as_strided((len(x), 4, 8, 6), (192, 48, 6, 1))
                return self.head(a.flatten(1))

        model = Minds().double().eval()
        trace = tp.trace(model, self.X, layer="conv", target=1)
        got = trace.rescore(lambda given, rows, trials: given * 0.5, 2)
        torch.testing.assert_close(got[:, 1, 0], model((self.X * 0.5).contiguous())[:, 1].detach())

    def test_the_model_writes_into_what_it_is_given(self) -> None:
        model = WritesIntoItsInput().double().eval()
        trace = tp.trace(model, self.X, layer="layer", target=1)
        mine = torch.randn(6, 3, 8, 6, dtype=torch.float64)
        before = mine.clone()
        got = trace.rescore(lambda given, rows, trials: mine, 3)
        assert torch.equal(mine, before)
        torch.testing.assert_close(got[0, 0, 0], model(before[:1].clone())[0, 1].detach())

    def test_in_bfloat16(self) -> None:
        model = PooledNet().eval()
        seen: list[torch.dtype] = []
        model.features[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        trace = tp.trace(model, self.X.float(), layer="act", target=1)
        exact = trace.rescore(other, 3)
        half = trace.rescore(other, 3, precision="bfloat16")
        assert half.dtype == torch.float32
        assert seen[-1] == torch.bfloat16
        assert set(seen[:-1]) == {torch.float32, torch.bfloat16} or seen[0] == torch.float32
        assert not torch.equal(half, exact)
        torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
        with pytest.raises(OptionError, match="precision is 'half'; allowed: 'bfloat16' or None"):
            trace.rescore(other, 3, precision="half")  # type: ignore[arg-type]

    def test_every_further_pass_is_in_the_autocast_of_the_first(self) -> None:
        model = PooledNet().eval()
        seen: list[torch.dtype] = []
        model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            trace = tp.trace(model, self.X.float(), layer="act", target=1)
        trace.rescore(other, 2)
        trace.ablate(other, 2)
        trace.again(self.X.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert set(seen) == {torch.bfloat16}
            plain = tp.trace(PooledNet().eval(), self.X.float(), layer="act", target=1)
        assert plain.forward_pass.autocast == torch.bfloat16
