"""Replays against whole passes, on real architectures and on networks made to break them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, messy, state_of
from torchpeek.engine import runner
from torchpeek.errors import InputError, Notice, OptionError


def other(activation: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
    """Something else in every trial."""
    factor = 0.3 + 0.2 * trials.to(activation).view(-1, *(1 for _ in activation.shape[1:]))
    return activation.roll(1, dims=1) * factor


def by_whole_passes(
    model: nn.Module, layer: str, x: Tensor, labels: list[int], trials: int, edit: Callable[..., Tensor] = other
) -> Tensor:
    """(N, trials, K) on a fresh copy of the model, one sample and trial at a time, with a plain hook."""
    fresh = copy.deepcopy(model).eval()
    module = fresh.get_submodule(layer)
    kept: list[Tensor] = []
    scores = torch.zeros(len(x), trials, len(labels), dtype=x.dtype)
    with torch.no_grad():
        for n in range(len(x)):
            handle = module.register_forward_hook(lambda _, args, output: kept.append(output.clone()))
            fresh(x[n : n + 1].clone())
            handle.remove()
            for trial in range(trials):
                changed = edit(kept[-1], torch.tensor([n]), torch.tensor([trial]))
                handle = module.register_forward_hook(lambda _, args, output, changed=changed: changed.clone())
                found: Any = fresh(x[n : n + 1].clone())
                handle.remove()
                scores[n, trial] = (found if isinstance(found, Tensor) else found["logits"])[0, labels]
    return scores


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each replay had: a test that meant to see one sees none where whole passes were taken."""
    seen: list[int] = []
    known = runner.Replay.output

    def counted(self: Any, changed: Tensor, *given: Any, **options: Any) -> Any:
        seen.append(len(changed))
        return known(self, changed, *given, **options)

    monkeypatch.setattr(runner.Replay, "output", counted)
    return seen


def assert_replayed(model: nn.Module, layer: str, x: Tensor, replays: list[int], *, rtol: float = 1e-5) -> None:
    """Three times over, the third being what the second left behind, in chunks that split samples unevenly."""
    labels = [0, 1]
    trace = tp.trace(model, x, layer=layer, target=tp.targets.Classes(labels), gradients=False)
    expected = by_whole_passes(model, layer, x, labels, 5)
    for _ in range(3):
        got = trace.ablate(other, 5, batch=3)
        torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
    assert not torch.allclose(expected, trace.scores.unsqueeze(1))  # it does make a difference
    assert len(replays) >= 3 * 2 * len(x)


class Counted:
    """How often a convolution's arithmetic ran, which a module call that returns what was noted does not do."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.count, self._was = 0, convolution._conv_forward
        convolution._conv_forward = self  # type: ignore[method-assign]

    def __call__(self, *args: Any) -> Tensor:
        self.count += 1
        return self._was(*args)


ARCHITECTURES = {
    "resnet18": ["layer4", "layer4.0.conv1", "layer3.1.bn1", "layer2"],
    "densenet121": ["features.denseblock4.denselayer8.conv1", "features.denseblock4", "features.transition2"],
    "googlenet": ["inception5a.branch2", "inception5b", "inception4b.branch3.0"],
    "mobilenet_v3_small": ["features.9.block.1", "features.12", "features.8.block.2"],
    "efficientnet_b0": ["features.6.1.block.1", "features.8", "features.7"],
    "convnext_tiny": ["features.7.1", "features.5.3", "features.7"],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_architectures(name: str, replays: list[int]) -> None:
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():  # as initialised, some barely let the picture through
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    x = torch.randn(2, 3, 64, 64)
    for layer in ARCHITECTURES[name]:
        replays.clear()
        assert_replayed(model, layer, x, replays, rtol=1e-4)
    first = Counted(next(module for module in model.modules() if isinstance(module, nn.Conv2d)))
    layer = ARCHITECTURES[name][0]
    trace = tp.trace(model, x, layer=layer, gradients=False, ablations=True)
    trace.ablate(other, 5, batch=3)
    trace.asked(tp.targets.Classes([1, 2])).ablate(other, 5, batch=3)
    assert first.count == 1  # for the trace, two questions and all of their chunks


class Shared(nn.Module):
    """One ReLU and one convolution in four places; the layer holds further ones, and is held."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.block = nn.Sequential(self.act, self.same, nn.BatchNorm2d(4), self.act)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.same(self.act(self.stem(x))))
        b = self.block(a)
        return self.head((self.act(self.same(b)) + a).mean((2, 3)))


