"""One clean pass, what it keeps, and that the model is left as it was found."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from networks import InPlaceNet, PooledNet, SplitNet, messy, state_of
from torchpeek.engine import Suggestion, as_model_call, inspectable_module, layer_calls
from torchpeek.engine import suggest_layer as suggest_layer_for
from torchpeek.engine.layout_inference.candidates import is_channels_last
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Classes, Predicted, TopClasses
from torchpeek.errors import (
    AmbiguousCall,
    GradUnavailable,
    InputError,
    LayerNotFound,
    NoSpatialLayer,
    NotConnected,
    NotFinite,
    NotFired,
    Notice,
)
from tracing import traced

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(net: SplitNet, labels: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (N, C, h, w) and gradients (N, K, C, h, w), one sample and class at a time, by splitting the net."""
    activations = net.prefix(X).detach()
    gradients = torch.zeros(len(X), len(labels[0]), *activations.shape[1:], dtype=X.dtype)
    for n, row in enumerate(labels):
        for k, label in enumerate(row):
            a = activations[n : n + 1].clone().requires_grad_()
            net.suffix(a)[0, label].backward(inputs=[a])
            gradients[n, k] = a.grad[0]
    return activations, gradients


class TestTrace:
    def test_activations_and_gradients_are_those_of_the_split_network(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Classes([2, 0, 3]))
        activations, gradients = by_hand(net, [[2, 0, 3]] * 2)
        assert trace.activations.shape == (2, 1, 5, 4, 3)
        torch.testing.assert_close(trace.activations.squeeze(1), activations, rtol=0, atol=0)
        torch.testing.assert_close(trace.gradients, gradients, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(trace.scores, net(X)[:, [2, 0, 3]].detach(), rtol=1e-13, atol=0)

    def test_gradients_are_finite_differences(self, net: SplitNet) -> None:
        """No autograd on the other side."""
        trace = traced(net, X, ["prefix"], Predicted())
        a, step = trace.activations.squeeze(1), 1e-6
        with torch.no_grad():
            for position in [(0, 0, 0), (1, 2, 1), (4, 3, 2)]:
                shift = torch.zeros_like(a)
                shift[(slice(None), *position)] = step
                difference = (net.suffix(a + shift) - net.suffix(a - shift)) / (2 * step)
                expected = difference.gather(1, trace.question.labels)
                torch.testing.assert_close(trace.gradients[(..., *position)], expected, rtol=1e-7, atol=1e-9)

    def test_each_sample_has_its_own_classes(self, net: SplitNet) -> None:
        from torchpeek.engine.targets import ClassesPerSample

        trace = traced(net, X, ["prefix"], ClassesPerSample(torch.tensor([[0, 1], [3, 2]])))
        torch.testing.assert_close(trace.gradients, by_hand(net, [[0, 1], [3, 2]])[1], rtol=1e-12, atol=1e-15)

    def test_several_layers_in_one_pass(self, net: SplitNet) -> None:
        """The first becomes the leaf; the second keeps the edge of the graph from there."""
        trace = traced(net, X, ["mix", "prefix"], Classes([1]))
        assert list(trace.at) == ["mix", "prefix"]
        for layer in ("mix", "prefix"):
            alone = traced(net, X, [layer], Classes([1]))
            torch.testing.assert_close(trace.gradients_at[layer], alone.gradients, rtol=1e-12, atol=0)
            torch.testing.assert_close(trace.only(layer).activations, alone.activations, rtol=0, atol=0)
        with pytest.raises(AmbiguousCall, match="holds 2 layers"):
            _ = trace.activations

    def test_layers_on_parallel_branches(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

            def forward(self, x):
                return (self.a(x) * self.b(x)).mean((2, 3))

        for frozen in (False, True):
            model = Branches().requires_grad_(not frozen).eval()
            x = torch.randn(1, 3, 6, 6)
            trace = traced(model, x, ["a", "b"], Classes([0]))
            a, b = model.a(x).detach(), model.b(x).detach()
            expected = torch.zeros_like(b)
            expected[:, 0] = b[:, 0] / 16
            torch.testing.assert_close(trace.gradients_at["a"].squeeze(1), expected)
            expected[:, 0] = a[:, 0] / 16
            torch.testing.assert_close(trace.gradients_at["b"].squeeze(1), expected)

    def test_another_class_takes_no_forward_pass(self, net: SplitNet) -> None:
        passes = []
        net.register_forward_hook(lambda *_: passes.append(1))
        trace = traced(net, X, ["prefix"], Predicted())
        _ = trace.gradients
        again = trace.with_target(Classes([3]))
        torch.testing.assert_close(again.gradients, by_hand(net, [[3]] * 2)[1], rtol=1e-12, atol=1e-15)
        _ = trace.with_target(TopClasses(2)).gradients  # and once more: the graph is still there
        assert len(passes) == 1

    def test_a_batched_backward_in_chunks_is_the_same(self, net: SplitNet, monkeypatch) -> None:
        from torchpeek.engine import gradients

        whole = traced(net, X, ["prefix"], TopClasses(4)).gradients
        monkeypatch.setattr(gradients, "_BYTES", 3 * 2 * 5 * 4 * 3 * 8)  # three classes at once, then one
        torch.testing.assert_close(traced(net, X, ["prefix"], TopClasses(4)).gradients, whole, rtol=0, atol=0)

    def test_where_an_operation_has_no_batched_backward_it_goes_one_by_one(self) -> None:
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return grad * torch.from_numpy(2 * x.numpy()).to(x) * (1 if float(grad.sum()) < 1e9 else 0)

        class Net(PooledNet):
            def forward(self, x):
                return self.head(Square.apply(self.features(x)).mean((2, 3)))

        model = Net().eval()
        x = torch.randn(2, 3, 5, 5)
        trace = traced(model, x, ["features"], TopClasses(3))
        weights = model.head.weight[trace.question.labels]  # (N, K, C)
        a = trace.activations
        torch.testing.assert_close(trace.gradients, 2 * a * weights[..., None, None].detach() / 25)

    def test_gradients_not_kept(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Predicted(), gradients=False)
        assert not trace.output.requires_grad
        with pytest.raises(GradUnavailable, match="gradients=False"):
            _ = trace.gradients

    def test_again_asks_the_same_question_of_other_inputs(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Predicted())
        rows = torch.tensor([1, 0, 1])
        other = torch.randn(3, 3, 8, 6, dtype=torch.float64)
        again = trace.again(other, rows=rows)
        labels = trace.question.labels[rows]
        assert torch.equal(again.question.labels, labels)  # not what is predicted for the other inputs
        torch.testing.assert_close(again.scores, net(other).detach().gather(1, labels))
        assert again.gradients.shape == (3, 1, 5, 4, 3)

    def test_rescore_and_ablate_are_as_one_pass_each(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], TopClasses(2))
        labels = trace.question.labels
        masks = torch.rand(5, 1, 8, 6, dtype=torch.float64)
        got = trace.rescore(lambda x, rows, trials: x * masks[trials], 5, batch=3)
        dropped = trace.ablate(
            lambda a, rows, trials: a * (torch.arange(5)[None] != trials[:, None])[..., None, None], 5, batch=4
        )
        assert got.shape == dropped.shape == (2, 5, 2)
        with torch.no_grad():
            for n in range(2):
                for t in range(5):
                    score = net(X[n : n + 1] * masks[t])[0, labels[n]]
                    torch.testing.assert_close(got[n, t], score)
                    a = net.prefix(X[n : n + 1]).clone()
                    a[:, t] = 0
                    torch.testing.assert_close(dropped[n, t], net.suffix(a)[0, labels[n]])

    def test_the_question_stays_while_the_prediction_moves(self) -> None:
        """Masking changes what is predicted; the score has to stay that of the class first asked for."""
        model = PooledNet().eval()
        x = torch.randn(1, 3, 6, 6)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.weight[0] = 100
            model.head.bias.copy_(torch.tensor([-5.0, 1, 0, 0, 0]))  # without activation, class 1
            model.features[0].bias.zero_()
            model.features[2].bias.zero_()
        trace = traced(model, x, ["act"], Predicted())
        blank = trace.rescore(lambda given, rows, trials: given * 0, 1)
        assert trace.question.labels.tolist() == [[0]]
        assert model(x * 0).argmax() == 1
        assert blank.tolist() == [[[-5.0]]]


class TestHead:
    def test_weights_of_the_linear_head(self) -> None:
        model = PooledNet().double().eval()
        trace = traced(model, torch.randn(2, 3, 5, 4).double(), ["act"], TopClasses(3))
        assert torch.equal(trace.head, model.head.weight[trace.question.labels])

    def test_none_where_something_lies_between(self, net: SplitNet) -> None:
        assert traced(net, X, ["prefix"], Predicted()).head is None
        pooled = PooledNet().eval()  # the ReLU lies between
        assert traced(pooled, torch.randn(1, 3, 5, 5), ["features"], Predicted()).head is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_no_excuse(self, dtype: torch.dtype) -> None:
        """Its rounding must not hide that something lies between the layer and the head."""
        for seed in range(30):
            torch.manual_seed(seed)
            model, x = PooledNet().to(dtype).eval(), torch.randn(1, 3, 6, 6, dtype=dtype)
            assert traced(model, x, ["act"], Predicted()).head is not None
            assert traced(model, x, ["features.2"], Predicted()).head is None

    def test_none_for_a_score_that_is_not_the_logit(self) -> None:
        from torchpeek.engine.targets import ClassProbability

        trace = traced(PooledNet().eval(), torch.randn(1, 3, 5, 5), ["act"], ClassProbability())
        assert trace.head is None


class TestGraphStartsAtTheLayer:
    def test_nothing_before_the_layer_is_recorded(self, net: SplitNet) -> None:
        seen = []
        net.prefix[0].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
        traced(net, X, ["prefix"], Predicted())
        assert seen == [False]

    def test_no_parameter_gets_a_gradient(self, net: SplitNet) -> None:
        _ = traced(net, X, ["prefix"], TopClasses(2)).gradients
        assert all(parameter.grad is None for parameter in net.parameters())

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_anywhere(self, net: SplitNet, context, frozen) -> None:
        """Peers: a frozen model, or no_grad, is a crash or a wrong name for the error."""
        net.requires_grad_(not frozen)
        with context():
            trace = traced(net, X, ["prefix"], Classes([1, 2]))
            gradients = trace.gradients
        torch.testing.assert_close(gradients, by_hand(net.requires_grad_(), [[1, 2]] * 2)[1], rtol=1e-12, atol=1e-15)

    def test_an_inference_tensor_as_input(self, net: SplitNet) -> None:
        with torch.inference_mode():
            x = X.clone()
        torch.testing.assert_close(
            traced(net, x, ["prefix"], Classes([1])).gradients,
            by_hand(net, [[1]] * 2)[1],
            rtol=1e-12,
            atol=1e-15,
        )

    def test_a_model_that_turns_gradients_off_in_a_part(self) -> None:
        class Frozen(PooledNet):
            def forward(self, x):
                with torch.no_grad():
                    a = self.act(self.features(x))
                return self.head(a.mean((2, 3)))

        torch.manual_seed(0)
        model = Frozen().eval()
        torch.manual_seed(0)
        plain = PooledNet().eval()
        x = torch.randn(1, 3, 5, 5)
        with pytest.warns(Notice, match="turns gradients off"):
            trace = traced(model, x, ["act"], Classes([2]))
        torch.testing.assert_close(trace.gradients, traced(plain, x, ["act"], Classes([2])).gradients)

    def test_a_model_that_detaches(self) -> None:
        class Detached(PooledNet):
            def forward(self, x):
                return self.head(self.act(self.features(x)).detach().mean((2, 3)))

        with pytest.raises(NotConnected, match="does not depend on 'act'"):
            _ = traced(Detached().eval(), torch.randn(1, 3, 5, 5), ["act"], Classes([2])).gradients
        with pytest.warns(Notice), pytest.raises(NotConnected, match="detaches it"):
            traced(Detached().requires_grad_(False), torch.randn(1, 3, 5, 5), ["act"], Classes([2]))

    def test_an_unused_layer(self) -> None:
        class Auxiliary(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.aux = nn.Conv2d(3, 2, 3)

            def forward(self, x):
                self.aux(x)
                return super().forward(x)

        with pytest.raises(NotConnected, match="'aux'"):
            _ = traced(Auxiliary(), torch.randn(1, 3, 5, 5), ["aux"], Predicted()).gradients


class TestCapturesAreWhatTheLayerReturned:
    def test_in_place_operations_after_the_layer(self) -> None:
        """Peers: detach() shares storage, so the map is of what came later."""
        model = InPlaceNet().double().eval()
        x = torch.randn(2, 3, 5, 5).double()
        overwritten = traced(model, x, ["conv"], Classes([0, 3]))
        model.clean = True
        clean = traced(model, x, ["conv"], Classes([0, 3]))
        assert (overwritten.activations < 0).any(), "the ReLU did not reach the capture"
        assert torch.equal(overwritten.activations, clean.activations)
        torch.testing.assert_close(overwritten.gradients, clean.gradients, rtol=1e-13, atol=0)

    def test_in_place_without_gradients(self) -> None:
        model = InPlaceNet().eval()
        x = torch.randn(1, 3, 5, 5)
        trace = traced(model, x, ["conv"], Predicted(), gradients=False)
        torch.testing.assert_close(trace.activations.squeeze(1), model.conv(x).detach())

    def test_a_residual_that_adds_in_place(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.skip, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Identity(), nn.Linear(4, 3)

            def forward(self, x):
                a = self.a(x)
                shortcut = self.skip(a)  # the very tensor that a is
                a += 1
                shortcut = shortcut * 2
                return self.head((a + shortcut).mean((2, 3)))

        model = Residual().eval()
        x = torch.randn(1, 3, 5, 5)
        trace = traced(model, x, ["skip"], Classes([1]))
        torch.testing.assert_close(trace.activations.squeeze(1), model.a(x).detach())

    def test_a_users_hook_that_changes_the_output_comes_first(self) -> None:
        model = PooledNet().eval()
        model.act.register_forward_hook(lambda module, args, output: output + 7)
        trace = traced(model, torch.randn(1, 3, 4, 4), ["act"], Predicted())
        assert trace.activations.min() >= 7


class TestLeftAsFound:
    @pytest.mark.parametrize("gradients", [True, False])
    @pytest.mark.parametrize("layer", ["conv", "bn", "act"])
    def test_after_a_trace(self, layer: str, gradients: bool) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        trace = traced(model, x, [layer], TopClasses(2), gradients=gradients)
        if gradients:
            _ = trace.gradients
        trace.rescore(lambda given, rows, trials: given * 0.5, 3)
        trace.ablate(lambda given, rows, trials: given * 0.5, 3)
        trace.again(x + 1)
        assert state_of(model) == before

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_after_an_error_in_the_middle(self, error: BaseException) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        trace = traced(model, x, ["act"], Predicted())
        before = state_of(model)
        model.fail_with = error
        for ask in (
            lambda: traced(model, x, ["conv"], Predicted()),
            lambda: trace.rescore(lambda given, rows, trials: given, 2),
            lambda: trace.ablate(lambda given, rows, trials: given, 2),
            lambda: trace.again(x),
            lambda: layer_calls(model, as_model_call(model, x)),
            lambda: suggest_layer(model, x),
        ):
            with pytest.raises(type(error)):
                ask()
            assert state_of(model) == before

    def test_a_change_that_raises(self) -> None:
        model = messy()
        trace = traced(model, torch.randn(2, 3, 8, 8), ["act"], Predicted())
        before = state_of(model)
        with pytest.raises(ZeroDivisionError):
            trace.ablate(lambda given, rows, trials: given * (1 // 0), 2)
        assert state_of(model) == before

    # An interrupt that lands in a weakref's callback is swallowed by Python itself, with this warning; the call then
    # goes on to its end, and the model has to be as found all the same.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_after_ctrl_c_at_any_moment(self) -> None:
        """Also between a hook's registration and its handle, or in the middle of putting things back."""
        import torchpeek as tp

        model = messy()
        x = torch.randn(2, 3, 8, 8)
        start = time.perf_counter()
        for _ in range(5):
            tp.explain(model, x, layer="act")
        once = (time.perf_counter() - start) / 5
        moments = random.Random(0)
        interrupted = 0
        former = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            for _ in range(300):
                before = state_of(model)
                try:
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, once))
                    tp.explain(model, x, layer=moments.choice(["act", None]), target=[[0, 1], [1, 2]])
                    time.sleep(0.2)
                except KeyboardInterrupt:
                    interrupted += 1
                assert state_of(model) == before
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        assert interrupted >= 280, "nearly all of them came through"

    def test_eval_mode_inside_whatever_a_users_train_does(self) -> None:
        class Stubborn(PooledNet):
            def train(self, mode: bool = True):
                raise AssertionError("a tool has no business here")

        model = Stubborn()
        model.act.training = True
        with preserved(model):
            assert not any(module.training for module in model.modules())
        assert model.act.training

    def test_buffers_that_are_inference_tensors(self) -> None:
        model = messy()
        with torch.inference_mode():
            model.bn.running_mean = torch.ones(6)
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        traced(model, x, ["act"], Predicted())
        assert state_of(model) == before

    @pytest.mark.parametrize("kind", ["sparse", "resized", "expanded with NaN", "shadowed"])
    def test_buffers_of_odd_kinds(self, kind: str) -> None:
        class Odd(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                odd = torch.arange(3.0)
                if kind == "sparse":
                    odd = torch.eye(3).to_sparse()
                elif kind == "expanded with NaN":
                    odd = torch.tensor([torch.nan]).expand(3)
                self.register_buffer("odd", odd)
                self.register_buffer("after", torch.zeros(1))

            def forward(self, x):
                if kind == "resized":
                    self.odd.data = torch.zeros(7)
                elif kind == "shadowed":
                    del self.odd
                    self.odd = torch.ones(1)
                self.after += 1
                return super().forward(x)

        model = Odd()
        odd = model.odd
        before = odd.to_dense().tolist()
        traced(model, torch.randn(1, 3, 5, 5), ["act"], Predicted())
        assert model.odd is odd
        assert str(model.odd.to_dense().tolist()) == str(before)
        assert "odd" not in model.__dict__
        assert model.after.tolist() == [0]

    def test_a_model_that_writes_into_its_input(self) -> None:
        class Normalising(PooledNet):
            def forward(self, x):
                return super().forward(x.sub_(1).div_(2))

        model, x = Normalising().eval(), torch.randn(2, 3, 5, 5)
        mine = x.clone()
        trace = traced(model, x, ["act"], Predicted())
        assert torch.equal(x, mine)
        torch.testing.assert_close(trace.rescore(lambda given, rows, trials: given, 1)[:, 0], trace.scores)
        x.zero_()  # nor does the caller into what the trace keeps
        torch.testing.assert_close(trace.again(mine).scores, trace.scores)
        torch.testing.assert_close(trace.rescore(lambda given, rows, trials: given, 1)[:, 0], trace.scores)

    def test_two_compiled_models_in_two_threads(self) -> None:
        """Running eagerly is a matter of the process; the first that comes turns it on, the last that goes off."""
        models = [PooledNet(), PooledNet()]
        for model in models:
            model.compile(backend="eager")
        entered, left = threading.Event(), threading.Event()
        stances = []

        def stays_longer() -> None:
            with preserved(models[1]):
                entered.set()
                left.wait()
                stances.append(torch._dynamo.eval_frame._stance.stance)

        other = threading.Thread(target=stays_longer)
        with preserved(models[0]):
            other.start()
            entered.wait()
        left.set()
        other.join()
        assert stances == ["force_eager"]
        assert torch._dynamo.eval_frame._stance.stance == "default"

    def test_an_instances_own_forward_stays(self) -> None:
        model = messy()
        own = model.act.forward = partial(F.relu, inplace=False)
        traced(model, torch.randn(2, 3, 8, 8), ["act"], Predicted())
        assert model.act.__dict__["forward"] is own

    def test_nothing_lives_on(self) -> None:
        """Peers: hooks and graphs stay after the call."""
        model = messy()
        kept = []
        model.act.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
        trace = traced(model, torch.randn(2, 3, 8, 8), ["bn"], Predicted())
        alive = weakref.ref(trace.at["bn"].activation)
        _ = trace.gradients
        del trace
        assert alive() is None
        assert [reference() for reference in kept] == [None] * len(kept)
        assert len(kept) == 1

    def test_two_models_that_share_a_part(self) -> None:
        """Each in a thread of its own: the part is in one's hands at a time."""
        shared = messy()
        models = [nn.Sequential(shared), nn.Sequential(shared)]
        inputs = torch.randn(1, 3, 8, 8)
        before = state_of(shared)
        failed = []

        def work(model: nn.Module) -> None:
            try:
                for _ in range(25):
                    _ = traced(model, inputs, ["0.act"], Classes([0])).gradients
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert state_of(shared) == before

    def test_two_threads_at_one_model(self) -> None:
        """One at a time; without the lock the hooks of the one would see the pass of the other."""
        model = messy()
        inputs = [torch.randn(1, 3, 8, 8) for _ in range(2)]
        alone = [traced(model, x, ["act"], Classes([0])).activations for x in inputs]
        before = state_of(model)
        wrong = []

        def work(n: int) -> None:
            for _ in range(20):
                if not torch.equal(traced(model, inputs[n], ["act"], Classes([0])).activations, alone[n]):
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert state_of(model) == before

    def test_somebody_elses_pass_is_not_captured(self) -> None:
        """Another thread may run the model meanwhile: its pass goes through our hooks, and stays its own."""
        model = PooledNet().eval()
        x, other = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
        seen = []

        def elsewhere(module, args):
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: seen.append(model(other).requires_grad))
                thread.start()
                thread.join()

        model.head.register_forward_pre_hook(elsewhere)
        trace = traced(model, x, ["act"], Predicted())
        torch.testing.assert_close(trace.activations.squeeze(1), model.act(model.features(x)).detach())
        assert len(seen) == 1


class TestNeverSilentlyNothing:
    def test_a_layer_that_is_not_there(self) -> None:
        with pytest.raises(LayerNotFound, match="closest: 'act'"):
            traced(PooledNet(), torch.randn(1, 3, 4, 4), ["acts"], Predicted())

    def test_a_layer_that_does_not_run(self) -> None:
        class Listed(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1)])
                self.attention = nn.MultiheadAttention(4, 2)

            def forward(self, x):
                self.attention(*[torch.randn(2, 1, 4)] * 3)
                return super().forward(self.blocks[0].forward(x))

        model = Listed()
        for layer, reason in [
            ("blocks", "ModuleList"),
            ("blocks.0", ".forward directly"),
            ("attention.out_proj", "parent"),
        ]:
            with pytest.raises(NotFired, match=reason):
                traced(model, torch.randn(1, 3, 4, 4), [layer], Predicted())

    def test_a_layer_that_runs_twice(self) -> None:
        class Twice(PooledNet):
            def forward(self, x):
                return self.head(self.act(self.act(self.features(x)) - 1).mean((2, 3)))

        with pytest.raises(AmbiguousCall, match="called 2 times"):
            traced(Twice(), torch.randn(1, 3, 4, 4), ["act"], Predicted())

    def test_a_layer_without_a_grid(self) -> None:
        with pytest.raises(NoSpatialLayer, match=r"'head' returned \(N, 5\) for 1 picture of 4 x 4: no grid"):
            traced(PooledNet(), torch.randn(1, 3, 4, 4), ["head"], Predicted())

    def test_a_layer_that_returns_a_tuple(self) -> None:
        class Tupled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two, self.head = Two(), nn.Linear(3, 2)

            def forward(self, x):
                return self.head(self.two(x)[0].mean((2, 3)))

        class Two(nn.Module):
            def forward(self, x):
                return x * 2, x

        with pytest.raises(NoSpatialLayer, match=r"returned tuple of .* fits 2 layouts: .*\(of its part '0'\)"):
            traced(Tupled(), torch.randn(1, 3, 4, 4), ["two"], Predicted())

    def test_nan(self) -> None:
        """Peers: a NaN map, or a NaN hidden by nansum."""
        x = torch.randn(3, 3, 4, 4)
        x[1, 0, 0, 0] = torch.nan
        with pytest.raises(NotFinite, match="the input has them already"):
            traced(PooledNet(), x, ["act"], Predicted())
        model = PooledNet()
        with torch.no_grad():
            model.features[2].weight[:] = torch.inf
        with pytest.raises(NotFinite, match=r"'act' returned NaN or infinity in sample 0, 1; the input has none"):
            traced(model, x[[0, 2]], ["act"], Predicted())

    @pytest.mark.parametrize("bad", [None, [1.0], torch.zeros(3), torch.zeros(0, 3, 4, 4)])
    def test_inputs_that_are_none(self, bad) -> None:
        with pytest.raises(InputError):
            traced(PooledNet(), bad, ["act"], Predicted())

    def test_an_error_of_the_models_own_says_what_it_was_given(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            traced(PooledNet().double(), torch.randn(1, 3, 4, 4), ["act"], Predicted())
        assert caught.value.__notes__ == [
            "PooledNet was given torch.float32 of shape (1, 3, 4, 4) on cpu; its parameters are torch.float64 on cpu"
        ]

    def test_models_that_are_none(self) -> None:
        with pytest.raises(InputError, match="model is a function"):
            inspectable_module(F.relu)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.trace(PooledNet().eval(), torch.randn(1, 3, 4, 4))
        with pytest.raises(InputError, match="scripted or traced"):
            inspectable_module(scripted)


class TestCompiled:
    """Hooks added after a compiled model has run are ignored by torch; here they are not."""

    @pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
    def test_after_it_was_compiled(self, how: str) -> None:
        torch._dynamo.reset()
        counters.clear()
        plain = PooledNet().eval()
        model: nn.Module = PooledNet().eval()
        model.load_state_dict(plain.state_dict())
        if how == "wrapped":
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        elif how == "in place":
            model.compile(backend="eager")
        else:
            model.features = torch.compile(model.features, backend="eager")
        x = torch.randn(1, 3, 5, 5)
        with torch.no_grad():
            model(x)
        assert counters["stats"]["unique_graphs"] >= 1, "a graph was compiled before the hooks came"
        layer = "features.2" if how != "a part" else "features._orig_mod.2"
        got = traced(model, x, [layer], Classes([1]))
        expected = traced(plain, x, ["features.2"], Classes([1]))
        torch.testing.assert_close(got.gradients, expected.gradients)
        torch.testing.assert_close(got.activations, expected.activations)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_accumulates_in_float32_at_least(self, dtype: torch.dtype) -> None:
        model = PooledNet().to(dtype).eval()
        trace = traced(model, torch.randn(1, 3, 5, 5, dtype=dtype), ["act"], TopClasses(2))
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert trace.activations.dtype == trace.gradients.dtype == trace.scores.dtype == wanted

    def test_under_autocast(self) -> None:
        model = PooledNet().eval()
        x = torch.randn(1, 3, 5, 5)
        with torch.autocast("cpu", torch.bfloat16):
            trace = traced(model, x, ["act"], Classes([1]))
        exact = traced(model, x, ["act"], Classes([1]))
        torch.testing.assert_close(trace.gradients, exact.gradients, rtol=0.02, atol=1e-3)


def suggest_layer(model: nn.Module, inputs: torch.Tensor, **options: bool) -> Suggestion:
    return suggest_layer_for(model, as_model_call(model, inputs), **options)


class TestSuggestedLayer:
    def test_the_last_grid_before_the_head(self) -> None:
        assert suggest_layer(PooledNet(), torch.randn(1, 3, 8, 8)).layer == "act"

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("mobilenet_v2", "features.18"),
            ("resnet18", "layer4"),
            ("densenet121", "features.norm5"),
            ("efficientnet_b0", "features.8"),
            ("convnext_tiny", "features.7"),
            ("vgg11", "avgpool"),
        ],
    )
    def test_of_well_known_networks(self, name: str, layer: str) -> None:
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.get_model(name, weights=None)
        found = suggest_layer(model, torch.randn(1, 3, 224, 224))
        assert found.layer == layer
        assert "before the head" in found.reason

    def test_is_remembered(self) -> None:
        model = PooledNet()
        passes = []
        model.register_forward_hook(lambda *_: passes.append(1))
        for _ in range(3):
            suggest_layer(model, torch.randn(4, 3, 8, 8))
        suggest_layer(model, torch.randn(4, 3, 9, 9))
        assert len(passes) == 2  # what is returned, and on what of it the score depends
        suggest_layer(model, torch.randn(4, 3, 9, 9), anew=True)
        assert len(passes) == 4

    def test_an_activation_rather_than_what_it_overwrites(self) -> None:
        class Flat(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
                self.nothing, self.head = nn.Identity(), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.nothing(self.relu(self.bn(self.conv(x)))).mean((2, 3)))

        assert suggest_layer(Flat(), torch.randn(1, 3, 8, 8)).layer == "relu"

    @pytest.mark.parametrize("inplace", [False, True])
    def test_a_module_that_is_used_twice_is_passed_over(self, inplace: bool) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=inplace)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))

        model, x = Shared(), torch.randn(1, 3, 8, 8)
        assert suggest_layer(model, x).layer == "b"
        _ = traced(model, x, ["b"], Predicted()).gradients

    def test_refusals(self) -> None:
        with pytest.raises(NoSpatialLayer, match="no layer of Sequential returns a grid"):
            suggest_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))


