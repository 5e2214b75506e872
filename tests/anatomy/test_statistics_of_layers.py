"""statistics: which layers have a row, on which axis their channels are, and what is left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import torchpeek as tp
from torchpeek.errors import InputError, Notice


class Apply(nn.Module):
    """A module without weights that applies a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class TestLayersThatCompute:
    def test_with_children(self) -> None:
        model = nn.Sequential(
            weight_norm(nn.Conv2d(3, 4, 3)), spectral_norm(nn.Conv2d(4, 4, 1)), nn.Flatten(), Lora(nn.Linear(144, 6))
        ).eval()
        x = torch.randn(2, 3, 8, 8)
        found = tp.statistics(model, [x])
        assert [row.name for row in found] == [
            *("0", "1", "2"),
            *("3.base_layer", "3.lora_A.default", "3.lora_B.default", "3"),
        ]
        with torch.no_grad():
            assert found["3"].output.mean.mean().item() == pytest.approx(model(x).mean().item(), abs=1e-6)
        assert [found[name].output.channels for name in ("0", "1", "3")] == [4, 4, 6]

    def test_attention_and_the_rectifier_in_it(self) -> None:
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        batches = [torch.randn(4, 5, 8), torch.randn(3, 7, 8)]
        found = tp.statistics(model, batches)
        assert [row.name for row in found][:5] == ["self_attn:0", "dropout1", "norm1", "linear1", "relu()"]
        assert found["self_attn:0"].output.channels == 8
        assert found["relu()"].output.channels == 16
        assert not found.left_out

    def test_quantised_layers(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5)), {nn.Linear, nn.LSTM}
            )
        found = tp.statistics(model, [torch.randn(4, 6, 3)])
        assert [row.name for row in found] == ["0", "1:0", "1:1.0", "1:1.1"]
        assert [row.output.channels for row in found] == [4, 5, 5, 5]

    def test_blocks_that_pass_on_what_a_layer_returned_have_no_row(self) -> None:
        class Block(nn.Module):
            def __init__(self, adds: bool) -> None:
                super().__init__()
                self.layer, self.adds = nn.Linear(4, 4), adds

            def forward(self, x: Tensor) -> Tensor:
                y = self.layer(x)
                return x + y if self.adds else y.unsqueeze(-1)[..., 0]

        found = tp.statistics(nn.Sequential(Block(False), Block(True)), [torch.randn(2, 4)])
        assert [row.name for row in found] == ["0.layer", "1.layer", "1"]


class Residual(nn.Module):
    """Two rectifiers as functions; a channel of the first is dead."""

    def __init__(self, rectify) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()
        self.rectify = rectify
        with torch.no_grad():
            self.one.bias[2] = -100

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.rectify(x + self.two(self.rectify(self.one(x)))) - 0.1)