class WritesInPlace(nn.Module):
    """Into what was noted, into the layer's output, and into an output whose return value it then ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.after = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.stem(x)
        y = self.layer(F.relu(shortcut))
        y += shortcut
        shortcut += 2 * self.after(y)
        return self.head(F.relu_(shortcut).mean((2, 3)))


class OverwritesEarly(nn.Module):
    """What a module returned is overwritten before the layer is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a += 1
        a *= a
        return self.head((self.layer(a) + a).mean((2, 3)))


class Containers(nn.Module):
    """Tuples, dicts and numbers between the modules, and a mapping at the end."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return x * 2, {"half": x / 2, "size": x.shape[2], "none": None}

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self) -> Tensor:
            return self.table

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.table = nn.Conv2d(3, 4, 3, padding=1), self.Pair(), self.Table()
        self.layer, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        double, rest = self.pair(self.stem(x))
        y = self.layer(double) + rest["half"] * rest["size"] + self.table()
        return {"logits": self.head(y.mean((2, 3)))}


class SequenceFirst(nn.Module):
    """Positions first, batch second, as nn.MultiheadAttention has it; and windows folded into the batch."""

    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (N, C, 8, 8) -> (4 N, C, 4, 4)
            windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4))
            return windows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 4, 3, padding=1), nn.MultiheadAttention(4, 2)
        self.folded, self.layer = self.Folded(), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        tokens = a.flatten(2).permute(2, 0, 1)  # (positions, N, C)
        attended, _ = self.attention(tokens, tokens, tokens)
        windows = self.folded(a)
        y = self.layer(a).flatten(2).permute(2, 0, 1) * attended
        return self.head(y.mean(0) + windows.unflatten(0, (len(x), 4)).amax((1, 3, 4)))


class CallsForward(nn.Module):
    """Past the modules' hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem.forward(x)
        return self.head.forward(self.layer(a).mean((2, 3)) * a.amax((2, 3)))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Shared, "block"),
        (Shared, "block.2"),
        (WritesInPlace, "layer"),
        (OverwritesEarly, "layer"),
        (Containers, "layer"),
        (SequenceFirst, "layer"),
        (CallsForward, "layer"),
        (PooledNet, "act"),
        (PooledNet, "features.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", value),
)
def test_networks_made_to_break_it(make: Callable[[], nn.Module], layer: str, size: int, replays: list[int]) -> None:
    x = torch.randn(size, 3, 8, 8, dtype=torch.float64)
    assert_replayed(make().double().eval(), layer, x, replays, rtol=1e-10)


