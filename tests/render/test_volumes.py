"""Slices of volumes, frames of videos, filmstrips and montages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import torchpeek as tp
from torchpeek.errors import InputError, Notice, OptionError
from torchpeek.render import filmstrip, montage, overlay
from torchpeek.render.slices import slices_of


def heatmap_of(values: Tensor, **provenance: str) -> tp.Heatmap:
    question = tp.targets.Classes([0]).bind(torch.zeros(1, 2))
    about = tp.Provenance("gradcam", "layer", **provenance)
    return tp.Heatmap(values[None, None], torch.zeros(1, 1), question, about)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class TestSlices:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_heat_is_interpolated_between_slices(self, axis: int) -> None:
        """Against torch's trilinear interpolation of the whole map, which is linear along each axis."""
        values, volume = random(3, 4, 5), random(1, 12, 8, 15)
        slices = slices_of(volume, heatmap_of(values), axis)
        size = list(values.shape)
        size[axis] = volume.shape[1 + axis]
        whole = interpolate(values[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
        assert len(slices) == volume.shape[1 + axis]
        for index in range(len(slices)):
            torch.testing.assert_close(slices.values(index), whole.select(axis, index))
        assert slices.strongest(signed=False) == int(whole.amax([a for a in range(3) if a != axis]).argmax())

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_images_have_one_range(self, axis: int) -> None:
        volume = random(1, 6, 8, 10) * 4 - 1
        slices = slices_of(volume, heatmap_of(random(6, 8, 10)), axis)
        low, high = volume.min(), volume.max()
        for index in range(len(slices)):
            expected = ((volume[0].select(axis, index) - low) / (high - low) * 255).round().numpy()
            made = np.asarray(slices.canvas(index).image).astype(int)
            assert np.abs(made[..., 0] - expected).max() <= 1
            assert (made[..., 0] == made[..., 2]).all()

    @pytest.mark.parametrize(
        ("shape", "layout", "count", "rgb"),
        [
            ((1, 1, 6, 8, 9), "", 6, False),
            ((1, 6, 8, 9), "", 6, False),
            ((6, 8, 9), "", 6, False),
            ((1, 3, 6, 8, 9), "", 6, True),  # a video, channels first
            ((6, 3, 8, 9), "", 6, True),  # frames
            ((1, 6, 3, 8, 9), "", 6, True),
            ((6, 1, 8, 9), "", 6, False),
            ((3, 3, 8, 9), "(N 3) C H W", 3, True),
            ((1, 3, 3, 8, 9), "(3 N) C 4 3", 3, True),
            ((4, 6, 8, 9), "", 6, False),  # four modalities
        ],
    )
    def test_which_axis_is_which(self, shape, layout, count, rgb) -> None:
        stack = random(*shape)
        slices = slices_of(stack, heatmap_of(random(2, 4, 3), layout=layout), 0)
        image = np.asarray(slices.canvas(1).image).astype(int)
        assert len(slices) == count
        assert image.shape == (8, 9, 3)
        assert bool((image[..., 0] != image[..., 1]).any()) == rgb

    def test_frames_folded_into_the_batch_keep_their_colours(self) -> None:
        frames = random(3, 3, 8, 9)
        slices = slices_of(frames, heatmap_of(random(3, 4, 3), layout="(N 3) C H W"), 0)
        expected = ((frames[2] - frames.min()) / (frames.max() - frames.min()) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(slices.canvas(2).image).astype(int) - expected).max() <= 1
        assert torch.equal(slices.values(2), random(3, 4, 3)[2])


class TestOverlay:
    def test_is_that_of_the_slice_on_the_scale_of_the_whole_map(self) -> None:
        values, volume = random(5, 4, 4) + 0.01, random(1, 1, 5, 240, 250)
        made = overlay(volume, heatmap_of(values), index=3)
        low, high = float(volume.min()), float(volume.max())
        plane = ((volume[0, 0, 3] - low) / (high - low) * 255).round().byte().numpy()
        flat = overlay(Image.fromarray(plane), heatmap_of(values[3]), limit=float(values.max()))
        different = (np.asarray(made).astype(int) - np.asarray(flat)).__abs__().max(-1)
        assert (different[:200] <= 1).all()
        assert (different[-20:, :120] > 50).any()  # the strip that says which slice it is

    def test_the_default_is_the_slice_with_the_highest_value(self) -> None:
        values = torch.zeros(6, 4, 4)
        values[4, 1, 1], values[2, 0, 0] = 1, -3
        volume = random(1, 6, 240, 250)
        heat = heatmap_of(values)
        with pytest.warns(Notice, match="mostly negative"):
            made = overlay(volume, heat)
        with pytest.warns(Notice, match="mostly negative"):
            assert (np.asarray(made) == np.asarray(overlay(volume, heat, index=4))).all()
        signed = np.asarray(overlay(volume, heat, signed=True))
        assert (signed == np.asarray(overlay(volume, heat, signed=True, index=-4))).all()

    def test_a_sequence_of_pictures_with_what_was_cropped(self) -> None:
        geometry = tp.Geometry((400, 240), (80.0, 0.0, 320.0, 240.0))
        frames = [
            tp.Picture(Image.new("RGB", (400, 240), (n, n, n)), torch.zeros(1, 3, 8, 8), geometry) for n in range(3)
        ]
        made = np.asarray(overlay(frames, heatmap_of(torch.zeros(3, 2, 2)), index=2))
        assert (made[:200, 80:320] == 2).all()
        assert (made[:200, 79] == 255).all()

    def test_bad_input(self) -> None:
        volume, heat = random(1, 6, 8, 9), heatmap_of(random(2, 4, 3))
        with pytest.raises(OptionError, match="index 6 is out of range; allowed: 0 to 5"):
            overlay(volume, heat, index=6)
        with pytest.raises(OptionError, match="axis is 3"):
            overlay(volume, heat, axis=3)
        with pytest.raises(InputError, match=r"picture is a tensor of shape \(2, 1, 6, 8, 9\).*give x\[n\]"):
            overlay(random(2, 1, 6, 8, 9), heat)
        with pytest.raises(InputError, match=r"picture is one image, .*sequence of its frames"):
            overlay(Image.new("RGB", (8, 8)), heat)
        with pytest.raises(InputError, match="an empty sequence"):
            overlay([], heat)
        with pytest.raises(OptionError, match="axis 0 only"):
            overlay([Image.new("RGB", (8, 8))], heat, axis=1)


class TestSheets:
    def test_a_filmstrip_has_each_frame_above_its_heat(self) -> None:
        frames = [Image.new("RGB", (320, 240), (10 * n, 0, 0)) for n in range(5)]
        values = torch.zeros(5, 2, 2)
        values[3] = 1
        made = np.asarray(filmstrip(frames, heatmap_of(values), indices=[0, 3], alpha=1))
        assert made.shape[1] == 8 + 2 * 168
        names = 24  # pixels of a caption
        first, second = slice(8 + names, 8 + names + 120), slice(8 + 2 * names + 120 + 8, 8 + 2 * names + 240 + 8)
        assert (made[first, 8:168] == 0).all()
        assert (made[first, 176:336] == [30, 0, 0]).all()
        assert (made[second, 8:168] == 0).all()  # no heat
        assert (made[second, 176:336] == tp.render.COLORMAPS["viridis"][255]).all()

    def test_most_frames_are_evenly_spaced_from_the_first_to_the_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        captions: list[list[str]] = []
        from torchpeek.render import volumes

        real = volumes.mosaic
        monkeypatch.setattr(
            volumes, "mosaic", lambda pictures, words, **more: captions.append(words) or real(pictures, words, **more)
        )
        volume, heat = random(1, 9, 8, 9), heatmap_of(random(3, 4, 3))
        montage(volume, heat, most=5)
        montage(volume, heat, most=100, axis=2)
        montage(volume, heat, most=1)
        montage(volume, heat, indices=[-1, 2])
        filmstrip(volume, heat, most=2)
        assert captions == [
            ["slice 0", "slice 2", "slice 4", "slice 6", "slice 8"],
            [f"slice {n}" for n in range(9)],
            ["slice 4"],
            ["slice 8", "slice 2"],
            ["frame 0", "frame 8", "heat", "heat"],
        ]

    def test_random_weights_and_the_scale_are_on_it(self) -> None:
        volume, values = random(1, 4, 8, 9), random(2, 4, 3)
        plain = np.asarray(montage(volume, heatmap_of(values)))
        marked = np.asarray(montage(volume, heatmap_of(values, weights="random")))
        assert plain.shape == marked.shape
        assert (plain != marked).any()
        (rows,) = np.nonzero((plain[:, 0] == tp.render.COLORMAPS["viridis"][0]).all(-1))
        assert len(rows) >= 10

    def test_bad_input(self) -> None:
        volume, heat = random(1, 6, 8, 9), heatmap_of(random(2, 4, 3))
        with pytest.raises(OptionError, match="indices is empty"):
            montage(volume, heat, indices=[])
        with pytest.raises(OptionError, match="most is 0"):
            filmstrip(volume, heat, most=0)
        with pytest.raises(InputError, match=r"one map, \(1, 1, \*grid\)"):
            montage(volume, tp.Heatmap(random(2, 1, 2, 4, 3), torch.zeros(2, 1), heat.question, heat.provenance))
        with pytest.raises(InputError, match="a volume or a video has three axes"):
            montage(volume, heatmap_of(random(4, 3)))
