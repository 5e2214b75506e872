"""The values of tensors of every format, against the dense tensors that they stand for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from tensor_formats import FORMATS, FormatNet, Returning, same
from torchpeek.errors import InputError, Notice
from torchpeek.tensor_formats import components, dense, shape_sizes, shape_text, storages, type_text, value_bytes

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(prototype|beta state|deprecated|quantize_per|TypedStorage|non-leaf|ComplexHalf)"
)
X = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
DENSE = ("sparse COO", "sparse hybrid", "sparse CSR", "sparse CSC", "sparse BSR", "sparse BSC", "oneDNN")
QUANTISED = ("quint8", "qint8", "qint32", "qint8 per channel")
SMALL = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16")
NESTED = ("nested strided", "nested jagged")


def plain(tensor: Tensor) -> Tensor:
    """The values as float64, by torch's own conversion."""
    if tensor.is_quantized:
        return tensor.dequantize().double()
    return (tensor.to_dense() if tensor.layout != torch.strided else tensor).detach().double()


def model_of(name: str) -> nn.Module:
    return nn.Sequential(Returning(FORMATS[name]), Returning(lambda x: x))


@pytest.mark.parametrize("name", [*DENSE, *QUANTISED, *SMALL, "uint16", "uint32", "uint64", "bool", "expanded"])
def test_statistics(name: str) -> None:
    model, expected = model_of(name), plain(FORMATS[name](X)).movedim(1, 0).flatten(1)
    with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        model(X)
        model(X)
    found = tape["0"].output
    torch.testing.assert_close(found.mean, expected.mean(1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.std, expected.std(1, correction=0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.zero_share, (expected == 0).double().mean(1))
    assert found.count.tolist() == [2 * expected.shape[1]] * len(expected)
    row = tp.statistics(model, [X, X], "0", reduce=lambda values: plain(values))["0"]
    torch.testing.assert_close(row.output.mean, expected.mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NESTED)
def test_statistics_of_nested_tensors_leave_the_padding_out(name: str) -> None:
    model = model_of(name)
    values = torch.cat(list(FORMATS[name](X).unbind())).double()  # (tokens, C)
    found = tp.statistics(model, [X, X])
    assert found.left_out == {}
    torch.testing.assert_close(found["0"].output.mean, values.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["0"].output.std, values.std(0, correction=0), rtol=1e-6, atol=1e-7)
    assert found["0"].output.summary().count == 2 * values.numel()
    pooled = tp.statistics(model, [X], "0", channel_axis=1)["0"].output  # the axis of the tokens
    assert pooled.channels == 1
    assert pooled.summary().mean == pytest.approx(float(values.mean()), rel=1e-6)


def test_the_fast_path_of_a_transformer_with_a_padding_mask() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    tokens, lengths = torch.randn(3, 5, 8), (5, 3, 4)
    mask = torch.arange(5) >= torch.tensor(lengths)[:, None]
    without = nn.TransformerEncoder(encoder.layers[0], 2, enable_nested_tensor=False)
    without.load_state_dict(encoder.state_dict())
    inputs = tp.Arguments((tokens,), {"src_key_padding_mask": mask})
    found = tp.statistics(encoder, [inputs], ["layers.0", "layers.1"])
    with torch.no_grad():
        without.eval()
        with tp.record(without, ["layers.0", "layers.1"]) as tape:
            without(tokens, src_key_padding_mask=mask)
    for name in ("layers.0", "layers.1"):
        expected = tape[name].output[~mask].double()  # (tokens, C)
        torch.testing.assert_close(found[name].output.mean, expected.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name].output.std, expected.std(0, correction=0), rtol=1e-4, atol=1e-6)
    assert "nested" in str(tp.layers(encoder, inputs)) or found["layers.0"].output.summary().count == 12 * 8


@pytest.mark.parametrize("name", [*DENSE, *QUANTISED, *SMALL, "complex64", "complex32", "conjugate", "int64"])
def test_gap(name: str) -> None:
    tensor = FORMATS[name](X)
    values = tensor.to(torch.complex128) if tensor.is_complex() else plain(tensor)
    expected = values.flatten(2).mean(2) if values.ndim > 2 else values
    got = tp.keep.gap(tensor)
    assert got.is_complex() == values.is_complex()
    torch.testing.assert_close(got.to(expected.dtype), expected, rtol=1e-3 if name == "complex32" else 1e-5, atol=1e-6)


def test_gap_of_nested_tensors() -> None:
    parts = [torch.randn(3, 2), torch.randn(3, 5)]  # (C, T)
    for layout in (torch.strided, torch.jagged):
        got = tp.keep.gap(torch.nested.nested_tensor(parts, layout=layout))
        torch.testing.assert_close(got, torch.stack([part.mean(1) for part in parts]))
        with pytest.raises(InputError, match=r"nested \(2, \*, 3\), whose axis 1 varies.*Next: a function of your own"):
            tp.keep.gap(torch.nested.nested_tensor([part.T for part in parts], layout=layout))


@pytest.mark.parametrize("name", [*DENSE, *QUANTISED, *SMALL])
@pytest.mark.parametrize("channels", [None, [0, 2]])
def test_edits(name: str, channels: list[int] | None) -> None:
    tensor = FORMATS[name](X)
    values, other = plain(tensor), plain(FORMATS[name](X.flip(0)))
    chosen = torch.zeros(values.shape[1], dtype=torch.bool)
    chosen[:] = channels is None
    chosen[channels or []] = True
    mask = chosen.view([-1 if axis == 1 else 1 for axis in range(values.ndim)])
    for change, new in (
        (tp.edits.zero(channels=channels), torch.zeros_like(values)),
        (tp.edits.scale(0.5, channels=channels), values * 0.5),
        (tp.edits.patch(FORMATS[name](X.flip(0)), channels=channels), other),
        (tp.edits.patch(other.float(), channels=channels, where=torch.tensor(True)), other),
    ):
        got = change(tensor)
        assert (got.layout, got.dtype) == (tensor.layout, tensor.dtype)
        step = 0.05 if name in QUANTISED else 0.0  # half a step of the coarsest scale
        torch.testing.assert_close(
            plain(got), torch.where(mask, new, values), rtol=0.07 if name in SMALL else 1e-6, atol=step
        )


@pytest.mark.parametrize("name", NESTED)
def test_edits_of_nested_tensors(name: str) -> None:
    tensor, other = FORMATS[name](X), FORMATS[name](X.flip(0) * 0 + 7)
    for channels in (None, [1]):
        for change, new in (
            (tp.edits.zero(channels=channels, axis=2), 0.0),
            (tp.edits.patch(other, channels=channels, axis=-1), 7.0),
        ):
            got = change(tensor)
            for before, after in zip(tensor.unbind(), got.unbind(), strict=True):
                expected = before.clone()
                expected[:, slice(None) if channels is None else channels] = new
                assert torch.equal(after, expected)
    if name == "nested jagged":
        assert (tp.edits.scale(2.0)(tensor) + tensor).shape == tensor.shape  # the same symbolic length
    with pytest.raises(InputError, match=r"nested \(2, \*, 4\).*the axes of one length, 2"):
        tp.edits.zero(channels=[0])(tensor)
    with pytest.raises(InputError, match=r"parts of shapes \[\(2, 4\)\]|has parts of shapes"):
        tp.edits.patch(torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(2, 4)]))(tensor)
    with pytest.raises(InputError, match=r"nested \(2, \*, 4\) does not fit an output of \(2, 4\)"):
        tp.edits.patch(tensor)(torch.ones(2, 4))