class TestHooksAndForwards:
    def test_a_users_hook_upstream_is_applied_once(self, replays: list[int]) -> None:
        model = PooledNet().double().eval()
        model.features[0].register_forward_hook(lambda module, args, output: output * 3 + 1)
        model.features[2].register_forward_hook(lambda module, args, output: output.mul_(2).sub_(0.1))
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)

    def test_a_users_hook_on_the_layer_itself(self, replays: list[int]) -> None:
        """It has edited what the trace holds; what ablate says the layer returns is not edited again."""
        model = PooledNet().double().eval()
        model.act.register_forward_hook(lambda module, args, output: output.mul_(2))
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)

    def test_an_instances_own_forward_is_used_and_stays(self, replays: list[int]) -> None:
        model = PooledNet().double().eval()
        own = lambda x: torch.tanh(x) * 2  # noqa: E731
        model.features[1].forward = own
        assert_replayed(model, "act", torch.randn(2, 3, 8, 8, dtype=torch.float64), replays, rtol=1e-10)
        assert model.features[1].forward is own
        assert "forward" not in model.features[0].__dict__

    def test_the_model_is_left_as_found(self) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        trace = tp.trace(model, x, layer="bn", gradients=False, ablations=True)
        trace.ablate(other, 4)
        assert state_of(model) == before
        for error in (RuntimeError("broken"), KeyboardInterrupt()):

            def edit(given: Tensor, rows: Tensor, trials: Tensor, error: BaseException = error) -> Tensor:
                raise error

            with pytest.raises(type(error)):
                trace.ablate(edit, 4)
            assert state_of(model) == before

    def test_the_model_fails_in_the_middle_of_a_replay(self) -> None:
        model = messy().eval()
        trace = tp.trace(model, torch.randn(1, 3, 8, 8), layer="bn", gradients=False, ablations=True)
        trace.ablate(other, 4)
        before = state_of(model)
        model.fail_with = RuntimeError("broken")
        with pytest.warns(Notice, match="whole passes"), pytest.raises(RuntimeError, match="broken"):
            trace.ablate(other, 4)
        assert state_of(model) == before
        model.fail_with = None
        trace.ablate(other, 4)  # and it is not held against the replay


class Plain(nn.Module):
    """A stem, the layer and a head; `end` says what becomes of the stem's output and the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.after = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.end(a, self.layer(a)).mean((2, 3)))

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        return self.after(y) * a


class TwoStreams(Plain):
    """Folded into the batch the other way round: all samples of the first stream, then all of the second."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x.flip(-1)])

    def __init__(self) -> None:
        super().__init__()
        self.both = self.Both()

    def forward(self, x: Tensor) -> Tensor:
        two, count = self.both(self.stem(x)), len(x)
        y = self.layer(two[:count])
        return self.head((y * two[:count] + self.after(two[count:]).cumsum(-1)).mean((2, 3)))


class Opaque(Plain):
    """What the module returns holds tensors, and numbers of the batch, where nobody sees them."""

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return type("Box", (), {"tensor": x * 2, "sizes": [float(each) for each in x.mean((1, 2, 3))]})()

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = self.Wrapped()

    def forward(self, x: Tensor) -> Tensor:
        box = self.wrapped(self.stem(x))
        scale = torch.tensor(box.sizes, dtype=x.dtype).view(-1, 1, 1, 1)
        return self.head((self.layer(box.tensor) * box.tensor * (1 + scale)).mean((2, 3)))


class IgnoresTheReturn(Plain):
    """An in-place ReLU, called for its effect. A first picture of zeros shows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        self.relu(a)
        return self.head((self.layer(a) + a).mean((2, 3)))


class WritesIntoItsInput(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x -= 1.5
        x *= 2
        return super().forward(x)


class NowAndThen(Plain):
    def end(self, a: Tensor, y: Tensor) -> Tensor:
        if float(y.mean()) > 0:
            a += 2 * self.after(y)
        return a * y


class MaskedNowAndThen(Plain):
    """An assignment by mask, which torch lets write into a view that repeats one sample."""

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        if bool((y > 1.5).any()):
            a[y > 1.5] = 5.0
        return a * y


class PastTheCounter(Plain):
    """Writes that torch does not count."""

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        result = a * y
        a.data.add_(1)
        return result


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


class TestOthersMeanwhile:
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


class TestWhatIsHandedOn:
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
        kept = [weakref.ref(call.output) for call in trace.noted.calls]
        assert kept
        del trace
        gc.collect()
        assert all(reference() is None for reference in kept)


class TestWherePartsDoNotRepeat:
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
        assert sizes[:3] == [9, 4, 2]
        assert max(sizes[2:]) == 2

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
        trace.asked(tp.targets.Classes([2])).ablate(other, 3)
        first = Counted(model.features[0])
        for k in (0, 1, 2):
            trace.asked(tp.targets.Classes([k])).ablate(other, 3)
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
        with pytest.raises(OptionError, match="precision is 'half'; allowed: 'bfloat16', or None"):
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
        assert plain.autocast == torch.bfloat16
