"""record(keep=...): other dtypes and devices, reductions, running statistics, callbacks, and files."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError, LayerNotFound
from torchpeek.hooks.recording.running_statistics import RunningStatistics


@pytest.fixture
def model() -> PooledNet:
    torch.manual_seed(0)
    return PooledNet().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def outputs_of(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    with torch.no_grad(), tp.record(model, layer, snapshot="clone") as tape:
        model(x)
    output: Tensor = tape[layer].output
    return output


class TestStored:
    def test_another_type(self, model, x) -> None:
        with tp.record(model, "act", keep=tp.keep.Stored(dtype=torch.float16)) as tape:
            model(x)
        assert torch.equal(tape["act"].output, outputs_of(model, x, "act").half())

    def test_a_reduction_by_name_or_as_a_plain_function(self, model, x) -> None:
        expected = outputs_of(model, x, "act").mean((2, 3))
        for keep in (tp.keep.gap, tp.keep.Stored(reduce=tp.keep.gap)):
            with tp.record(model, "act", keep=keep) as tape:
                model(x)
            torch.testing.assert_close(tape["act"].output, expected)
            assert tape.nbytes == 2 * 6 * 4

    def test_a_function_that_gives_a_number(self, model, x) -> None:
        with tp.record(model, "act", keep=lambda t: float(t.max())) as tape:
            model(x)
        assert tape["act"].output == float(outputs_of(model, x, "act").max())
        assert str(tape["act"].output) in repr(tape)

    def test_what_is_reduced_is_no_reference_to_what_is_written_into(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
        x = torch.randn(1, 3, 4, 4)
        with torch.no_grad():
            before = model[0](x)
        with tp.record(model, "0", keep=lambda t: t[:, :2]) as tape:  # a view
            model(x)
        assert torch.equal(tape["0"].output, before[:, :2])

    def test_gradients_are_kept_likewise(self, model, x) -> None:
        with tp.record(model, "act", gradients=True, snapshot="clone") as plain:
            model(x).sum().backward()
        with tp.record(model, "act", gradients=True, keep=tp.keep.gap) as tape:
            model(x).sum().backward()
        torch.testing.assert_close(tape["act"].grad_output, plain["act"].grad_output.mean((2, 3)))

    def test_clone_for_one_layer(self, model, x) -> None:
        with tp.record(model, "act", snapshot="alias", keep=tp.keep.Stored(clone=True)) as tape:
            y = model.act(model.features(x))
            y.zero_()
        assert tape["act"].output.any()


class TestRunning:
    def test_over_all_passes_whatever_passes_says(self, model) -> None:
        batches = [torch.randn(2, 3, 6, 6) for _ in range(3)]
        with tp.record(model, ["act", "head"], keep=tp.keep.Running()) as tape:
            for batch in batches:
                model(batch)
        expected = outputs_of(model, torch.cat(batches), "act").double()
        found = tape["act"].output
        assert isinstance(found, RunningStatistics)
        assert found.calls == 3
        torch.testing.assert_close(found.mean, expected.mean((0, 2, 3)), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.zero_share, (expected == 0).double().mean((0, 2, 3)))
        assert tape["head"].output.channels == 5
        assert tape.nbytes == 0

    def test_gradients_and_inputs_have_their_own(self, model) -> None:
        batches = [torch.randn(2, 3, 6, 6) for _ in range(3)]
        kept = []
        with tp.record(model, "act", inputs=True, gradients=True, keep=tp.keep.Running()) as tape:
            for batch in batches:
                with tp.record(model, "act", gradients=True, inputs=True, snapshot="clone") as plain:
                    model(batch).square().sum().backward()
                kept.append((plain["act"].grad_output, plain["act"].input))
        gradients, inputs = (torch.cat(each).double() for each in zip(*kept, strict=True))
        torch.testing.assert_close(tape["act"].grad_output.mean, gradients.mean((0, 2, 3)), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(tape["act"].input.mean, inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-7)

    def test_each_call_in_a_pass_has_its_own(self) -> None:
        """They may differ in everything, also in the number of channels."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act = nn.ReLU()

            def forward(self, x):
                return self.act(torch.cat([self.act(x), x], 1) - 1)

        net = Twice()
        for passes in ("last", "all"):
            with tp.record(net, "act", keep=tp.keep.Running(), passes=passes) as tape:
                for _ in range(3):
                    net(torch.tensor([[2.0, 0.5]]))
            assert len(tape["act"]) == 2
            assert tape["act"][0].output.calls == tape["act"][1].output.calls == 3
            assert tape["act"][0].output.max.tolist() == [2, 0.5]
            assert tape["act"][1].output.max.tolist() == [1, 0, 1, 0]

    def test_a_part_of_the_model_that_is_run_alone(self, model) -> None:
        with tp.record(model, "features.1", keep=tp.keep.Running()) as tape:
            for _ in range(3):
                model.features(torch.randn(2, 3, 6, 6))
        assert tape["features.1"].output.calls == 3

    def test_tokens_have_their_channels_last(self) -> None:
        net = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7))
        with tp.record(net, "*", keep=tp.keep.Running()) as tape:
            net(torch.randn(2, 5, 4))
        assert [tape[name].output.channels for name in tape] == [7, 7]

    def test_an_error_says_which_layer(self, model) -> None:
        with (
            pytest.raises(InputError, match="channels") as caught,
            tp.record(model, "act", keep=tp.keep.Running(channel_axis=0)),
        ):
            model(torch.randn(2, 3, 6, 6))
            model(torch.randn(3, 3, 6, 6))
        assert caught.value.__notes__ == ["in the statistics of the output of layer 'act'"]