class TestFunctionalRectifiers:
    @pytest.mark.parametrize(
        ("name", "rectify"),
        [
            ("relu", F.relu),
            ("relu", torch.relu),
            ("relu", lambda x: x.relu()),
            ("relu", lambda x: F.relu(x, inplace=True)),
            ("relu", torch.relu_),
            ("relu", lambda x: x.relu_()),
            ("clamp", lambda x: x.clamp(min=0)),
            ("clamp", lambda x: torch.clamp(x, 0)),
            ("clamp", lambda x: x.clamp_min(0)),
            ("relu6", F.relu6),
            ("hardtanh", lambda x: F.hardtanh(x, 0, 9)),
            ("threshold", lambda x: F.threshold(x, 0, 0)),
            ("threshold", lambda x: F.threshold_(x, 0, 0)),
            ("clamp", lambda x: x.clamp(min=torch.zeros(()))),
            ("maximum", lambda x: torch.maximum(x, torch.zeros_like(x))),
            ("maximum", lambda x: torch.max(torch.zeros(1), x)),
            ("hardsigmoid", lambda x: F.hardsigmoid(x * 100)),
        ],
    )
    def test_count_as_layers_do(self, name: str, rectify) -> None:
        torch.manual_seed(0)
        model, batches = Residual(rectify).eval(), [torch.randn(2, 3, 6, 6), torch.randn(3, 3, 6, 6)]
        found = tp.statistics(model, batches)
        assert [row.name for row in found] == ["one", f"{name}()[0]", "two", f"{name}()[1]", "act"]
        row = found[f"{name}()[0]"]
        with torch.no_grad():
            values = torch.cat([rectify(model.one(x)) for x in batches]).movedim(1, 0).flatten(1).double()
        assert row.type == "function"
        assert row.output.dead.tolist() == [False, False, True, False]
        torch.testing.assert_close(row.output.mean, values.mean(1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(row.output.zero_share, (values == 0).double().mean(1))
        assert row.output.calls == 2

    def test_functions_that_are_no_rectifiers(self) -> None:
        functions = (F.gelu, torch.tanh, F.leaky_relu, F.hardtanh, lambda x: x.clamp(min=-1))
        maxima = (lambda x: torch.maximum(x, -x), lambda x: torch.max(x, torch.ones(1)), lambda x: x - x.max())
        for function in (*functions, *maxima):
            found = tp.statistics(Residual(function).eval(), [torch.randn(2, 3, 6, 6)])
            assert [row.name for row in found] == ["one", "two", "act"]

    def test_inside_vmap(self) -> None:
        mapped = torch.func.vmap(lambda x: torch.maximum(x, -x).clamp(min=x.min()))
        found = tp.statistics(nn.Sequential(nn.Linear(3, 4), Apply(mapped)), [torch.randn(2, 3)])
        assert [row.name for row in found] == ["0", "1"]

    def test_of_a_module_that_is_one(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), Apply(F.relu), nn.ReLU())
        assert [row.name for row in tp.statistics(model, [torch.randn(2, 3, 8, 8)])] == ["0", "1", "2"]

    def test_selections(self) -> None:
        model, x = nn.Sequential(Residual(F.relu), nn.ReLU()), torch.randn(2, 3, 6, 6)
        assert [row.name for row in tp.statistics(model, [x], "0.one")] == ["0.one"]
        assert [row.name for row in tp.statistics(model, [x], exclude="0")] == ["0.one", "0.two", "0.act", "1"]

    def test_with_gradients_and_a_checkpointed_part(self) -> None:
        class Checked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part = Residual(F.relu)

            def forward(self, x: Tensor) -> Tensor:
                return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)

        found = tp.statistics(Checked().eval(), [torch.randn(2, 3, 6, 6)] * 2, loss=lambda out: out.sum())
        assert found["part.relu()[0]"].output.calls == 2