class TestChannelsLast:
    """(N, h, w, C) read as (N, C, h, w) would give a heatmap of height against channels."""

    @pytest.mark.parametrize(
        ("shape", "given", "expected"),
        [
            ((1, 56, 56, 96), (1, 3, 224, 224), True),
            ((1, 7, 7, 768), (1, 3, 224, 224), True),
            ((1, 14, 10, 64), (1, 3, 224, 160), True),
            ((1, 64, 14, 10), (1, 3, 224, 160), False),
            ((1, 2048, 7, 7), (1, 3, 224, 224), False),
            ((1, 7, 7, 7), (1, 3, 224, 224), False),
            ((1, 256, 6, 6), (1, 3, 227, 227), False),
            ((1, 32, 8, 40), (1, 1, 64, 80), False),  # a stride of its own for each axis, as for spectrograms
            ((1, 12, 9), (1, 3, 36), False),
        ],
    )
    def test_what_is_taken_for_it(self, shape, given, expected) -> None:
        assert is_channels_last(nn.Identity(), torch.empty(shape), torch.empty(given)) is expected

    @pytest.mark.parametrize("layer", ["0", "1", "2"])
    def test_a_stride_of_its_own_for_each_axis_is_no_reason(self, layer: str) -> None:
        """As for spectrograms: (32, 32, 128) might be height, width and channels, but comes out of a convolution."""
        model = nn.Sequential(
            nn.Conv2d(1, 32, (5, 3), stride=(4, 1), padding=(2, 1)),
            nn.BatchNorm2d(32),
            nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
        trace = traced(model, torch.randn(1, 1, 128, 128), [layer], Predicted())
        assert trace.activations.shape == (1, 1, 32, 32, 128)


class TestCheckpointed:
    """A part that runs once more on the way back."""

    class Net(PooledNet):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.bn, self.reentrant = nn.BatchNorm2d(6), reentrant

        def forward(self, x):
            a = self.act(self.features(x))
            return self.head(checkpoint(self.bn, a, use_reentrant=self.reentrant).mean((2, 3)))

    def test_runs_as_the_first_time(self) -> None:
        model = self.Net(reentrant=False).train()
        x = torch.randn(2, 3, 5, 5)
        before = state_of(model)
        gradients = traced(model, x, ["act"], TopClasses(2)).gradients
        assert state_of(model) == before
        model.eval()
        a = model.act(model.features(x)).detach().requires_grad_()
        (expected,) = torch.autograd.grad(model.head(model.bn(a).mean((2, 3))).max(1).values.sum(), a)
        torch.testing.assert_close(gradients[:, 0], expected)

    def test_what_torch_cannot_do_is_named(self) -> None:
        model = self.Net(reentrant=True)
        with pytest.raises(GradUnavailable, match="checkpointed part"):
            _ = traced(model, torch.randn(2, 3, 5, 5), ["act"], Predicted()).gradients


def test_a_model_whose_samples_see_each_other_is_pointed_out() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(Notice, match="'1' normalises with the statistics of the batch"):
        traced(model, torch.randn(2, 3, 6, 6), ["1"], Predicted())
    traced(model, torch.randn(1, 3, 6, 6), ["1"], Predicted())


def test_notices_point_at_the_callers_line() -> None:
    import torchpeek as tp

    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(Notice) as caught:
        tp.explain(model, torch.randn(2, 3, 6, 6), layer="1")
    assert caught[0].filename == __file__


def test_requests_that_cannot_be(net: SplitNet) -> None:
    trace = traced(net, X, ["prefix"], Predicted())
    with pytest.raises(LayerNotFound, match="it holds 'prefix'"):
        trace.only("mix")
    with pytest.raises(InputError, match="rows= says"):
        trace.again(X[:1])
    with pytest.raises(InputError, match="0 to 1"):
        trace.again(X, rows=torch.tensor([0, 2]))
    for trials, batch in [(0, 8), (1, 0)]:
        with pytest.raises(InputError, match="at least 1"):
            trace.rescore(lambda x, rows, trials: x, trials, batch=batch)
    assert "SplitNet at 'prefix'" in repr(trace)
    assert len(repr(trace)) < 200
    with torch.device("meta"):
        nowhere = PooledNet()
    with pytest.raises(InputError, match="meta device"):
        inspectable_module(nowhere)


def test_layer_calls_say_what_every_layer_returns() -> None:
    model = PooledNet()
    rows = {row.name: row for row in layer_calls(model, as_model_call(model, torch.randn(2, 3, 8, 7)))}
    assert rows["act"].output == "(N, 6, 8, 7)"
    assert rows["head"].output == "(N, 5)"
    assert rows["head"].parameters == 6 * 5 + 5
    assert rows["features"].parameters == rows["features.0"].parameters + rows["features.2"].parameters
    assert rows["act"].calls == 1
    assert all(row.output is None for row in layer_calls(model, None))