class TestCallback:
    def test_is_given_everything_and_nothing_is_kept(self, model, x) -> None:
        seen: list[tuple[str, str, int, tuple[int, ...]]] = []

        def see(captured: tp.keep.Captured) -> None:
            seen.append((captured.layer, captured.part, captured.order, tuple(captured.tensor.shape)))

        with tp.record(model, ["act", "head"], inputs=True, gradients=True, keep=tp.keep.Callback(see)) as tape:
            model(x).sum().backward()
        assert seen[:2] == [("act", "input.0", 0, (2, 6, 6, 6)), ("act", "output", 0, (2, 6, 6, 6))]
        assert sorted(each[:2] for each in seen[4:]) == [
            ("act", "grad_input.0"),
            ("act", "grad_output"),
            ("head", "grad_input.0"),
            ("head", "grad_output"),
        ]
        assert tape["act"].output is None
        assert tape.nbytes == 0

    def test_its_own_exception_comes_through_with_the_layers_name(self, model, x) -> None:
        def broken(captured: tp.keep.Captured) -> None:
            raise ZeroDivisionError("mine")

        with (
            pytest.raises(ZeroDivisionError, match="mine") as caught,
            tp.record(model, "act", keep=tp.keep.Callback(broken)),
        ):
            model(x)
        assert caught.value.__notes__ == ["in the `keep` function of the output of layer 'act'"]
        assert not model.act._forward_hooks


class TestBySelection:
    def test_the_first_that_fits(self, model, x) -> None:
        keep = {"act": tp.keep.gap, nn.ReLU: tp.keep.Running(), ("head",): tp.keep.Stored(dtype=torch.float64)}
        with tp.record(model, "*", keep=keep) as tape:
            model(x)
        assert tape["act"].output.shape == (2, 6)
        assert isinstance(tape["features.1"].output, RunningStatistics)
        assert tape["head"].output.dtype == torch.float64
        assert tape["features.0"].output.shape == (2, 4, 6, 6)

    def test_refusals(self, model) -> None:
        with pytest.raises(LayerNotFound, match="no layer of that selection is recorded"):
            tp.record(model, "act", keep={"head": tp.keep.gap})
        with pytest.raises(InputError, match=r"tp\.keep\.Stored"):
            tp.record(model, "act", keep=3)  # type: ignore[arg-type]


class TestMaxBytes:
    def test_the_rest_goes_to_files_and_comes_back(self, model, x) -> None:
        with tp.record(model, "*", snapshot="clone") as plain:
            model(x)
        one = 2 * 6 * 6 * 6 * 4
        with tp.record(model, "*", snapshot="clone", max_bytes=2 * one) as tape:
            model(x)
        assert plain.nbytes > 2 * one
        assert tape.nbytes <= 2 * one
        for name in plain:
            assert torch.equal(tape[name].output, plain[name].output), name

    def test_gradients_and_all_passes_too(self, model, x) -> None:
        with tp.record(model, "act", passes="all", gradients=True, max_bytes=0) as tape:
            for _ in range(3):
                model(x).sum().backward()
        assert tape.nbytes == 0
        assert [call.grad_output.shape for call in tape["act"]] == [(2, 6, 6, 6)] * 3
        assert torch.equal(tape["act"][2].output, outputs_of(model, x, "act"))

    def test_each_pass_starts_anew(self, model, x) -> None:
        one = 2 * 6 * 6 * 6 * 4
        with tp.record(model, "act", snapshot="clone", max_bytes=one) as tape:
            for _ in range(3):
                model(x)
                assert tape.nbytes == one

    def test_a_view_of_a_large_tensor_counts_as_the_whole(self) -> None:
        model = nn.Sequential(nn.Identity(), nn.Identity())
        with tp.record(model, "*", snapshot="alias", max_bytes=3999) as tape:
            model(torch.ones(1000)[:1])
        assert tape.nbytes == 0
        assert tape["0"].output.tolist() == [1]

    def test_refusals(self, model) -> None:
        with pytest.raises(InputError, match="max_bytes is -1"):
            tp.record(model, "act", max_bytes=-1)


def test_memory_goes_at_once_without_the_cycle_collector(model, x) -> None:
    gc.collect()
    gc.disable()
    try:
        with tp.record(model, "*", inputs=True, gradients=True, parameters=True) as tape:
            loss = model(x).sum()
            loss.backward()
        alive = [weakref.ref(tape), weakref.ref(tape["act"][0])]
        del tape, loss
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()