class TestChannels:
    """The axis of the channels follows from what varies, and from the layers around."""

    @pytest.mark.parametrize("sizes", [(4, 3), (4, 4), (1, 4), (2, 2)])
    def test_samples_are_no_channels(self, sizes: tuple[int, int]) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), Apply(lambda x: x.mean((1, 2, 3))))
        batches = [torch.randn(size, 3, 8, 8) for size in sizes]
        found = tp.statistics(model, batches)
        with torch.no_grad():
            values = torch.cat([model(x) for x in batches]).double()
        output = found["1"].output
        assert (output.channels, output.summary().count) == (1, sum(sizes))
        assert output.mean.item() == pytest.approx(values.mean().item(), rel=1e-5)
        assert output.std.item() == pytest.approx(values.std(correction=0).item(), rel=1e-4)

    def test_tokens_of_any_module(self) -> None:
        class Dense(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(16, 8))

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.weight.T

        found = tp.statistics(nn.Sequential(Dense(), Apply(torch.tanh)), [torch.randn(4, 10, 8)])
        assert [row.output.channels for row in found] == [16, 16]
        model = nn.Sequential(Apply(lambda x: x * 2), nn.Linear(16, 10), Apply(torch.sin))
        found = tp.statistics(model, [torch.randn(4, 10, 16)])
        assert [row.output.channels for row in found] == [16, 10, 10]

    def test_of_a_layer_that_is_shared_by_others_of_different_size(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act = nn.Tanh()
                self.grid, self.tokens = nn.Conv2d(3, 5, 3), nn.Linear(5, 7)

            def forward(self, x: Tensor) -> Tensor:
                return self.act(self.tokens(self.act(self.grid(x)).flatten(2).mT))

        found = tp.statistics(Net(), [torch.randn(2, 3, 8, 8)])
        assert {row.name: row.output.channels for row in found} == {"grid": 5, "act[0]": 5, "tokens": 7, "act[1]": 7}

    def test_time_first(self) -> None:
        model = nn.Sequential(Apply(lambda x: x.transpose(0, 1) * 2), Apply(torch.sin))
        found = tp.statistics(model, [torch.randn(4, 9, 6), torch.randn(3, 9, 6)])
        assert [row.output.channels for row in found] == [6, 6]

    def test_attention_maps_whose_length_varies(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.query, self.softmax = nn.Linear(8, 8), nn.Softmax(-1)

            def forward(self, x: Tensor) -> Tensor:
                q = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
                return (self.softmax(q @ q.mT) @ q).transpose(1, 2).flatten(2)

        found = tp.statistics(Attention(), [torch.randn(4, length, 8) for length in (5, 8, 3)])
        assert found["softmax"].output.channels == 2
        assert found["query"].output.channels == 8
        averaged = tp.statistics(
            nn.Sequential(Apply(lambda x: torch.softmax(x @ x.mT, -1))), [torch.randn(4, size, 8) for size in (5, 6)]
        )
        assert averaged["0"].output.summary().count == 4 * (25 + 36)

    def test_of_a_layer_that_the_first_batch_does_not_call(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mean, self.head = Apply(lambda x: x.mean((1, 2))), nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.mean(self.head(x)) if len(x) > 1 else self.head(x)

        found = tp.statistics(Net(), [torch.randn(size, 3, 4) for size in (1, 4, 4)])
        assert found["mean"].output.channels == 1

    def test_an_iterator_of_layers(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        assert [row.name for row in tp.statistics(model, [torch.randn(4, 3)], iter(["0", "1"]))] == ["0", "1"]

    def test_where_the_length_of_the_channel_axis_varies_all_count_as_one(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), Apply(lambda x: x[:, : len(x)].flatten(1)))
        batches = [torch.randn(size, 5, 4) for size in (2, 3)]
        found = tp.statistics(model, batches)
        with torch.no_grad():
            values = torch.cat([model(x).flatten() for x in batches]).double()
        assert found["1"].output.channels == 1
        assert found["1"].output.mean.item() == pytest.approx(values.mean().item(), rel=1e-5)
        assert "vary" in found["1"].remark

    def test_inputs_of_three_axes_may_be_tokens(self) -> None:
        model = nn.Sequential(Apply(lambda x: x + 1))
        with pytest.warns(Notice, match=r"unclear.*'0'.*channel_axis="):
            (row,) = tp.statistics(model, [torch.randn(4, 10, 16)])
        assert row.output.channels == 16
        (row,) = tp.statistics(model, [torch.randn(4, 1, 16)])  # a signal
        assert row.output.channels == 1
        for sizes, channels in (((10, 12), 16), ((10, 16), 10)):
            batches = [torch.randn(4, 10, 16), torch.randn(4, *((sizes[1], 16) if channels == 16 else (10, 9)))]
            (row,) = tp.statistics(model, batches)
            assert (row.output.channels, row.remark) == (channels, "")
            values = [x.flatten(0, 1) + 1 if channels == 16 else x.movedim(1, 2).flatten(0, 1) + 1 for x in batches]
            torch.testing.assert_close(row.output.mean, torch.cat(values).double().mean(0), rtol=1e-5, atol=1e-6)

    def test_what_stays_unclear_is_said_once(self) -> None:
        model = nn.Sequential(Apply(lambda x: x.flatten(2).mT * 1.0), Apply(lambda x: x + 1))
        with pytest.warns(Notice, match=r"unclear.*'0', '1'.*channel_axis=") as caught:
            found = tp.statistics(model, [torch.randn(4, 16, 5, 2)])
        assert len(caught) == 1
        assert found["1"].output.channels == 16
        assert "axis -1 of (4, 10, 16)" in found["1"].remark
        assert tp.statistics(model, [torch.randn(4, 16, 5, 2)], channel_axis=1)["1"].output.channels == 10
        # A second batch of another length leaves one axis.
        found = tp.statistics(model, [torch.randn(4, 16, 5, 2), torch.randn(4, 16, 3, 3)])
        assert (found["1"].output.channels, found["1"].remark) == (16, "")


@pytest.fixture(autouse=True)
def _pooled_notices() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="all values count as one", category=Notice)
        yield


class TestLeftOut:
    def test_one_layer_never_costs_the_others(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            Apply(torch.fft.fft2),
            Apply(torch.real),
            Apply(lambda x: x.to_sparse()),
            Apply(lambda x: x.to_dense()),
            Apply(lambda x: x.argmax(1)),
        )
        found = tp.statistics(model, [torch.randn(size, 3, 8, 8) for size in (4, 3)])
        assert list(found.left_out) == ["1", "5"]
        assert [row.name for row in found if row.output is not None] == ["0", "2", "3", "4"]
        for name, reason in (("1", "reduce=torch.abs"), ("5", "torch.int64, such as class indices")):
            assert reason in found.left_out[name]
            assert f"{name}: {found.left_out[name]}" in str(found)

    def test_the_advice_for_complex_numbers_and_integers_can_be_followed(self) -> None:
        model, x = (
            nn.Sequential(Apply(torch.fft.fft2), Apply(lambda x: x.abs().flatten(1).argmax(1))),
            torch.randn(2, 3, 8, 8),
        )
        found = tp.statistics(model, [x], "0", reduce=torch.abs)
        expected = torch.fft.fft2(x).abs().double().mean((0, 2, 3))
        torch.testing.assert_close(found["0"].output.mean, expected, rtol=1e-5, atol=0)
        with tp.record(model, "0", keep=tp.keep.Running(reduce=torch.abs)) as tape:
            model(x)
        torch.testing.assert_close(tape["0"].output.mean, expected, rtol=1e-5, atol=0)
        with pytest.raises(InputError, match=r"reduce=torch\.abs"), tp.record(model, "0", keep=tp.keep.Running()):
            model(x)
        indices = tp.statistics(model, [x], "1", reduce=torch.Tensor.float)["1"].output
        assert indices.summary().mean == pytest.approx(model(x).double().mean().item(), rel=1e-6)

    def test_a_reduce_that_returns_no_tensor(self) -> None:
        model = nn.Linear(3, 2)
        policy = tp.keep.Running(reduce=lambda values: 3)  # type: ignore[arg-type,return-value]
        with tp.record(model, "", keep=policy), pytest.raises(InputError, match="returned an int; allowed: a tensor"):
            model(torch.randn(2, 3))

    def test_packed_sequences(self) -> None:
        class Packs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(3, 4, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                lengths = list(range(x.shape[1], x.shape[1] - len(x), -1))
                return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0]

        found = tp.statistics(Packs(), [torch.randn(4, 6, 3), torch.randn(2, 9, 3)])
        assert {row.name: row.output.channels for row in found if row.output} == dict.fromkeys(
            ("lstm:0.0", "lstm:1.0", "lstm:1.1"), 4
        )
        assert not found.left_out
