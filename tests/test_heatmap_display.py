"""Heatmap: its pictures, and how it shows itself."""

from __future__ import annotations

import base64
import copy
import gc
import io
import pickle
import re
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchpeek as tp
from images import noise
from networks import PooledNet
from paths import IMAGES
from torchpeek.errors import InputError, Notice, OptionError

CHELSEA, COFFEE = IMAGES / "chelsea.png", IMAGES / "coffee.png"
NAMES = ["<b>cat</b>", "dog & co", "fox", "hen", "<script>alert(1)</script>"]


@pytest.fixture
def loaded() -> tp.LoadedModel:
    return tp.LoadedModel(PooledNet(), tp.Preprocess(resize=32, crop=(32, 32)), NAMES, spec="test:net")


@pytest.fixture
def picture(loaded) -> tp.Picture:
    return loaded.read(noise((640, 480)))


def embedded_images(html: str) -> list[Image.Image]:
    """The images of an HTML text, without the colour bars."""
    uris = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', html)
    images = [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]
    return [image for image in images if image.height > 1]


class TestPictures:
    def test_the_picture_that_was_explained(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        assert heatmap.pictures == (picture,)
        assert heatmap[0].pictures == heatmap[0, 0].pictures == (picture,)

    @pytest.mark.parametrize("change", ["positive", "unit", "resized", "indexed", "replaced", "copied"])
    def test_what_is_made_of_it_lies_over_the_same_picture(self, loaded, picture, change) -> None:
        heatmap = tp.explain(loaded, picture)
        changed = {
            "positive": heatmap.positive,
            "unit": heatmap.unit,
            "resized": lambda: heatmap.resized((9, 9)),
            "indexed": lambda: heatmap[:, 0],
            "replaced": lambda: replace(heatmap, scores=heatmap.scores + 1),
            "copied": lambda: copy.copy(heatmap),
        }[change]()
        assert changed.pictures[0] is picture

    def test_a_trace_keeps_it(self, loaded, picture) -> None:
        trace = tp.trace(loaded, picture)
        assert tp.explain(trace).pictures == (picture,)
        assert tp.compare(trace, methods=["gradcam", "eigencam"], target=2)["eigencam"].pictures == (picture,)

    def test_fused_and_smoothed_maps(self, loaded, picture) -> None:
        assert tp.explain(loaded, picture, layer=["features.0", "act"], fuse="mean").pictures == (picture,)
        assert tp.explain(loaded, picture, smooth=tp.Smoothing()).pictures == (picture,)

    def test_a_bare_model_takes_a_picture_too(self, picture) -> None:
        assert tp.explain(PooledNet(), picture).pictures == (picture,)

    def test_a_list_has_each_its_own(self, loaded, picture) -> None:
        other = loaded.read(noise((100, 80)))
        tensor = torch.rand(2, 3, 32, 32)
        heatmaps = tp.explain(loaded, [picture, tensor, other])
        assert [each.pictures for each in heatmaps] == [(picture,), (), (other,)]

    def test_tensors_have_none(self, loaded, picture) -> None:
        assert tp.explain(loaded, picture.tensor).pictures == ()

    def test_one_picture_with_several_inputs_is_not_repeated(self, loaded, picture) -> None:
        crops = replace(picture, tensor=picture.tensor.repeat(3, 1, 1, 1))
        assert tp.explain(loaded, crops).pictures == ()

    @pytest.mark.parametrize("kind", ["path", "image", "list"])
    def test_a_picture_that_explain_reads_is_reduced(self, loaded, tmp_path, kind) -> None:
        photo = noise((1600, 1200))
        photo.save(tmp_path / "photo.png")
        inputs = photo if kind == "image" else tmp_path / "photo.png"
        heatmap = tp.explain(loaded, [inputs])[0] if kind == "list" else tp.explain(loaded, inputs)
        [picture] = heatmap.pictures
        read = loaded.read(inputs)
        assert picture.image.size == (800, 600)
        assert picture.original_geometry == read.geometry
        assert picture.geometry.box == tuple(side / 2 for side in read.geometry.box)
        assert torch.equal(picture.tensor, read.tensor)
        assert heatmap.provenance.preprocess == tp.explain(loaded, read).provenance.preprocess

    def test_as_many_as_samples(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, torch.rand(2, 3, 32, 32))
        with pytest.raises(InputError, match="pictures has 1 entries for 2 samples"):
            replace(heatmap, pictures=[picture])
        both = replace(heatmap, pictures=[picture, picture.reduced(100)])
        assert [each.image.width for each in both[1].pictures] == [100]
        assert replace(heatmap[0], pictures=picture).pictures == (picture,)

    def test_pickled_with_its_picture_and_saved_without(self, loaded, picture, tmp_path) -> None:
        heatmap = tp.explain(loaded, picture)
        again = pickle.loads(pickle.dumps(heatmap))
        assert again.pictures[0].image.tobytes() == picture.image.tobytes()
        tp.save(heatmap, tmp_path / "a.safetensors")
        assert tp.load(tmp_path / "a.safetensors").pictures == ()


class TestIndexing:
    @pytest.mark.parametrize("index", [1, -1, np.int64(1), torch.tensor(1)])
    def test_whole_numbers_of_every_library(self, loaded, picture, index) -> None:
        heatmap = tp.explain(loaded, picture, target=[[2, 3]])
        assert heatmap[0, index].label() == 3

    @pytest.mark.parametrize("index", ["cat", 0.0, None, [0]])
    def test_anything_else_is_refused(self, loaded, picture, index) -> None:
        with pytest.raises(InputError, match="indexed by whole numbers and slices"):
            tp.explain(loaded, picture)[index]


class TestArray:
    def test_it_is_the_values(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture, target=[[0, 1]])
        assert np.array_equal(np.asarray(heatmap), heatmap.values.numpy())
        assert np.asarray(heatmap, dtype=np.float64).dtype == np.float64
        assert np.stack([heatmap, heatmap]).shape == (2, 1, 2, 32, 32)
        assert float(np.max(heatmap)) == float(heatmap.values.max())

    def test_a_copy_is_one(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        before = heatmap.values.clone()
        np.array(heatmap)[:] = 7
        assert torch.equal(heatmap.values, before)

    def test_of_a_map_with_a_graph(self, loaded, picture) -> None:
        trace = tp.trace(loaded, picture, create_graph=True)
        assert np.isfinite(np.asarray(tp.explain(trace))).all()

    def test_float64(self) -> None:
        assert np.asarray(tp.explain(PooledNet().double(), torch.rand(1, 3, 8, 8).double())).dtype == np.float64


class TestOverlay:
    def test_is_the_one_of_render(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        expected = tp.render.overlay(picture, heatmap, colorbar=True)
        assert heatmap.overlay().tobytes() == expected.tobytes()
        other = noise((64, 64))
        plain = tp.render.overlay(other, heatmap, signed=True, alpha=0.3)
        assert heatmap.overlay(other, signed=True, alpha=0.3, colorbar=False).tobytes() == plain.tobytes()

    def test_a_map_alone_has_the_colours_of_its_values(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture.tensor, method="eigencam").positive()
        image = np.asarray(heatmap.overlay(colorbar=False))
        values = heatmap.values[0, 0]
        factor = image.shape[0] // values.shape[0]
        assert image.shape == (values.shape[0] * factor, values.shape[1] * factor, 3)
        shares = (values / values.max()).double()
        for row, column in [(0, 0), (5, 9), (31, 31)]:
            expected = tp.render.COLORMAPS["viridis"][round(float(shares[row, column]) * 255)]
            square = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert (np.abs(square.astype(int) - expected.astype(int)) <= 4).all()

    @pytest.mark.parametrize(
        ("model", "inputs"),
        [
            (nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.rand(1, 2, 30)),
            (nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), torch.rand(1, 1, 8, 9, 10)),
        ],
    )
    def test_grids_of_one_and_of_three_axes(self, model, inputs) -> None:
        heatmap = tp.explain(model, inputs, layer="0", target=2)
        assert max(heatmap.overlay(signed=True, colorbar=False).size) >= 224
        [image] = embedded_images(heatmap._repr_html_())
        assert min(image.size) >= 25

    def test_a_long_signal_is_a_strip_that_can_be_seen(self) -> None:
        model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        heatmap = tp.explain(model, torch.rand(1, 2, 5000), layer="0", target=2)
        assert heatmap.overlay(signed=True, colorbar=False).size == (4998, 624)
        [image] = embedded_images(heatmap._repr_html_())
        assert image.size == (400, 50)

    def test_a_volume_can_be_given(self) -> None:
        model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        volume = torch.rand(1, 1, 8, 90, 100)
        heatmap = tp.explain(model, volume, layer="0", target=2)
        expected = tp.render.overlay(volume, heatmap, signed=True)
        assert heatmap.overlay(volume, signed=True, colorbar=False).tobytes() == expected.tobytes()

    def test_several_are_a_grid_that_says_where_there_are_more(self, loaded) -> None:
        heatmap = tp.explain(loaded, torch.rand(4, 3, 32, 32), target=[[0, 1, 2]] * 4)
        whole, part = heatmap.overlay(signed=True), heatmap.overlay(signed=True, most=6)
        assert whole.width == part.width  # three to a row, those of one sample
        assert part.height < whole.height
        without_words = heatmap[:2].overlay(signed=True)
        assert part.height > without_words.height

    @pytest.mark.parametrize("wrong", [["one"], [1, 2, 3], "text"])
    def test_not_as_many_pictures_as_samples(self, loaded, wrong) -> None:
        heatmap = tp.explain(loaded, torch.rand(2, 3, 32, 32))
        with pytest.raises(InputError, match="the heatmap has 2 samples; give a list with one for each"):
            heatmap.overlay(wrong)

    def test_options_are_checked(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        with pytest.raises(OptionError, match="most is 0"):
            heatmap.overlay(most=0)
        with pytest.raises(OptionError, match="no colormap 'virids'"):
            heatmap.overlay(colormap="virids")
        with pytest.raises(OptionError, match="alpha is 2"):
            tp.explain(loaded, picture.tensor).overlay(alpha=2)
        with pytest.raises(InputError, match="has no maps"):
            heatmap[0:0].overlay()


class TestHtml:
    def test_the_overlay_with_class_score_and_colour_bar(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture, target=1).positive()
        html = heatmap._repr_html_()
        [image] = embedded_images(html)
        assert image.size == (400, 300)
        assert "dog &amp; co" in html
        assert f"logit {float(heatmap.scores):.4g}" in html
        assert f"{float(heatmap.values.max()):.3g}" in html  # the end of the bar
        assert "gradcam at act of test:net, positive" in html

    def test_names_are_escaped(self, loaded, picture) -> None:
        named = replace(picture, name='<img src=x onerror="alert(2)">.png')
        html = tp.explain(loaded, named, target=[[0, 4]])._repr_html_() + named._repr_html_()
        assert "<script" not in html
        assert "<b>cat" not in html
        assert "onerror=&quot;" in html
        assert 'onerror="' not in html

    def test_a_full_grid_of_photographs_is_small(self, loaded) -> None:
        photographs = [loaded.read(CHELSEA), loaded.read(COFFEE)]
        assert len(tp.explain(loaded, photographs * 10)._repr_html_()) < 200_000

    def test_a_grid_has_a_limit_and_says_so(self, loaded) -> None:
        heatmap = tp.explain(loaded, torch.rand(200, 3, 8, 8))
        html = heatmap._repr_html_()
        assert len(embedded_images(html)) == 16
        assert "16 of 200 maps" in html
        assert not re.findall(r"\d+ of \d+ maps", heatmap[:16]._repr_html_())

    def test_a_large_picture_makes_a_small_page(self, loaded) -> None:
        heatmap = tp.explain(loaded, loaded.read(noise((3000, 2000))))
        assert len(heatmap._repr_html_()) < 150_000

    def test_it_says_what_positive_values_hide_and_warns_of_nothing(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        negative = replace(heatmap, values=-heatmap.values.abs() - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            html = negative._repr_html_()
        assert "no positive value" in html
        assert embedded_images(html)

    def test_random_weights_are_named(self, loaded, picture) -> None:
        html = tp.explain(replace(loaded, weights="random"), picture)._repr_html_()
        assert "random weights" in html

    def test_an_error_shows_the_text(self, loaded, picture) -> None:
        heatmap = tp.explain(loaded, picture)
        broken = replace(heatmap, values=heatmap.values[..., None, None])  # a grid of four axes
        assert broken._repr_html_().startswith("<pre")
        assert "Heatmap(gradcam at" in broken._repr_html_()

    def test_no_maps(self, loaded, picture) -> None:
        assert "gradcam" in tp.explain(loaded, picture)[0:0]._repr_html_()

    def test_lists_and_comparisons(self, loaded, picture) -> None:
        heatmaps = tp.explain(loaded, [picture, torch.rand(1, 3, 32, 32)])
        assert isinstance(heatmaps, list)
        assert len(embedded_images(heatmaps[1:]._repr_html_())) == 1
        assert len(embedded_images(heatmaps._repr_html_())) == 2
        compared = tp.compare(loaded, picture, methods=["gradcam", "eigencam"], target=[[0, 1]])
        assert isinstance(compared, dict)
        html = compared._repr_html_()
        assert len(embedded_images(html)) == 4
        assert html.index("gradcam at") < html.index("eigencam at")
        assert len(embedded_images(tp.compare(loaded, [picture] * 3, methods=["gradcam"])._repr_html_())) == 3
        assert pickle.loads(pickle.dumps(compared)).keys() == compared.keys()
        assert "16 of 20 maps" in tp.explain(loaded, [picture] * 20)._repr_html_()

    def test_provenance(self, loaded, picture) -> None:
        provenance = replace(tp.explain(loaded, picture).provenance, options={"mask": torch.zeros(2, 3)})
        html = provenance._repr_html_()
        assert "mask=a tensor of shape (2, 3)" in html
        assert "<td" in html


class TestPlot:
    def test_draws_on_the_callers_axes(self, loaded, picture) -> None:
        from matplotlib.figure import Figure

        heatmap = tp.explain(loaded, picture, target=1)
        ax = Figure().subplots()
        assert heatmap.plot(ax, signed=True) is ax
        drawn = ax.get_images()[0].get_array()
        assert np.array_equal(drawn, np.asarray(heatmap.overlay(signed=True, colorbar=False)))
        assert ax.get_title().startswith("dog & co\nlogit")
        limit = float(heatmap.values.abs().max())
        bar = ax.figure.axes[1]
        assert bar.get_ylim() == pytest.approx((-limit, limit))

    def test_several_maps_and_what_is_no_axes(self, loaded, picture) -> None:
        with pytest.raises(InputError, match=r"heatmap has 2 maps; plot draws one. Next: heatmap\[n, k\]"):
            tp.explain(loaded, picture, target=[[0, 1]]).plot()
        with pytest.raises(InputError, match="ax is an int"):
            tp.explain(loaded, picture).plot(3)  # type: ignore[arg-type]


def test_a_heatmap_keeps_neither_the_model_nor_the_whole_picture_alive(tmp_path) -> None:
    loaded = tp.LoadedModel(PooledNet(), tp.Preprocess(resize=32, crop=(32, 32)))
    noise((2000, 1500)).save(tmp_path / "photo.png")
    heatmap = tp.explain(loaded, tmp_path / "photo.png")
    model = weakref.ref(loaded.module)
    del loaded
    gc.collect()
    assert model() is None
    assert heatmap.pictures[0].image.size == (800, 600)
    assert len(pickle.dumps(heatmap)) < 800 * 600 * 3 + 50_000
