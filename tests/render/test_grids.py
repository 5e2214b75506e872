"""Grids of kernels and of feature maps: colours, scales, captions and sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import torchpeek as tp
from sheet_tiles import GAP, squares, tiles_of
from torchpeek.errors import InputError, OptionError
from torchpeek.render import COLORMAPS, feature_grid, kernel_grid
from torchpeek.render import text as text_of_render
from torchpeek.render import tiles as tiles_of_render
from torchpeek.render.tiles import FRAME, NOT_FINITE

DIVERGING, VIRIDIS = COLORMAPS["diverging"], COLORMAPS["viridis"]
NUMBER = 12  # pixels of a kernel's number above its tile


class TestKernelGrid:
    def test_signed_values_take_the_diverging_colours(self) -> None:
        weight = torch.tensor([[[[-2.0, 0.0], [1.0, 2.0]]]])
        made = squares(tiles_of(kernel_grid(weight), 40, 40, 1, 1)[0, 0], 20)
        assert np.array_equal(made[0, 0], DIVERGING[0])
        assert np.array_equal(made[0, 1], DIVERGING[128])
        assert np.array_equal(made[1, 0], DIVERGING[191])  # 0.75 of 255
        assert np.array_equal(made[1, 1], DIVERGING[255])

    def test_three_input_channels_are_rgb_around_mid_grey(self, words: list[str]) -> None:
        weight = torch.zeros(1, 3, 2, 2)
        weight[0, :, 0, 1] = torch.tensor([4.0, -4.0, 2.0])
        made = squares(tiles_of(kernel_grid(weight), 40, 40, 1, 1)[0, 0], 20)
        assert made[0, 0].tolist() == made[1, 1].tolist() == [128, 128, 128]
        assert made[0, 1].tolist() == [255, 0, 191]
        assert words[0] == "1 kernel, 3 input channels as RGB, size 2 x 2"
        assert words[1] == "scale: shared, -4 to 4; the values are -4 to 4; RGB tiles: 0 is mid grey"

    def test_rgb_can_be_refused(self, words: list[str]) -> None:
        weight = torch.zeros(2, 3, 2, 2)
        weight[0, 0], weight[0, 1], weight[1, 2] = 1.0, -1.0, 0.5
        pixels = np.asarray(kernel_grid(weight, rgb=False, columns=3, tile=10))
        foot = len(pixels) - GAP - 12
        rows = [foot - 6 - 36 - NUMBER - 12, foot]  # a row for each kernel, under its label of two lines and numbers
        at = [[pixels[top + 5, GAP + 5 + column * 15].tolist() for column in range(3)] for top in rows]
        assert at == [[DIVERGING[i].tolist() for i in row] for row in ([255, 0, 128], [128, 128, 191])]
        assert {"kernel 0", "kernel 1"} < set(words)
        assert any("a group of 3 tiles is a kernel, each tile one of its input channels" in line for line in words)

    def test_scales(self, words: list[str]) -> None:
        weight = torch.tensor([1.0, -4.0]).reshape(2, 1, 1, 1)
        shared = tiles_of(kernel_grid(weight), 20, 20, 1, 2, NUMBER)
        assert np.array_equal(shared[0, 0, 0, 0], DIVERGING[159])  # (1 / 4 + 1) / 2 of 255
        assert np.array_equal(shared[0, 1, 0, 0], DIVERGING[0])
        assert words[1] == "scale: shared, -4 to 4; the values are -4 to 1"
        each = tiles_of(kernel_grid(weight, scale="each"), 20, 20, 1, 2, NUMBER)
        assert np.array_equal(each[0, 0, 0, 0], DIVERGING[255])
        assert np.array_equal(each[0, 1, 0, 0], DIVERGING[0])
        assert words[3] == "scale: each tile to its own largest magnitude, 1 to 4; the values are -4 to 1"

    def test_zeros_are_at_zero(self) -> None:
        for scale in ("shared", "each"):
            made = tiles_of(kernel_grid(torch.zeros(1, 1, 3, 3), scale=scale), 60, 60, 1, 1)
            assert (made == DIVERGING[128]).all()

    def test_one_and_three_dimensional_kernels(self) -> None:
        line = tiles_of(kernel_grid(torch.tensor([[[-1.0, 0.0, 1.0]]])), 20, 60, 1, 1)[0, 0]
        assert np.array_equal(squares(line, 20)[0], DIVERGING[[0, 128, 255]])
        block = torch.zeros(1, 1, 2, 1, 2)
        block[0, 0, 0, 0, 1], block[0, 0, 1, 0, 0] = 1.0, -1.0
        slices = tiles_of(kernel_grid(block), 20, 84, 1, 1)[0, 0]  # two slices, and a line between them
        assert (slices[:, 40:44] == FRAME).all()
        assert np.array_equal(squares(slices[:, :40], 20)[0], DIVERGING[[128, 255]])
        assert np.array_equal(squares(slices[:, 44:], 20)[0], DIVERGING[[0, 128]])

    def test_the_kernels_of_largest_norm_are_drawn_and_it_is_said(self, words: list[str], numbers: list[int]) -> None:
        weight = torch.zeros(2048, 1, 3, 3)
        weight[5, 0, 1, 1], weight[2000, 0, 0, 0], weight[77, 0] = 3.0, -5.0, 1.1  # norms 3, 5 and 3.3
        made = tiles_of(kernel_grid(weight, title="conv"), 60, 60, 8, 8, NUMBER)
        assert words[0] == "conv: 64 of 2,048 kernels, largest norm first, 1 input channel, size 3 x 3"
        assert numbers == [2000, 77, 5, *range(5), *range(6, 62)]
        assert np.array_equal(made[0, 0, 30, 30], DIVERGING[128])
        assert np.array_equal(made[0, 0, 0, 0], DIVERGING[0])
        assert np.array_equal(made[0, 2, 30, 30], DIVERGING[round((3 / 5 + 1) / 2 * 255)])

    def test_the_input_channels_of_largest_norm_are_those_of_each_kernel(self, words: list[str], numbers) -> None:
        weight = torch.zeros(3, 40, 3, 3, dtype=torch.float64)
        weight[0, 39, 0, 0], weight[0, 7, 0, 0] = 1.0, -2.0
        weight[2, 3], weight[2, 30, 1, 1] = 0.1, 4.0
        kernel_grid(weight, most_channels=2, most=2)
        assert numbers == [30, 3, 7, 39]  # of kernel 2, which has the larger norm, and of kernel 0
        assert [line for line in words if line.startswith("kernel")] == ["kernel 2", "kernel 0"]
        caption = "2 of 3 kernels, largest norm first, 2 of 40 input channels, largest norm first, size 3 x 3"
        assert words[2].startswith(caption)

    def test_what_is_not_finite_is_not_left_out(self, numbers: list[int]) -> None:
        weight = torch.ones(100, 1, 2, 2)
        weight[99, 0, 0, 0], weight[98, 0, 0, 0] = torch.nan, -torch.inf
        kernel_grid(weight)
        assert numbers[:3] == [98, 99, 0]

    @pytest.mark.parametrize("kernel", [(1,), (1, 1), (1, 1, 1)])
    def test_kernels_of_size_one_are_a_matrix(self, words: list[str], kernel: tuple[int, ...]) -> None:
        """Row o and column i have the colour of the weight from input i to output o."""
        weight = torch.linspace(-1, 1, 5 * 3)[torch.randperm(15)].reshape(5, 3, *kernel)
        pixels = np.asarray(kernel_grid(weight))
        left = GAP + 6 + math.ceil(tiles_of_render.ImageFont.load_default(9).getlength("4")) + 1  # after row numbers
        made = squares(pixels[-GAP - 1 - 100 : -GAP - 1, left : left + 60], 20)
        index = np.rint((weight.reshape(5, 3).numpy().astype(np.float64) + 1) / 2 * 255).astype(int)
        assert np.array_equal(made, DIVERGING[index])
        size = " x ".join("1" for _ in kernel)
        assert words[0] == f"all 5 kernels as rows, all 3 input channels as columns, size {size}"

    def test_the_weight_of_a_linear_layer_is_a_matrix(self, words: list[str]) -> None:
        weight = torch.randn(5, 3)
        assert kernel_grid(weight).tobytes() != kernel_grid(weight.T).tobytes()
        assert words[0] == "all 5 outputs as rows, all 3 inputs as columns"
        matrix, convolution = np.asarray(kernel_grid(weight)), np.asarray(kernel_grid(weight[:, :, None]))
        assert np.array_equal(matrix[-110:], convolution[-110:])
        for option in ({"rgb": True}, {"labels": list("abcde")}):
            with pytest.raises(OptionError, match="linear layer is one matrix"):
                kernel_grid(weight, **option)

    def test_a_large_matrix(self, words: list[str]) -> None:
        weight = torch.zeros(2048, 1000, 1, 1)
        weight[2047, 999], weight[3, 5] = 2.0, 1.0
        made = np.asarray(kernel_grid(weight))
        assert words[0] == (
            "960 of 2,048 kernels, largest norm first as rows, 960 of 1,000 input channels, largest norm first as "
            "columns, size 1 x 1"
        )
        assert (made == DIVERGING[255]).all(-1).sum() == 1 + 10  # and 10 pixels of the scale
        assert made.shape[1] < 1100
        kernel_grid(weight, most=4, most_channels=3)
        assert words[2].startswith("4 of 2,048 kernels, largest norm first as rows, 3 of 1,000 input channels")

    def test_many_layers_of_one_tile_share_rows(self, words: list[str]) -> None:
        kernels = {f"layer{n}": torch.randn(1, 3, 3) for n in range(17)}
        made = kernel_grid({"first": torch.randn(3, 3, 3), **kernels, "last": torch.randn(2, 3, 3)}, scale="each")
        assert made.height < 900
        assert {f"layer{n}: 1 input channel, size 3 x 3" for n in range(17)} < set(words)
        assert words[-2].startswith("all 19 kernels, each of a layer of its own")

    def test_kernels_of_several_layers(self, words: list[str]) -> None:
        """The first kernel of each convolution of AlexNet, as (in, 1, h, w), is a block of its own."""
        sizes = {"features.0": (3, 11), "features.3": (64, 5), "features.6": (192, 3)}
        kernels = {name: torch.randn(channels, 1, size, size) for name, (channels, size) in sizes.items()}
        made = kernel_grid(kernels)
        assert [line for line in words if line.startswith("features")] == [
            "features.0: 3 input channels as RGB, size 11 x 11",
            "features.3: all 64 input channels, size 5 x 5",
            "features.6: 64 of 192 input channels, largest norm first, size 3 x 3",
        ]
        assert 800 <= made.width <= 1400
        same = kernel_grid({name: kernel.squeeze(1) for name, kernel in kernels.items()})
        assert np.array_equal(np.asarray(made), np.asarray(same))
        listed = kernel_grid(list(kernels.values()), labels=list(kernels))
        assert np.array_equal(np.asarray(made), np.asarray(listed))

    def test_one_scale_for_several_layers(self) -> None:
        kernels = {"a": torch.full((1, 1, 1), 1.0), "b": torch.full((1, 1, 1), -2.0)}
        for scale, low in [("shared", 191), ("each", 255)]:
            pixels = np.asarray(kernel_grid(kernels, scale=scale))[:, GAP + 10]
            assert (pixels == DIVERGING[low]).all(-1).sum() == 20
            assert (pixels == DIVERGING[0]).all(-1).sum() == 20

    def test_not_finite(self, words: list[str]) -> None:
        weight = torch.tensor([torch.nan, torch.inf, 1.0, -2.0]).reshape(1, 1, 2, 2)
        made = squares(tiles_of(kernel_grid(weight), 40, 40, 1, 1)[0, 0], 20)
        assert made[0].tolist() == [list(NOT_FINITE)] * 2
        assert np.array_equal(made[1], DIVERGING[[191, 0]])
        assert "magenta: 1 NaN, 1 infinite" in words

    def test_labels(self, words: list[str]) -> None:
        kernel_grid(torch.randn(2, 4, 3, 3), labels=["edge", "blob"])
        assert {"edge", "blob"} <= set(words)

    @pytest.mark.parametrize(
        "shape", [(64, 3, 11, 11), (192, 64, 5, 5), (320, 256, 1, 1), (96, 1, 3, 3), (64, 3, 3, 7, 7)]
    )
    def test_sizes_are_sensible(self, shape: tuple[int, ...]) -> None:
        made = kernel_grid(torch.randn(shape))
        assert 480 <= made.width <= 1400
        assert made.height <= 1800

    def test_the_weight_is_as_it_was(self) -> None:
        weight = torch.nn.Parameter(torch.randn(2, 3, 3, 3))
        before = weight.detach().clone()
        kernel_grid(weight)
        assert torch.equal(weight, before)
        assert weight.requires_grad

    def test_bad_input(self) -> None:
        weight = torch.randn(4, 4, 3, 3)
        with pytest.raises(InputError, match=r"shape \(9,\); allowed: .*\(out, in, \*kernel\)"):
            kernel_grid(torch.zeros(9))
        with pytest.raises(InputError, match="no values"):
            kernel_grid(torch.zeros(0, 3, 3, 3))
        with pytest.raises(InputError, match="kernels is empty"):
            kernel_grid({})
        allowed = "a weight tensor, or a mapping or sequence of single kernels"
        with pytest.raises(InputError, match=f"kernels is 3; allowed: {allowed}"):
            kernel_grid(3)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=rf"kernels is \{{'a': 'b'\}}; allowed: {allowed}"):
            kernel_grid({"a": "b"})  # type: ignore[dict-item]
        with pytest.raises(InputError, match=r"kernel 'conv' has shape \(4, 4, 3, 3\).*weight\[0\]"):
            kernel_grid({"conv": weight})
        with pytest.raises(InputError, match="complex64"):
            kernel_grid(weight.to(torch.complex64))
        with pytest.raises(OptionError, match="no scale 'all'; allowed: 'shared', 'each'"):
            kernel_grid(weight, scale="all")
        with pytest.raises(OptionError, match="kernels has 4 input channels; allowed with 3"):
            kernel_grid(weight, rgb=True)
        with pytest.raises(OptionError, match="rgb is 'yes'"):
            kernel_grid(weight, rgb="yes")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="3 labels for 4 kernels"):
            kernel_grid(weight, labels=["a", "b", "c"])
        for option in ("most", "most_channels", "columns", "tile"):
            for value in (0, 2.5):
                with pytest.raises(
                    OptionError, match=f"{option} is {value}; allowed: a whole number, 1 (or more|to 10,000)"
                ):
                    kernel_grid(weight, **{option: value})


LABEL = 21  # pixels of a channel's number above its tile


class TestFeatureGrid:
    def test_values_take_the_colormap(self) -> None:
        maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[10.0, 10.0], [10.0, 14.0]]])
        each = tiles_of(feature_grid(maps), 40, 40, 1, 2, LABEL)[0]
        assert np.array_equal(squares(each[0], 20), VIRIDIS[[[0, 64], [128, 255]]])
        assert np.array_equal(squares(each[1], 20), VIRIDIS[[[0, 0], [0, 255]]])
        shared = tiles_of(feature_grid(maps, scale="shared", colormap="inferno"), 40, 40, 1, 2, LABEL)[0]
        expected = np.rint(maps.numpy() / 14 * 255).astype(int)
        for tile, index in zip(shared, expected, strict=True):
            assert np.array_equal(squares(tile, 20), COLORMAPS["inferno"][index])

    def test_diverging_is_centred_on_zero(self) -> None:
        maps = torch.tensor([[[0.0, 2.0]], [[-8.0, 4.0]]])
        each = tiles_of(feature_grid(maps, colormap="diverging", columns=2), 20, 40, 1, 2, LABEL)[0]
        assert np.array_equal(each[:, 10, [10, 30]], DIVERGING[[[128, 255], [0, 191]]])

    def test_a_batch_of_one_is_as_one(self) -> None:
        maps = torch.randn(5, 4, 6)
        assert np.array_equal(np.asarray(feature_grid(maps)), np.asarray(feature_grid(maps[None])))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
    def test_of_any_real_type(self, dtype: torch.dtype) -> None:
        maps = torch.arange(12.0).reshape(1, 3, 4)
        assert np.array_equal(np.asarray(feature_grid(maps)), np.asarray(feature_grid(maps.to(dtype))))

    def test_captions(self, words: list[str]) -> None:
        maps = torch.randn(512, 3, 3).clamp(-1, 1)
        maps[0, 0, 0], maps[1, 0, 0] = -1.5, 2.25
        maps[5] = 0.5
        made = feature_grid(maps, title="layer4", colormap="viridis")
        assert words[:64] == [str(n) for n in range(64)]
        assert words[64:] == [
            "layer4: first 64 of 512 channels, 3 x 3 values each",
            "scale: each tile from its own lowest to its own highest value; the values are -1.5 to 2.25",
            "constant: 1 of 64 tiles",
        ]
        line = np.asarray(text_of_render.caption(words[64], made.width - 2 * GAP))
        assert np.array_equal(np.asarray(made)[: len(line), GAP:-GAP], line)

    def test_the_shared_scale_in_numbers(self, words: list[str]) -> None:
        feature_grid(torch.tensor([[[-1.5]], [[2.25]]]), scale="shared", colormap="viridis")
        assert words[-1] == "scale: shared, -1.5 to 2.25"

    def test_channels_are_shown_in_the_order_asked_for(self, words: list[str]) -> None:
        maps = torch.arange(100.0).reshape(100, 1, 1)
        made = feature_grid(maps, channels=torch.tensor([99, 0, 51]), scale="shared", columns=3)
        assert words[:4] == ["99", "0", "51", "3 of 100 channels, 1 x 1 values each"]
        cell = tiles_of_render.math.ceil(tiles_of_render.ImageFont.load_default(11).getlength("99")) + 8
        at = [np.asarray(made)[-10, GAP + 5 + k * (max(cell, 22) + GAP)] for k in range(3)]
        assert np.array_equal(at, VIRIDIS[[255, 0, round(51 / 99 * 255)]])

    def test_all_can_be_shown(self, words: list[str]) -> None:
        feature_grid(torch.randn(100, 2, 2), most=1000)
        assert words[100] == "all 100 channels, 2 x 2 values each"

    def test_constant_maps(self) -> None:
        made = tiles_of(feature_grid(torch.full((1, 2, 2), 7.0)), 40, 40, 1, 1, LABEL)
        assert (made == VIRIDIS[0]).all()

    def test_not_finite_is_drawn_and_counted_and_leaves_the_rest(self, words: list[str]) -> None:
        maps = torch.tensor([[[torch.nan, 1.0], [3.0, torch.inf]], [[-torch.inf] * 2, [torch.nan] * 2]])
        made = tiles_of(feature_grid(maps), 40, 40, 1, 2, LABEL)[0]
        one = squares(made[0], 20)
        assert one[0, 0].tolist() == one[1, 1].tolist() == list(NOT_FINITE)
        assert np.array_equal([one[0, 1], one[1, 0]], VIRIDIS[[0, 255]])
        assert (made[1] == NOT_FINITE).all()
        assert words[-1] == "magenta: 3 NaN, 3 infinite"
        assert words[-2].endswith("the values are 1 to 3")

    def test_a_range_below_zero_is_not_stretched_to_it(self, words: list[str]) -> None:
        maps = torch.tensor([[[-3.0, -1.0, torch.nan, -2.0]]])
        made = tiles_of(feature_grid(maps, colormap="viridis"), 20, 80, 1, 1, LABEL)[0, 0]
        assert np.array_equal(squares(made, 20)[0, [0, 1, 3]], VIRIDIS[[0, 255, 128]])
        assert words[-2].endswith("the values are -3 to -1")

    def test_no_colormap_has_the_colour_of_nan(self) -> None:
        for table in COLORMAPS.values():
            assert np.abs(table.astype(int) - NOT_FINITE).max(1).min() > 60

    def test_large_maps_are_averaged_and_it_is_said(self, words: list[str]) -> None:
        maps = torch.tensor([[[0.0, 2.0, 8.0], [4.0, 6.0, 4.0], [1.0, 1.0, 0.0]]])
        made = tiles_of(feature_grid(maps, tile=2), 2, 2, 1, 1, LABEL)[0, 0]
        means = np.array([[3.0, 6.0], [1.0, 0.0]])  # of 2 x 2, 2 x 1, 1 x 2 and 1 value
        assert np.array_equal(made, VIRIDIS[np.rint(means / 8 * 255).astype(int)])
        assert "a pixel is the mean of up to 2 x 2 values" in words
        maps[0, 0, 0] = torch.nan
        made = tiles_of(feature_grid(maps, tile=2), 2, 2, 1, 1, LABEL)[0, 0]
        assert made[0, 0].tolist() == list(NOT_FINITE)

    @pytest.mark.parametrize("shape", [(64, 112, 112), (512, 7, 7), (30, 600, 800), (9, 1, 1), (64, 5, 200)])
    def test_sizes_are_sensible(self, shape: tuple[int, ...]) -> None:
        made = feature_grid(torch.rand(shape))
        assert 480 <= made.width <= 1400
        assert made.height <= 1800

    def test_wide_labels_have_room(self) -> None:
        made = feature_grid(torch.rand(64, 2, 2), labels=[f"a_long_name_of_channel_{n}" for n in range(64)])
        assert made.width <= 1400

    def test_bad_input(self) -> None:
        maps = torch.randn(4, 3, 3)
        with pytest.raises(InputError, match=r"shape \(2, 4, 3, 3\); .* take one of several samples, activation\[n\]"):
            feature_grid(torch.randn(2, 4, 3, 3))
        with pytest.raises(InputError, match=r"shape \(4, 3\)"):
            feature_grid(maps[0, :2].repeat(2, 1))
        with pytest.raises(InputError, match="no values"):
            feature_grid(maps[:0])
        with pytest.raises(InputError, match="activation is a ndarray"):
            feature_grid(maps.numpy())  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="no scale 'none'"):
            feature_grid(maps, scale="none")
        for wrong in (4, -1):
            with pytest.raises(OptionError, match=f"channel {wrong} is not in .*; allowed channels: 0 to 3"):
                feature_grid(maps, channels=[0, wrong])
        with pytest.raises(OptionError, match="channels is empty"):
            feature_grid(maps, channels=[])
        with pytest.raises(OptionError, match="1 labels for 2 channels"):
            feature_grid(maps, channels=[0, 1], labels=["a"])
        with pytest.raises(OptionError, match="closest: 'viridis'"):
            feature_grid(maps, colormap="virids")


class TestRealWeights:
    def test_kernels_of_mobilenet(self, mobilenet) -> None:
        """The first layer's kernels, against a loop over the numbers."""
        weight = mobilenet.module.features[0][0].weight
        numbers = weight.detach().double().numpy()
        numbers = numbers[sorted(range(32), key=lambda k: -float((numbers[k] ** 2).sum()))[:30]]
        made = tiles_of(kernel_grid(weight, most=30), 60, 60, 5, 6, NUMBER)
        largest = np.abs(numbers).max()
        for k in range(30):
            colours = squares(made[k // 6, k % 6], 20)
            for y in range(3):
                for x in range(3):
                    expected = [round((float(v) / largest + 1) / 2 * 255) for v in numbers[k, :, y, x]]
                    assert colours[y, x].tolist() == expected

    def test_features_of_mobilenet(self, mobilenet, photograph, words: list[str]) -> None:
        picture = mobilenet.read(photograph)
        with torch.no_grad(), tp.record(mobilenet.module, "features.18") as tape:
            mobilenet.module(picture.tensor)
        activation = tape["features.18"].output
        made = tiles_of(feature_grid(activation, channels=range(4), scale="shared"), 140, 140, 2, 2, LABEL)
        shown = activation[0, :4].double().numpy()
        index = np.rint((shown - shown.min()) / np.ptp(shown) * 255).astype(int)
        for k in range(4):
            assert np.array_equal(squares(made[k // 2, k % 2], 20), VIRIDIS[index[k]])
        assert words[4] == "4 of 1280 channels, 7 x 7 values each"
