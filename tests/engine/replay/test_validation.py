"""Replays that would be wrong are replaced by whole passes."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.replay import (
    IgnoresTheReturn,
    MaskedNowAndThen,
    NowAndThen,
    Opaque,
    PastTheCounter,
    Plain,
    TwoStreams,
    WritesIntoItsInput,
)
from replicas.ablation import by_whole_passes, other
from torchpeek.errors import Notice


@pytest.mark.filterwarnings("ignore:whole passes for each change")  # where it does not repeat, that is right
@pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded tensors")
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("batch", [None, 1, 2, 7])
@pytest.mark.parametrize(
    "make",
    [TwoStreams, Opaque, IgnoresTheReturn, WritesIntoItsInput, NowAndThen, MaskedNowAndThen, PastTheCounter, Plain],
)
def test_right_or_whole_passes(make: Callable[[], nn.Module], batch: int | None, size: int) -> None:
    """Whichever it is, the numbers are those of whole passes, and the trace's own are left alone."""
    model = make().double().eval()
    tp.trace(model, torch.zeros(1, 3, 6, 6, dtype=torch.float64), layer="layer", gradients=False).ablate(other, 2)
    x = torch.randn(size, 3, 6, 6, dtype=torch.float64)
    trace = tp.trace(model, x, layer="layer", target=tp.targets.Classes([0, 1]), gradients=False)
    expected, inputs = by_whole_passes(model, "layer", x, [0, 1], 9), trace.inputs.clone()
    for _ in range(3):
        got = trace.ablate(other, 9, batch=batch)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert torch.equal(trace.inputs, inputs)


class TestConcurrentUse:
    def test_another_thread_runs_the_model_as_it_is(self) -> None:
        model = Plain().double().eval()
        x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
        expected = model(x).detach()
        seen: list[Tensor] = []

        def elsewhere(*_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: seen.append(model(x).detach()))
                thread.start()
                thread.join()

        trace = tp.trace(model, x, layer="layer", gradients=False)
        trace.ablate(other, 3)
        model.after.register_forward_pre_hook(elsewhere)
        trace.ablate(other, 3)
        assert seen
        for each in seen:
            torch.testing.assert_close(each, expected)

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_made_in_the_middle_is_the_model(self, how: Callable[[nn.Module], nn.Module]) -> None:
        model = Plain().double().eval()
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        copies: list[nn.Module] = []
        trace = tp.trace(model, x, layer="layer", gradients=False)
        handle = model.after.register_forward_hook(_Copying(model, how, copies))
        trace.ablate(other, 3)
        handle.remove()
        assert copies
        for each in copies:
            torch.testing.assert_close(each(x), model(x))

    def test_samples_that_see_each_other_are_run_one_by_one(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 3)
        ).double()
        x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
        trace = tp.trace(model, x, layer="0", target=tp.targets.Classes([0, 1]), gradients=False)
        expected = by_whole_passes(model, "0", x, [0, 1], 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            torch.testing.assert_close(trace.ablate(other, 4), expected)
        one, many = (
            trace.rescore(lambda given, rows, trials: given * (1 + trials.view(-1, 1, 1, 1)), 4, batch=batch)
            for batch in (1, None)
        )
        torch.testing.assert_close(one, many)


class _Copying:
    """A hook that copies the model it is on, once, without itself."""

    def __init__(self, model: nn.Module, how: Callable[[nn.Module], nn.Module], copies: list[nn.Module]) -> None:
        self.given: Any = (model, how, copies)

    def __call__(self, *_: Any) -> None:
        model, how, copies = self.given
        if not copies:
            copies.append(how(model))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _nothing(*_: Any) -> None:
    pass


def _no_hook() -> Callable[..., None]:
    return _nothing


class TestNondeterministicParts:
    class Drifts(nn.Module):
        """Keeps something from call to call that is neither a buffer nor a parameter."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(self.layer(x).mean((2, 3))) * self.calls

    class Depends(nn.Module):
        """The first module leaves something behind for the last one, past its return value."""

        class Stem(nn.Conv2d):
            seen: Any = None

            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                self.seen = y.amax((2, 3))
                return y

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.head = self.Stem(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(self.stem(x)).mean((2, 3))
            return self.head(y * self.stem.seen)

    def test_whole_passes_with_a_notice(self, replays: list[int]) -> None:
        model, x = self.Depends().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
        trace = tp.trace(model, x, layer="layer", target=tp.targets.Classes([0, 1]), gradients=False)
        for _ in range(2):
            with pytest.warns(Notice, match="whole passes for each change of 'layer'"):
                got = trace.ablate(other, 5, batch=3)
            torch.testing.assert_close(got, by_whole_passes(model, "layer", x, [0, 1], 5), rtol=1e-10, atol=1e-12)
            replays.clear()
        assert replays == []  # known by now, and not tried again

    def test_a_model_that_never_says_the_same_twice(self) -> None:
        model = self.Drifts().eval()
        trace = tp.trace(model, torch.randn(1, 3, 8, 8), layer="layer", gradients=False)
        with pytest.warns(Notice, match="whole passes"):
            trace.ablate(other, 2)
