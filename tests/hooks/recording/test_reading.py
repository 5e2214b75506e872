"""A recording as a mapping, slices of calls, copies and pickles, packed sequences, and the tables that are printed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import AmbiguousCall, InputError, LayerNotFound, NotFired, StaleCapture

Copier = Callable[[Any], Any]


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIERS: list[Copier] = [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy, saved, copy.copy]


def recorded(**options: Any) -> tuple[PooledNet, Any]:
    torch.manual_seed(0)
    model = PooledNet().double()
    with tp.record(model, "*", **options) as tape:
        score = model(torch.randn(2, 3, 4, 4, dtype=torch.float64)).sum()
        if options.get("gradients"):
            score.backward()
    return model, tape


class TestMapping:
    def test_items_keys_values_and_get(self) -> None:
        model, tape = recorded()
        names = [name for name, _ in model.named_modules() if name]
        assert list(tape.keys()) == names
        assert [name for name, _ in tape.items()] == names
        assert [tuple(calls.output.shape) for calls in tape.values()] == [
            tuple(tape[name].output.shape) for name in names
        ]
        assert tape.get("nope") is None
        assert tape.get("nope", 3) == 3
        assert torch.equal(tape.get("act").output, tape["act"].output)
        assert "act" in tape
        assert 3 not in tape
        with pytest.raises(LayerNotFound, match="3"):
            tape[3]

    def test_it_is_what_it_was(self) -> None:
        _, tape = recorded()
        assert len({tape, tape}) == 1
        assert tape == tape
        assert tape != recorded()[1]

    def test_completions(self) -> None:
        _, tape = recorded(gradients=True)
        assert tape._ipython_key_completions_() == list(tape)

    def test_gradients_by_layer(self) -> None:
        model = PooledNet()
        with tp.record(model, "act", gradients=True) as tape:
            gradients = tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert gradients.get("nope") is None
        assert gradients._ipython_key_completions_() == ["act"]


class TestSlices:
    def tape(self) -> Any:
        model = nn.Sequential(nn.Linear(1, 1, bias=False))
        with torch.no_grad(), tp.record(model, "0", passes="all") as tape:
            model[0].weight.fill_(1)
            for number in range(5):
                model(torch.full((1, 1), float(number)))
        return tape

    @pytest.mark.parametrize("index", [slice(1, None), slice(-2, None), slice(None, None, -2), slice(1, 3), slice(0)])
    def test_as_of_a_list(self, index: slice) -> None:
        calls = self.tape()["0"][index]
        assert [call.output.item() for call in calls] == [0.0, 1.0, 2.0, 3.0, 4.0][index]
        assert [row["call"] for row in calls.cells()] == [f"0[{number}]" for number in range(5)][index]

    def test_of_one_and_of_none(self) -> None:
        calls = self.tape()["0"]
        assert calls[1:3][1:].output.item() == 2
        assert calls[1:3][1:].cells()[0]["call"] == "0[2]"
        with pytest.raises(AmbiguousCall, match=r"\[0\] to \[1\]"):
            _ = calls[1:3].output
        with pytest.raises(NotFired, match=r"of the 5 calls of layer '0', .* selects none"):
            _ = calls[7:].output
        assert len(calls[7:]) == 0

    def test_numbers_of_other_libraries(self) -> None:
        numpy = pytest.importorskip("numpy")
        calls = self.tape()["0"]
        assert calls[numpy.int64(2)].output.item() == calls[torch.tensor(2)].output.item() == 2
        with pytest.raises(InputError, match=r"by a slice; got 'output'"):
            calls["output"]

    def test_what_was_not_called(self) -> None:
        tape = tp.record(nn.Sequential(nn.ReLU()), "0")
        assert len(tape["0"][1:]) == 0
        with pytest.raises(NotFired, match="not opened"):
            _ = tape["0"][1:].output


class TestCopies:
    @pytest.mark.parametrize("copier", COPIERS)
    def test_all_that_is_recorded(self, copier: Copier) -> None:
        _, tape = recorded(inputs=True, gradients=True, parameters=True)
        copied = copier(tape)
        assert list(copied) == list(tape)
        assert repr(copied) == repr(tape)
        if copier in (saved, copy.deepcopy):  # plain pickle stores each tensor apart
            assert copied.nbytes <= tape.nbytes
        for name in tape:
            for part in ("output", "input", "grad_output", "grad_input"):
                expected, got = getattr(tape[name], part), getattr(copied[name], part)
                assert (expected is None and got is None) or torch.equal(expected, got)
            for part in ("parameters", "grad_parameters"):
                torch.testing.assert_close(getattr(copied[name], part), getattr(tape[name], part), rtol=0, atol=0)

    @pytest.mark.parametrize("copier", COPIERS)
    def test_calls_and_one_call(self, copier: Copier) -> None:
        _, tape = recorded(inputs=True, gradients=True)
        for copied in (copier(tape["act"]), copier(tape["act"][0]), copier(tape["act"].at("")), copier(tape["act"][:])):
            assert torch.equal(copied.grad_output, tape["act"].grad_output)
            assert torch.equal(copied.output, tape["act"].output)
        with pytest.raises(NotFired, match="not opened"):
            _ = copier(tp.record(PooledNet(), "act")["act"]).output

    def test_without_the_model(self) -> None:
        class Local(PooledNet):
            """Cannot be pickled."""

        model = Local()
        with tp.record(model, "*", gradients=True) as tape:
            model(torch.randn(1, 3, 4, 4)).sum().backward()
        copied = pickle.loads(pickle.dumps(tape))
        del model
        for use in (copied.__enter__, copied.new_pass, lambda: copied.grad(torch.ones(()))):
            with pytest.raises(InputError, match=r"no model.*tp\.record"):
                use()
        assert torch.equal(pickle.loads(pickle.dumps(copied))["act"].output, tape["act"].output)

    def test_a_copy_has_its_own_memory_and_no_more_than_it_needs(self) -> None:
        class First(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x[:1]

        model = nn.Sequential(First())
        x = torch.randn(1000, 10)
        with tp.record(model, "0", snapshot="alias") as tape:
            model(x)
        copied = copy.deepcopy(tape)
        assert (tape.nbytes, copied.nbytes) == (40_000, 40)
        x.zero_()
        assert copied["0"].output.any()
        with pytest.raises(StaleCapture):
            _ = tape["0"].output

    def test_what_was_overwritten_stays_an_error(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
        with tp.record(model, "*", snapshot="alias") as tape:
            model(torch.randn(1, 2))
        copied = pickle.loads(pickle.dumps(tape))
        assert torch.equal(copied["1"].output, tape["1"].output)
        with pytest.raises(StaleCapture, match="snapshot='clone'"):
            _ = copied["0"].output

    def test_a_copy_of_what_was_written_into_before_it_was_recorded(self) -> None:
        class Writes(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x + 1).mul_(2).add_(1)

        model = nn.Sequential(Writes())
        with tp.record(model, "0") as tape:
            model(torch.ones(1))
        assert pickle.loads(pickle.dumps(tape))["0"].output.item() == 5

    @pytest.mark.parametrize(
        "options",
        [
            {"keep": tp.keep.Running()},
            {"keep": lambda tensor: float(tensor.sum())},
            {"keep": tp.keep.Stored(dtype=torch.float16)},
            {"max_bytes": 0},
            {"snapshot": "clone"},
            {"passes": "all"},
        ],
    )
    def test_whatever_is_stored(self, options: dict[str, Any]) -> None:
        _, tape = recorded(gradients=True, **options)
        copied = pickle.loads(pickle.dumps(tape))
        assert repr(copied) == repr(tape)
        for name in ("act", "head"):
            expected, got = tape[name].grad_output, copied[name].grad_output
            if isinstance(expected, Tensor):
                assert torch.equal(expected, got)
            elif not isinstance(expected, float):
                expected, got = expected.mean, got.mean
                assert torch.equal(expected, got)

    def test_under_inference_mode(self) -> None:
        model = PooledNet()
        with torch.inference_mode(), tp.record(model, "*") as tape:
            model(torch.randn(1, 3, 4, 4))
        for copier in COPIERS:
            assert torch.equal(copier(tape)["act"].output, tape["act"].output)

    def test_inside_the_block_and_containers(self) -> None:
        class Outputs(nn.Module):
            def forward(self, x: Tensor) -> dict[str, Any]:
                return {"largest": x.max(dim=1), "pair": (x, None), "shape": x.shape}

        model = nn.Sequential(Outputs())
        with tp.record(model, "0") as tape:
            model(torch.randn(2, 3))
            copied = pickle.loads(pickle.dumps(tape))
            model(torch.randn(4, 3))
        assert copied["0"].output["largest"].values.shape == (2,)
        assert copied["0"].output["pair"][1] is None
        assert tape["0"].output["largest"].indices.shape == (4,)


class TestPackedSequences:
    def packed(self) -> PackedSequence:
        torch.manual_seed(0)
        x = torch.randn(3, 4, 2, dtype=torch.float64)
        return pack_padded_sequence(x, [2, 4, 1], batch_first=True, enforce_sorted=False)

    @pytest.mark.parametrize("options", [{}, {"snapshot": "clone"}, {"max_bytes": 0}, {"keep": tp.keep.gap}])
    def test_outputs_inputs_and_gradients_are_unpacked_again(self, options: dict[str, Any]) -> None:
        model = nn.Sequential(nn.LSTM(2, 3).double())
        x = self.packed()
        x = x._replace(data=x.data.requires_grad_())
        with tp.record(model, "0", inputs=True, gradients=True, **options) as tape:
            output, _ = model(x)
            padded, lengths = pad_packed_sequence(output, batch_first=True)
            weights = torch.randn_like(padded)
            (padded * weights).sum().backward()
        assert lengths.tolist() == [2, 4, 1]
        call = tape["0"]
        for got, expected in ((call.output[0], padded), (call.input, pad_packed_sequence(x, batch_first=True)[0])):
            assert isinstance(got, PackedSequence)
            unpacked, of = pad_packed_sequence(got, batch_first=True)
            assert torch.equal(unpacked, expected)
            assert torch.equal(of, lengths)
        gradient, _ = pad_packed_sequence(call.grad_output[0], batch_first=True)
        mask = torch.arange(4) < lengths[:, None]
        assert torch.equal(gradient, weights * mask[..., None])
        flowed, _ = pad_packed_sequence(call.grad_input, batch_first=True)
        assert torch.equal(flowed, pad_packed_sequence(x._replace(data=x.data.grad), batch_first=True)[0])

    def test_an_edit_and_a_copy(self) -> None:
        model = nn.Sequential(nn.LSTM(2, 3).double())
        doubled = {"0": tp.edits.at("0", lambda packed: packed._replace(data=2 * packed.data))}
        with tp.record(model, "0") as before, tp.edit(model, outputs=doubled), tp.record(model, "0") as after:
            model(self.packed())
        assert torch.equal(after["0"].output[0].data, 2 * before["0"].output[0].data)
        copied = pickle.loads(pickle.dumps(before))["0"].output[0]
        assert torch.equal(copied.sorted_indices, before["0"].output[0].sorted_indices)


class TestTables:
    @pytest.mark.parametrize("longest", [4, 30, 60, 90])
    def test_all_parts_in_100_columns_with_whole_names(self, longest: int) -> None:
        model = nn.Sequential()
        for number, length in enumerate((1, longest // 2, longest)):
            model.add_module(str(number).ljust(length, "x"), nn.LSTM(3, 3, num_layers=2) if number == 1 else Last())
        for options in ({}, {"inputs": True, "gradients": True, "parameters": True}, {"keep": tp.keep.Running()}):
            with tp.record(model, "*", **options) as tape:
                output = model(torch.randn(5, 3))
                output.sum().backward()
            for text in (repr(tape), *map(repr, tape.values()), *(repr(calls[0]) for calls in tape.values())):
                assert max(map(len, text.splitlines())) <= 100
            assert all(name in repr(tape) and name in repr(tape[name]) for name in tape)
            words = {word for row in tape.cells() for text in row.values() for word in text.split()}
            assert words <= set(repr(tape).split())
            assert ("weight_ih_l0 (12, 3) float32" in repr(tape)) == bool(options.get("parameters"))

    def test_a_hand_made_table(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        with tp.record(model, "*", inputs=True, gradients=True, parameters=True) as tape:
            model(torch.ones(4, 3)).sum().backward()
        assert repr(tape).splitlines() == [
            "layer  calls  output          input           grad_output  grad_input",
            "0      1      (4, 2) float32  (4, 3) float32  the same     none arrived",
            "1      1      (4, 2) float32  (4, 2) float32  the same     the same",
            "",
            "layer  parameters                                grad_parameters",
            "0      weight (2, 3) float32, bias (2,) float32  the same",
            "1      none                                      none",
        ]
        assert repr(tape["1"]) == (
            "call  output          input           grad_output  grad_input\n"
            "1[0]  (4, 2) float32  (4, 2) float32  the same     the same\n"
            "parameters  none"
        )
        assert repr(tape["1"][0]) == (
            "Call('1', output (4, 2) float32, input (4, 2) float32, grad_output the same, grad_input the same)"
        )

    def test_calls_that_differ(self) -> None:
        model = nn.Sequential(nn.ReLU())
        with tp.record(model, "0", passes="all") as tape:
            for size in (1, 1, 2):
                model(torch.ones(size))
        assert tape.cells() == [{"layer": "0", "calls": "3", "output": "(1,) float32; (2,) float32"}]

    def test_many_layers_and_many_calls(self) -> None:
        model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(200)])
        with tp.record(model, "*", inputs=True, gradients=True, parameters=True, passes="all") as tape:
            for _ in range(100):
                model[:1](torch.ones(1, 2))
            model(torch.ones(1, 2)).sum().backward()
        assert len(repr(tape).splitlines()) == 2 * 201 + 1
        lines = repr(tape["0"]).splitlines()
        assert len(lines) == 1 + 61 + 1 + 1
        assert lines[-2] == "41 of 101 calls are not shown"

    def test_what_did_not_run_or_did_not_return(self) -> None:
        model = PooledNet()
        with tp.record(model, "*") as tape:
            pass
        assert repr(tape).count("was not called") == 6
        assert "the model was not called in the block" in repr(tape["act"])
        with tp.record(model, "*") as tape, pytest.raises(RuntimeError):
            model(torch.ones(1, 2, 4, 4))
        assert {row["layer"]: row["output"] for row in tape.cells()} == dict.fromkeys(tape, "was not called")
        with tp.record(model, "*", inputs=True) as tape, pytest.raises(RuntimeError):
            model(torch.ones(1, 2, 4, 4))
        assert tape.cells()[1] == {
            "layer": "features.0",
            "calls": "1",
            "output": "did not return",
            "input": "(1, 2, 4, 4) float32",
        }


@pytest.mark.parametrize("key", ["zz", 0, None, ("0", 0), slice(1), ["0"]])
def test_what_is_no_name_of_a_layer(key: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with tp.record(model, "0", gradients=True) as tape:
        gradients = tape.grad(model(torch.ones(1, 2)).sum())
    with pytest.raises(LayerNotFound):
        tape[key]
    if key != ("0", 0):
        with pytest.raises(LayerNotFound):
            gradients[key]
    for call in (3, "a", 0.5):
        with pytest.raises(NotFired, match=r"gradients of calls 0 to 0; got \['0', "):
            gradients["0", call]  # type: ignore[index]


class Last(nn.Module):
    """The first of several outputs, times a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Any) -> Tensor:
        return (x[0] if isinstance(x, tuple) else x) * self.scale