@pytest.mark.parametrize("name", ["sparse COO", "nested strided", "nested jagged", "complex64", "float16", "subclass"])
def test_gradients_flow_through_edits(name: str) -> None:
    x = X.clone().requires_grad_()
    changed = tp.edits.scale(3.0)(FORMATS[name](x))
    total: Tensor = (
        sum(part.sum() for part in changed.unbind()) if changed.is_nested else changed.to_dense().abs().sum()
    )
    total.backward()
    y = X.clone().requires_grad_()
    made = FORMATS[name](y)
    plain_total: Tensor = sum(part.sum() for part in made.unbind()) if made.is_nested else made.to_dense().abs().sum()
    (3 * plain_total).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5)


def _total(tensor: Tensor) -> Tensor:
    parts = tensor.unbind() if tensor.is_nested else [tensor.to_dense()]
    return sum((part.abs().sum() for part in parts), torch.zeros(()))


@pytest.mark.parametrize("name", ["nested strided", "nested jagged", "sparse COO"])
@pytest.mark.parametrize("frozen", [False, True])
def test_recorded_gradients(name: str, frozen: bool) -> None:
    """A layer that is given such a tensor, and one that returns it."""

    def total(value: Tensor) -> Tensor:
        if value.is_nested:
            return sum((part.square().sum() for part in value.unbind()), torch.zeros(()))
        return value.to_dense().square().sum()

    x = X.clone().requires_grad_(not frozen)
    model = nn.Sequential(Returning(FORMATS[name]), Returning(lambda value: value * 2), Returning(total))
    with tp.record(model, "*", inputs=True, gradients=True) as tape:
        model(x).backward()
    value = tape["1"].output
    for part, got in zip(
        value.unbind() if value.is_nested else [value.to_dense()],
        tape["1"].grad_output.unbind() if value.is_nested else [tape["1"].grad_output.to_dense()],
        strict=True,
    ):
        torch.testing.assert_close(got, 2 * part)
    if not frozen:
        gradient = tape["1"].grad_input
        for part, got in zip(
            value.unbind() if value.is_nested else [value.to_dense()],
            gradient.unbind() if value.is_nested else [gradient.to_dense()],
            strict=True,
        ):
            torch.testing.assert_close(got, 4 * part)


