"""torchpeek kernels: numbers, files and errors, against the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import torchpeek as tp
from cli_models import pooled, separable, tiny_weights
from cli_runner import CHELSEA, asked, files, numbers, of, pixels, run, strict
from torchpeek.render import kernel_grid


def test_numbers_and_files(place, capsys) -> None:
    printed = asked(capsys, "kernels", *of("pooled"), "-o", "out")
    found = tp.kernels(pooled())
    pictures = {"features.0.png", "features.2.png", "first-kernels.png"}
    assert files(place / "out") == pictures | {"kernels.safetensors", "kernels.json", "report.html"}
    assert strict((place / "out" / "kernels.json").read_text()) == printed
    for row, (layer, weight) in zip(printed["layers"], found.items(), strict=True):
        assert row | numbers(weight) | {"layer": layer} == row
        assert np.array_equal(pixels(row["picture"]), kernel_grid(weight, title=layer))
    first = {name: weight[0].unsqueeze(1) for name, weight in found.items()}
    assert np.array_equal(pixels(printed["first"]), kernel_grid(first, scale="each", title="the first kernels"))
    stored = load_file(printed["weights"])
    assert set(stored) == set(found)
    assert all(torch.equal(stored[name], found[name]) for name in found)


def test_a_layer_without_a_kernel_is_listed_and_not_drawn(place, capsys) -> None:
    printed = asked(capsys, "kernels", *of("pooled"), "--layer", "head,features.2", "-o", "out")
    assert printed["by_shape"] == {"3 x 3": ["features.2"], "1": ["head"]}
    assert ["picture" in row for row in printed["layers"]] == [True, False]
    assert not (place / "out" / "head.png").exists()
    assert set(load_file(printed["weights"])) == {"features.2", "head"}


def test_a_transposed_convolution(place, sheets) -> None:
    assert run("kernels", *of("upwards"), "-o", "out") == 0
    assert sheets[0][0] == "0: all 8 kernels, 3 input channels as RGB, size 2 x 2"


def test_alexnet(place, capsys) -> None:
    words = ("--model", "torchvision:alexnet", "--weights", "random", "--most", "4")
    printed = asked(capsys, "kernels", *words, "-o", "kernels")
    convolutions = [f"features.{n}" for n in (0, 3, 6, 8, 10)]
    assert [row["layer"] for row in printed["layers"]] == convolutions
    assert {size: len(each) for size, each in printed["by_shape"].items()} == {"11 x 11": 1, "5 x 5": 1, "3 x 3": 3}
    assert 480 <= pixels(place / "kernels" / "first-kernels.png").shape[1] <= 1400
    found = asked(capsys, "features", CHELSEA, *words, "--layer", ",".join(convolutions), "-o", "features")
    sides = [row["shape"][1:] for row in found["features"]]
    assert sides == [[64, 55, 55], [192, 27, 27], [384, 13, 13], [256, 13, 13], [256, 13, 13]]
    assert all(480 <= pixels(row["drawn"]).shape[1] <= 1400 for row in found["features"])


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_transposed_kernels_by_output(kind, groups) -> None:
    """Channel o of the output is that of kernel o and of its group's inputs alone, turned round."""
    model = nn.Sequential(kind(6, 12, 2, groups=groups, bias=False)).double()
    kernels = tp.kernels(model)
    assert torch.equal(kernels["0"], model[0].weight)
    turned = kernels.by_output()["0"]  # (12, 6 / groups, ...)
    axes = list(range(2, turned.ndim))
    x = torch.randn(1, 6, *[5] * len(axes), dtype=torch.float64)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[turned.ndim]
    torch.testing.assert_close(model(x), convolve(x, turned.flip(axes), padding=1, groups=groups))


def test_complex_weights(place, capsys) -> None:
    printed = asked(capsys, "kernels", *of("waving"), "-o", "out", "--tensorboard", "runs")
    assert printed["layers"][0] == {
        "layer": "0",
        "shape": [2, 3, 1, 1],
        "remark": "complex numbers, which are not drawn",
    }
    assert run("kernels", *of("waving"), "-o", "again") == 0
    out = capsys.readouterr().out
    assert "complex numbers" in out
    assert "written to again/: kernels.safetensors, kernels.json" in out
    assert not (place / "runs").exists()


def test_a_layer_called_as_the_sheet_is(place, capsys) -> None:
    printed = asked(capsys, "kernels", *of("first"), "-o", "out")
    assert printed["layers"][0]["picture"] == "out/first-kernels-2.png"
    assert printed["first"] == "out/first-kernels.png"


def test_kernels_of_size_one_are_left_out_of_the_first_kernels(place, capsys) -> None:
    printed = asked(capsys, "kernels", *of("separable"), "-o", "out")
    assert [row["layer"] for row in printed["layers"]] == ["0", "1", "2"]
    assert (place / "out" / "1.png").exists()
    weights = tp.kernels(separable())
    first = {name: weights[name][0].unsqueeze(1) for name in ("0", "2")}
    title = "the first kernels, without 1 layer of kernels of size 1"
    assert np.array_equal(pixels(printed["first"]), kernel_grid(first, scale="each", title=title))


def test_the_spread_of_very_small_weights(place, capsys) -> None:
    """Their squares are no float64 numbers."""
    rows = asked(capsys, "kernels", *of("tiny_weights"))["layers"]
    [expected] = tp.kernels(tiny_weights()).values()
    std = float((expected * 2.0**660).std(correction=0)) * 2.0**-660
    assert rows[0]["std"] == pytest.approx(std, rel=1e-12)
    assert 1e-201 < std < 1e-199
