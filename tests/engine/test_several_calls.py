"""One call of a layer that is called several times, against plain hooks and plain autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks.several_calls import DependentPair, Frames, SampleBySample, SharedAct, Siamese, Tied
from replicas.calls import changing, outputs_and_gradients
from torchpeek.errors import AmbiguousCall, LayerNotFound, NotFired, Notice

pytestmark = pytest.mark.filterwarnings("error::torchpeek.errors.Notice")  # no whole passes instead of replays


def pictures(count: int = 2, *, seed: int = 0, shape: tuple[int, ...] = (3, 16, 12)) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def siamese_inputs(picture: str) -> tuple[tuple[torch.Tensor, torch.Tensor], tp.Arguments]:
    a, b = pictures(seed=1), pictures(seed=2)
    return (a, b), tp.Arguments((a, b), picture=picture)


# A network, its inputs, the layer, and how often it is called.
CASES = {
    "shared activation": (SharedAct, lambda: (pictures(),), "act", 3),
    "activation in place": (lambda: SharedAct(nn.ReLU(inplace=True)), lambda: (pictures(),), "act", 3),
    "tied block": (Tied, lambda: (pictures(),), "block", 3),
    "layer of a tied block": (Tied, lambda: (pictures(),), "block.0", 3),
    "pair": (DependentPair, lambda: (pictures(seed=1), pictures(seed=2)), "backbone.layer4", 2),
    "layer of the pair's backbone": (
        DependentPair,
        lambda: (pictures(seed=1), pictures(seed=2)),
        "backbone.layer1.0",
        2,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    build, inputs, layer, calls = CASES[request.param]
    torch.manual_seed(0)
    return build().double().eval(), inputs(), layer, calls


class TestOneCall:
    def test_gradients_are_those_of_that_call(self, case) -> None:
        model, inputs, layer, calls = case
        expected = outputs_and_gradients(model, inputs, model.get_submodule(layer), lambda y: y[:, 1].sum())
        assert len(expected) == calls
        for call in range(-calls, calls):
            trace = tp.trace(model, tp.Arguments(inputs, picture="0"), layer=f"{layer}[{call}]", target=1)
            output, gradient = expected[call]
            assert trace.layer == f"{layer}[{call}]"
            if "inplace" not in repr(model):  # plain hooks see what the next operation wrote
                torch.testing.assert_close(trace.activations[:, 0], output, rtol=0, atol=1e-12)
            torch.testing.assert_close(trace.gradients[:, 0], gradient, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_several_calls_of_one_pass(self, case, frozen: bool) -> None:
        model, inputs, layer, calls = case
        expected = outputs_and_gradients(model, inputs, model.get_submodule(layer), lambda y: y[:, 1].sum())
        model.requires_grad_(not frozen)
        names = [f"{layer}[{call}]" for call in reversed(range(calls))]
        with torch.inference_mode():
            trace = tp.trace(model, tp.Arguments(inputs, picture="0"), layer=names, target=1)
        for call in range(calls):
            gradients = trace.gradients_at[f"{layer}[{call}]"]
            torch.testing.assert_close(gradients[:, 0], expected[call][1], rtol=0, atol=1e-12)
            torch.testing.assert_close(trace.only(f"{layer}[{call}]").gradients, gradients)

    def test_ablations_are_those_of_whole_passes(self, case) -> None:
        model, inputs, layer, calls = case
        for call in (*range(calls), -1):
            trace = tp.trace(model, tp.Arguments(inputs, picture="0"), layer=f"{layer}[{call}]", target=[[0, 2]] * 2)
            found = trace.ablate(lambda a, rows, trials: a.flip(-1) * (trials + 1).view(-1, 1, 1, 1) * 0.3, 3)
            for trial in range(3):
                index, factor = call % calls, 0.3 * (trial + 1)
                with (
                    torch.no_grad(),
                    changing(model.get_submodule(layer), index, lambda output, factor=factor: output.flip(-1) * factor),
                ):
                    scores = model(*inputs)[:, [0, 2]]
                torch.testing.assert_close(found[:, trial], scores, rtol=0, atol=1e-12)

    def test_a_further_pass_takes_the_same_call(self, case) -> None:
        model, inputs, layer, calls = case
        expected = outputs_and_gradients(
            model, (inputs[0] * 0.5, *inputs[1:]), model.get_submodule(layer), lambda y: y[:, 1].sum()
        )
        for call in (0, calls - 1, -1):
            trace = tp.trace(model, tp.Arguments(inputs, picture="0"), layer=f"{layer}[{call}]", target=1)
            again = trace.again(inputs[0] * 0.5)
            torch.testing.assert_close(again.gradients[:, 0], expected[call][1], rtol=0, atol=1e-12)

    def test_the_model_is_left_as_found(self, case) -> None:
        model, inputs, layer, _ = case
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        tp.explain(model, tp.Arguments(inputs, picture="0"), layer=f"{layer}[1]", method="ablationcam")
        with pytest.raises(NotFired):
            tp.explain(model, tp.Arguments(inputs, picture="0"), layer=f"{layer}[9]")
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class TestSiamese:
    @pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
    @pytest.mark.parametrize(("picture", "call"), [("0", 0), ("1", 1), ("1", -1), ("0", -2)])
    def test_each_picture_has_its_map(self, method: str, picture: str, call: int) -> None:
        torch.manual_seed(0)
        model = Siamese().double().eval()
        inputs, arguments = siamese_inputs(picture)
        classes = model(*inputs).argmax(1, keepdim=True)
        expected = outputs_and_gradients(model, inputs, model.backbone.layer4, lambda y: y.gather(1, classes).sum())
        output, gradient = expected[call]
        weights = {
            "gradcam": gradient.mean((2, 3), keepdim=True),
            "layercam": gradient.clamp(min=0),
            "hirescam": gradient,
        }[method]
        heatmap = tp.explain(model, arguments, method=method, layer=f"backbone.layer4[{call}]")
        torch.testing.assert_close(heatmap.values, (weights * output).sum(1, keepdim=True), rtol=0, atol=1e-10)
        assert heatmap.provenance.layer == f"backbone.layer4[{call}]"

    def test_the_map_of_one_picture_follows_that_picture(self) -> None:
        model = Siamese().double().eval()
        (a, b), _ = siamese_inputs("0")
        first = tp.explain(model, tp.Arguments((a, b), picture="0"), layer="backbone.layer4[0]", target=1)
        other = tp.explain(model, tp.Arguments((a.flip(-1), b), picture="0"), layer="backbone.layer4[0]", target=1)
        second = tp.explain(model, tp.Arguments((a.flip(-1), b), picture="1"), layer="backbone.layer4[1]", target=1)
        assert not torch.allclose(first.values, other.values)
        assert not torch.allclose(other.values, second.values)

    def test_evaluate_runs_the_method_at_that_call(self) -> None:
        torch.manual_seed(0)
        model = DependentPair().double().eval()
        _, arguments = siamese_inputs("0")
        found = [
            tp.evaluate(
                model,
                arguments,
                tp.explain(model, arguments, layer=f"backbone.layer4[{call}]"),
                metrics=["max-sensitivity"],
            )["max-sensitivity"].values
            for call in (0, -2, 1)
        ]
        torch.testing.assert_close(found[0], found[1])
        assert bool((found[0] > 1e-6).all())
        assert not torch.allclose(found[0], found[2])


class TestErrors:
    def test_a_layer_of_several_calls_says_which_there_are(self) -> None:
        with pytest.raises(AmbiguousCall, match=r"'act' was called 3 times.*'act\[0\]' to 'act\[2\]'"):
            tp.explain(SharedAct(), torch.rand(1, 3, 8, 8), layer="act")

    @pytest.mark.parametrize("call", [3, -4])
    def test_a_call_that_does_not_exist(self, call: int) -> None:
        with pytest.raises(NotFired, match=r"no call 'act\[-?\d\]'.* was called 3 times.*'act\[0\]' to 'act\[2\]'"):
            tp.explain(SharedAct(), torch.rand(1, 3, 8, 8), layer=f"act[{call}]")

    def test_a_layer_that_was_called_once_has_call_0(self) -> None:
        model, x = SharedAct(), torch.rand(1, 3, 8, 8)
        one, same = tp.explain(model, x, layer="one"), tp.explain(model, x, layer="one[0]")
        torch.testing.assert_close(one.values, same.values)
        with pytest.raises(NotFired, match=r"called once.*'one\[0\]'"):
            tp.explain(model, x, layer="one[1]")

    def test_a_set_of_characters_is_no_glob(self) -> None:
        model, x = Siamese(), torch.rand(1, 3, 8, 8)
        for selection in ("backbone.layer[14]", "backbone.layer[1-4]", "backbone.layer[14].0"):
            with pytest.raises(LayerNotFound, match=r"re\.compile"):
                tp.explain(model, tp.Arguments((x, x)), layer=selection)


class TestNumberOfCalls:
    @pytest.mark.parametrize("count", [1, 3])
    def test_a_call_from_the_end_where_the_batch_decides_how_many_there_are(self, count: int) -> None:
        torch.manual_seed(0)
        model, x = SampleBySample().double().eval(), pictures(count)
        expected = outputs_and_gradients(model, (x,), model.act, lambda y: y[:, 1].sum())
        for _ in range(2):
            trace = tp.trace(model, x, layer="act[-1]", target=1)
            torch.testing.assert_close(trace.gradients[:, 0], expected[-1][1], rtol=0, atol=1e-12)

    def test_changes_where_the_batch_decides_which_call_it_is(self) -> None:
        model, x = SampleBySample().double().eval(), pictures(3)
        trace = tp.trace(model, x, layer="act[3]", target=1)
        with pytest.warns(Notice, match="whole passes"):
            found = trace.ablate(lambda a, rows, trials: a * 0.5, 2, batch=3)
        with torch.no_grad(), changing(model.act, 3, lambda output: output * 0.5):
            torch.testing.assert_close(found, model(x)[:, None, 1:].expand(-1, 2, -1))
        with (
            pytest.warns(Notice),
            pytest.raises(AmbiguousCall, match=r"6 samples calls 'act' 7 times.*'act\[3\]' is not the same call"),
        ):
            trace.ablate(lambda a, rows, trials: a * 0.5, 2, batch=6)

    def test_frames_of_a_recurrent_network(self) -> None:
        """Also of another number of frames, with the same trace's methods."""
        torch.manual_seed(0)
        model = Frames().double().eval()
        for frames in (3, 5):
            x = pictures(2, shape=(frames, 3, 16, 12))
            expected = outputs_and_gradients(model, (x,), model.encoder.layer4, lambda y: y[:, 1].sum())
            for call in (0, 1, -1):
                layer = f"encoder.layer4[{call}]"
                trace = tp.trace(model, x, layer=layer, layout="channels-first 4x3", target=1)
                torch.testing.assert_close(trace.activations[:, 0], expected[call][0], rtol=0, atol=1e-12)
                torch.testing.assert_close(trace.gradients[:, 0], expected[call][1], rtol=0, atol=1e-12)