@pytest.mark.parametrize("name", [each for each in FORMATS if each not in ("fake", "meta", "oneDNN")])
def test_memory_and_parts(name: str) -> None:
    tensor = FORMATS[name](X).detach()
    make, parts = components(tensor)
    assert same(make(*parts), tensor)
    if name not in ("expanded", "negative"):
        assert value_bytes(tensor) == sum(part.numel() * part.element_size() for part in parts)
    if name in ("sparse COO", "sparse hybrid"):
        indices, values = tensor._indices(), tensor._values()
        assert value_bytes(tensor) == indices.numel() * 8 + values.numel() * 4
    model = FormatNet(FORMATS[name]).eval()
    with tp.record(model, "layer") as tape:
        model(torch.randn(2, 3, 4, 4))
    assert tape.nbytes == sum(storages(tape["layer"].output).values())


def test_shapes_in_words() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3, 2, 5), torch.ones(4, 2, 6)])
    assert shape_sizes(nested) == (2, "*", 2, "*")
    assert shape_text(nested) == "nested (2, *, 2, *)"
    assert type_text(torch.ones(2).to_sparse()) == "float32, sparse_coo"
    assert type_text(torch.ones(2, device="meta")) == "float32, meta"


def test_a_sparse_tensor_too_large_to_be_dense() -> None:
    huge = torch.sparse_coo_tensor(torch.tensor([[0], [5]]), torch.ones(1), (10**6, 10**6), check_invariants=True)
    with pytest.raises(InputError, match=r"the layer's output is a torch.sparse_coo tensor.*4,000,000,000,000 bytes"):
        dense(huge, "the layer's output")
    model = nn.Sequential(nn.Identity(), Returning(lambda x: huge))
    assert list(tp.statistics(model, [torch.ones(1, 2)], "1").left_out) == ["1"]
    with tp.record(model, "1") as tape:
        model(torch.ones(1, 2))
    assert tape.nbytes == 20


def test_lazy_layers_are_refused_and_left_as_they_are() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(2, 3, 6, 6)
    for function in (
        lambda: tp.layers(model, x),
        lambda: tp.plan(model, x),
        lambda: tp.activations(model, x, "0"),
        lambda: tp.statistics(model, [x]),
        lambda: tp.gradient_flow(model, x),
        lambda: tp.explain(model, x),
        lambda: tp.trace(model, x),
    ):
        with pytest.raises(InputError, match=r"not initialised yet: '0', '1', '3', such as a LazyConv2d.*Next: run"):
            function()
        assert isinstance(model[0], nn.LazyConv2d)
    assert [row.type for row in tp.layers(model)][:2] == ["LazyConv2d", "LazyBatchNorm2d"]
    with tp.record(model, "*", gradients=True, parameters=True) as tape:  # the user's own pass initialises them
        model(x).sum().backward()
    assert tape["3"].output.shape == (2, 5)
    assert tp.explain(model, x, layer="0").values.shape[-1] == 4


@pytest.mark.filterwarnings("ignore::torchpeek.errors.Notice")
def test_dynamically_quantised_layers_have_no_derivative() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(2, 6, requires_grad=True)
    with tp.record(quantised, "*", inputs=True, gradients=True) as tape:
        quantised(x).sum().backward()
    assert tape["0"].grad_input is None
    assert tape["2"].grad_output is not None
    with tp.edit(quantised, gradients={"2": lambda gradient: gradient}):
        quantised(x).sum().backward()


def test_one_dnn_tensors_stay_in_memory() -> None:
    model = model_of("oneDNN")
    with (
        pytest.warns(Notice, match=r"exceeds max_bytes and stays in memory.*Next"),
        tp.record(model, "0", max_bytes=8) as tape,
    ):
        model(X)
    assert torch.equal(tape["0"].output.to_dense(), X)
    assert tape.nbytes == X.nbytes


def test_pairs_of_formats_in_patches() -> None:
    """A patch of one format goes into an output of another."""
    formats = ("dense", "sparse COO", "sparse hybrid", "qint32", "oneDNN", "float16")
    for into, source in itertools.product(formats, formats):
        value = FORMATS[source](X)
        got = tp.edits.patch(value)(FORMATS[into](X * 0))
        assert got.layout == FORMATS[into](X).layout
        assert math.isclose(float((plain(got) - plain(value)).abs().max()), 0, abs_tol=0.006)


def test_save_names_what_it_got() -> None:
    with pytest.raises(InputError, match=r"heatmap is \{'values': .*; allowed: a Heatmap"):
        tp.save({"values": X}, "heatmap.safetensors")  # type: ignore[arg-type]
