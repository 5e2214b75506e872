"""Kernels and activations print as tables, and stay dicts of tensors."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.anatomy.tensor_table import TensorTable
from torchpeek.errors import LayerNotFound


class Returns(nn.Module):
    """Returns what it was made with."""

    def __init__(self, value) -> None:
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.value


def printed(table: object) -> list[list[str]]:
    """The cells of each printed line."""
    return [[cell for cell in line.split("  ") if cell] for line in str(table).splitlines()]


def test_the_numbers_are_those_of_the_weights() -> None:
    layer = nn.Conv2d(1, 1, 2, bias=False)
    layer.weight.data = torch.tensor([[[[1.0, -3.0], [0.5, 2.5]]]])
    header, row, footer = printed(tp.kernels(nn.Sequential(layer)))
    assert [cell.strip() for cell in header] == ["layer", "shape", "dtype", "min", "max", "mean"]
    assert [cell.strip() for cell in row] == ["0", "(1, 1, 2, 2)", "float32", "-3", "2.5", "0.25"]
    assert footer == ["1 tensor, 4 values"]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (torch.tensor([3e38, 3e38, 3e38]), ["3e+38", "3e+38", "3e+38"]),  # the sum is above what float32 holds
        (torch.tensor([6e4, 6e4], dtype=torch.float16), ["6e+04", "6e+04", "6e+04"]),
        (torch.tensor([1e-300, 3e-300], dtype=torch.float64), ["1e-300", "3e-300", "2e-300"]),
        (torch.tensor([1.0, float("nan")]), ["nan", "nan", "nan"]),
        (torch.tensor([1.0, float("inf")]), ["1", "inf", "inf"]),
        (torch.tensor([True, False]), ["0", "1", "0.5"]),
        (torch.tensor([-2, 7]), ["-2", "7", "2.5"]),
        (torch.tensor([3, 65000], dtype=torch.uint16), ["3", "6.5e+04", "3.25e+04"]),
        (torch.tensor([3 + 4j, 0]), ["0", "5", "2.5"]),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), ["1", "2", "1.5"]),
        (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), ["1", "2", "1.5"]),
        (torch.tensor(4.0), ["4", "4", "4"]),
    ],
)
def test_dtypes_and_extremes(values, numbers) -> None:
    table = TensorTable({"a": values})
    assert [cell.strip() for cell in printed(table)[1]][3:] == numbers
    assert f">{numbers[0]}<" in table._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(0, 3), "(0, 3)"),
        (torch.eye(3).to_sparse(), "float32, sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested"),
        (torch.empty(2, 3, device="meta"), "meta"),
        ("a text", "no tensor, but str"),
        (None, "no tensor, but NoneType"),
    ],
)
def test_what_has_no_numbers(value, text) -> None:
    table = TensorTable({"a": value, "b": torch.ones(2)})
    assert text in str(table)
    assert text in table._repr_html_()


def test_it_is_still_a_dict_of_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    kernels = tp.kernels(model)
    outputs = tp.activations(model, torch.rand(1, 3, 8, 8), ["0"])
    for table in (kernels, outputs):
        assert isinstance(table, dict)
        again = pickle.loads(pickle.dumps(table))
        assert type(again) is type(table)
        assert str(again) == str(table)
        assert torch.equal(again["0"], table["0"])
        assert str(copy.deepcopy(table)) == str(table)
        assert dict(table).keys() == table.keys()
    assert pickle.loads(pickle.dumps(kernels)).by_output()["1"].shape == (2, 4, 3, 3)
    for part in (kernels.by_output(), kernels.by_shape()[3, 3]):
        assert str(part).startswith("layer")


def test_containers_have_a_row_for_each_tensor() -> None:
    model = nn.Sequential(Returns({"x": torch.ones(2), "deep": (torch.zeros(3), [torch.ones(1)])}))
    outputs = tp.activations(model, torch.ones(1, 1), "0")
    assert [row[0].strip() for row in printed(outputs)[1:-1]] == ["0:x", "0:deep.0", "0:deep.1.0"]


def test_a_long_table_shows_its_two_ends_and_says_how_much_is_between() -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(100)))
    lines = str(tp.kernels(model)).splitlines()
    assert len(lines) == 1 + 60 + 1 + 1
    assert "... 40 more" in lines[31]
    assert lines[30].startswith("29 ")
    assert lines[32].startswith("70 ")
    assert "100 tensors" in lines[-1]
    assert tp.kernels(model)._repr_html_().count("<tr>") == 101


def test_names_are_escaped() -> None:
    assert "<b>" not in TensorTable({"<b>": torch.ones(1)})._repr_html_()


def test_many_values_are_not_read() -> None:
    large = torch.ones(1).expand(1 << 26)  # of one element, so that the test needs no memory
    started = time.perf_counter()
    text = str(TensorTable({str(number): large for number in range(100)}))
    assert time.perf_counter() - started < 10
    assert text.count("not read") == 60 - 2
    assert "numbers are read of the first 134,217,728 values" in text


class TestKernels:
    def test_the_html_has_the_kernels_of_the_first_layer(self) -> None:
        html = tp.kernels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))._repr_html_()
        assert html.count("<img") == 1
        assert "<table" in html

    def test_weights_that_cannot_be_drawn_have_a_table(self) -> None:
        html = tp.kernels(nn.Sequential(nn.Linear(3, 4)), "*")._repr_html_()
        assert "<table" in html

    def test_plot(self) -> None:
        from matplotlib.figure import Figure

        ax = Figure().subplots()
        kernels = tp.kernels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
        assert kernels.plot("1", ax) is ax
        expected = tp.render.kernel_grid(kernels["1"], title="1")
        assert ax.get_images()[0].get_array().shape == (expected.height, expected.width, 3)
        with pytest.raises(LayerNotFound, match="no weight of layer '7'"):
            kernels.plot("7")


class TestLayers:
    def test_without_inputs_there_are_no_empty_columns(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        loaded = tp.LoadedModel(model)
        assert str(tp.layers(loaded)).splitlines()[0].split() == ["layer", "type", "parameters"]
        assert str(tp.layers(loaded)) == str(tp.layers(model))

    def test_the_suggested_layer_is_marked(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        table = tp.layers(model, torch.rand(1, 3, 8, 8))
        assert table.suggested is not None
        assert [table[number].name for number in table.marked] == [table.suggested.layer]
        assert table._repr_html_().count("background") == 1
