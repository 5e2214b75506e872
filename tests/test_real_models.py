"""EfficientNet-Lite0 and a trained ViT, with their real weights, on real photographs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import real_models
import torchpeek as tp
from paths import IMAGES
from torchpeek.models import Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lite0() -> tp.LoadedModel:
    return real_models.lite0()


@pytest.fixture(scope="module")
def focus() -> tp.LoadedModel:
    return real_models.focus()


def peak(picture: tp.Picture, heatmap: tp.Heatmap) -> tuple[int, int]:
    """Column and row, in the original picture, of the largest value."""
    plane = tp.render.placed(heatmap.values[0, 0], picture.geometry)
    row, column = np.unravel_index(np.nanargmax(plane), plane.shape)
    return int(column), int(row)


def inside(point: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom


class TestLite0:
    @pytest.mark.parametrize(
        ("file", "expected"),
        [
            ("chelsea.png", {"tiger cat": 0.395, "Egyptian cat": 0.355, "tabby, tabby cat": 0.170}),
            ("coffee.png", {"espresso": 0.951, "cup": 0.015}),
            ("rocket.jpg", {"missile": 0.272, "projectile, missile": 0.189, "drilling platform, offshore rig": 0.104}),
        ],
    )
    def test_predictions(self, lite0, file: str, expected: dict[str, float]) -> None:
        """As the network that came with these weights computes them: the package efficientnet-lite-pytorch 0.1.0."""
        top = tp.targets.ClassProbability(tp.targets.TopClasses(len(expected)))
        trace = tp.trace(lite0, IMAGES / file, target=top)
        assert [lite0.class_names[label] for label in trace.question.labels[0]] == list(expected)  # in this order
        assert trace.scores[0].tolist() == pytest.approx(list(expected.values()), abs=0.005)
        assert trace.layer == "bn2"  # suggested

    # Boxes drawn by hand: the cat's face, of which the network sees more than it does of anything else, and what is
    # within the cup's rim, a fifth of what it sees.
    @pytest.mark.parametrize(
        ("file", "name", "box"),
        [("chelsea.png", "tiger cat", (100, 50, 300, 270)), ("coffee.png", "espresso", (190, 80, 385, 195))],
    )
    def test_the_maximum_is_on_what_is_asked_for(self, lite0, file: str, name: str, box) -> None:
        picture = lite0.read(IMAGES / file)
        methods = ["cam", "gradcam", "gradcam++", "layercam", "eigencam", "eigengradcam", "recipro-cam"]
        for method, heatmap in tp.compare(lite0, picture, methods=methods, target=name).items():
            assert inside(peak(picture, heatmap), box), method

    def test_cat_and_cup_side_by_side_are_told_apart(self, lite0) -> None:
        """Each class's maximum is in its own half, and most of its heat; eigencam, which knows no classes, has one."""
        photographs = [Image.open(IMAGES / file).convert("RGB") for file in ("chelsea.png", "coffee.png")]
        both = Image.new("RGB", (512, 256))
        for left, photograph in zip((0, 256), photographs, strict=True):
            start = (photograph.width - photograph.height) // 2
            square = photograph.crop((start, 0, start + photograph.height, photograph.height))
            both.paste(square.resize((256, 256), Image.Resampling.BICUBIC), (left, 0))
        assert isinstance(lite0.preprocess, Preprocess)
        wide = replace(lite0, preprocess=replace(lite0.preprocess, resize=224, crop=None))
        picture = wide.read(both)
        methods = ["cam", "gradcam", "layercam", "eigengradcam", "recipro-cam", "eigencam"]
        maps = tp.compare(wide, picture, methods=methods, target=[["tiger cat", "espresso"]])
        cat, cup = (0, 0, 255, 255), (256, 0, 511, 255)
        classless = maps.pop("eigencam")
        assert torch.equal(classless.values[:, 0], classless.values[:, 1])
        for method, heatmap in maps.items():
            assert heatmap.values.shape == (1, 2, 7, 14)
            assert inside(peak(picture, heatmap[0, 0]), cat), method
            assert inside(peak(picture, heatmap[0, 1]), cup), method
        heat = maps["gradcam"].positive().values[0]  # (K, 7, 14)
        on_the_left = heat[..., :7].sum((1, 2)) / heat.sum((1, 2))
        assert on_the_left[0] > 0.85
        assert on_the_left[1] < 0.15

    def test_the_maps_say_all_that_the_score_is_made_of(self, lite0) -> None:
        """After the layer come a mean over its 49 positions and a linear head, so in float64 (eq. 2 of CAM):

        the mean of cam, and the bias, are the logit; gradcam is a 49th of cam; and with one position left of the layer,
        as recipro-cam has it, the logit is that position's share and the bias.
        """
        model = copy.deepcopy(lite0.module).double()
        x = lite0.read(IMAGES / "coffee.png").tensor.double()
        classes = [[967, 968]]
        maps = tp.compare(model, x, methods=["cam", "gradcam", "recipro-cam"], layer="bn2", target=classes)
        cam = maps["cam"].values  # (N, K, 7, 7)
        bias = model.classifier.bias.detach()[torch.tensor(classes)]  # (N, K)
        with torch.no_grad():
            logits = model(x).gather(1, torch.tensor(classes))
        torch.testing.assert_close(cam.mean((2, 3)) + bias, logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(maps["gradcam"].values, cam / 49, rtol=1e-12, atol=1e-12)
        alone = cam / 49 + bias[..., None, None]
        torch.testing.assert_close(maps["recipro-cam"].values, alone, rtol=1e-12, atol=1e-12)


# What onnxruntime 1.32.0 gave for the package's file before the sigmoid, at rows 50, 112, 170, columns 40, 112, 180.
LOGITS = {
    "chelsea.png": [[3.4758, 3.6678, 3.0672], [3.4898, 3.8502, 0.2131], [2.5889, 3.0310, -0.1185]],
    "coffee.png": [[-2.7979, 1.3508, -2.8920], [0.1985, 2.4495, -2.1512], [-2.4025, 0.6400, -2.7123]],
}
BLOCKS = [f"backbone.blocks.{i}" for i in range(12)]


class TestFocus:
    @pytest.mark.parametrize("file", LOGITS)
    def test_the_output_is_that_of_the_file(self, focus, file: str) -> None:
        x = focus.read(IMAGES / file).tensor
        with torch.no_grad(), tp.record(focus.module, "decoder") as tape:
            output = focus.module(x)
        assert output.shape == (1, 1, 224, 224)
        logits = tape["decoder"].output
        assert torch.equal(output, logits.sigmoid())
        places = logits[0, 0, [50, 112, 170]][:, [40, 112, 180]]
        torch.testing.assert_close(places, torch.tensor(LOGITS[file]), rtol=0, atol=2e-4)

    def test_transformers_has_the_same_network(self, focus) -> None:
        """It maps the names, resizes the positions and computes the attention by itself."""
        theirs = real_models.focus_hf()
        x = focus.read(IMAGES / "coffee.png").tensor
        with torch.no_grad():
            torch.testing.assert_close(focus.module(x), theirs.module(x), rtol=0, atol=2e-5)

    def test_the_cup_is_worth_looking_at(self, focus) -> None:
        """The whole photograph, in the middle of the square: the map's maximum, brought back, is on the cup."""
        picture = focus.read(IMAGES / "coffee.png")  # 600 x 400, so 224 x 149, and 37 black rows above
        assert picture.geometry.box == pytest.approx((0, -37 * 400 / 149, 600, (224 - 37) * 400 / 149))
        black = torch.tensor([(0 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0 - 0.406) / 0.225])
        torch.testing.assert_close(picture.tensor[0, :, :37], black.view(3, 1, 1).expand(3, 37, 224))
        with torch.no_grad():
            plane = tp.render.placed(focus.module(picture.tensor)[0, 0], picture.geometry)  # (400, 600)
        row, column = np.unravel_index(np.nanargmax(plane), plane.shape)
        assert inside((int(column), int(row)), (172, 18, 410, 285))

    def test_recording_every_block_changes_nothing(self, focus) -> None:
        """Bit for bit, outputs and the input's gradient; and what is recorded is what the blocks make of each other."""

        def passed() -> tuple[Tensor, Tensor]:
            x = focus.read(IMAGES / "chelsea.png").tensor.requires_grad_()
            output = focus.module(x)
            return output.detach(), torch.autograd.grad(output.logit().sum(), x)[0]

        alone = passed()
        with tp.record(focus.module, BLOCKS, inputs=True, gradients=True) as tape:
            recorded = passed()
        assert torch.equal(recorded[0], alone[0])
        assert torch.equal(recorded[1], alone[1])
        assert list(tape) == BLOCKS
        blocks = focus.module.backbone.blocks
        given = tape[BLOCKS[0]].input
        with torch.no_grad():
            for name, block in zip(BLOCKS, blocks, strict=True):
                assert tape[name].output.shape == (1, 257, 384)
                assert torch.equal(tape[name].input, given)
                given = block(given)
                torch.testing.assert_close(tape[name].output, given, rtol=1e-5, atol=1e-5)

    def test_what_flows_back_through_the_blocks(self, focus) -> None:
        """A block's gradient, by the chain rule: the next one's, taken back through that next one alone."""
        x = focus.read(IMAGES / "chelsea.png").tensor
        with tp.record(focus.module, BLOCKS[-2:], gradients=True) as tape:
            focus.module(x)[0, 0, 86, 142].backward()
        focus.module.zero_grad()
        given = tape[BLOCKS[-2]].output.clone().requires_grad_()
        output = focus.module.backbone.blocks[-1](given)
        (expected,) = torch.autograd.grad(output, given, tape[BLOCKS[-1]].grad_output)
        scale = float(expected.abs().max())
        torch.testing.assert_close(tape[BLOCKS[-2]].grad_output, expected, rtol=1e-4, atol=1e-5 * scale)

    # ---- Token methods: attention, rollout, legrad, maps at the blocks' 16 x 16 grids. ----

    # Boxes drawn by hand: the cup without its saucer, the cat's face, the rocket with its pad.
    @pytest.mark.parametrize(
        ("file", "box"),
        [
            ("coffee.png", (172, 18, 410, 285)),
            ("chelsea.png", (100, 50, 300, 270)),
            ("rocket.jpg", (290, 120, 390, 427)),
        ],
    )
    def test_the_maximum_is_on_what_is_worth_looking_at(self, focus, file: str, box) -> None:
        """Of the mean logit over the pixels that it finds worth it; and there is more heat inside of them than outside.

        Not of rollout: this network keeps something else in a few tokens of the background (arXiv:2309.16588), to which
        the others attend, and rollout does not ask what for.
        """
        picture = focus.read(IMAGES / file)
        with torch.no_grad():
            mask = focus.module(picture.tensor)[0, 0] > 0.5  # (224, 224)
        target = tp.targets.Computed(partial(mean_logit, mask))
        trace = tp.trace(focus, picture, target=target, attention=True)
        assert (trace.layer, str(trace.at[trace.layer].layout)) == ("backbone.norm", "tokens 1+16x16")
        shares = torch.nn.functional.adaptive_avg_pool2d(mask.float()[None], 16)[0]  # (16, 16), of each patch
        maps = tp.compare(trace, methods=["gradcam", "legrad", "transformer-attribution"])
        for layer in ("backbone.blocks.9", "backbone.blocks.11"):
            maps[layer] = tp.explain(focus, picture, method="gradcam", layer=layer, target=target)
        for method, heatmap in maps.items():
            assert heatmap.values.shape == (1, 1, 16, 16)
            assert inside(peak(picture, heatmap), box), method
            heat = heatmap.positive().values[0, 0]
            within, without = (float((heat * part).sum() / part.sum()) for part in (shares, 1 - shares))
            assert within > without, method

    def test_transformers_attends_alike(self, focus) -> None:
        """Its network has other modules, and runs the fused attention through other code."""
        picture = focus.read(IMAGES / "coffee.png")
        with torch.no_grad():
            mask = focus.module(picture.tensor)[0, 0] > 0.5
        target = tp.targets.Computed(partial(mean_logit, mask))
        methods = ["rollout", "transformer-attribution"]
        ours, theirs = (
            tp.compare(loaded, picture, methods=methods, target=target) for loaded in (focus, real_models.focus_hf())
        )
        for method in methods:
            scale = float(ours[method].values.abs().max())
            torch.testing.assert_close(ours[method].values, theirs[method].values, rtol=1e-3, atol=1e-4 * scale)

    def test_rollout_is_what_the_weights_say(self, focus) -> None:
        """Of queries and keys that are recorded, the whole product; no class token is read, but the mean of rows."""
        x = focus.read(IMAGES / "coffee.png").tensor
        with torch.no_grad(), tp.record(focus.module, [f"{block}.attn.qkv" for block in BLOCKS]) as tape:
            focus.module(x)
        product = torch.eye(257, dtype=torch.float64)
        for block in BLOCKS:
            qkv = tape[f"{block}.attn.qkv"].output[0].double().view(257, 3, 6, 64)
            q, k = (qkv[:, each].transpose(0, 1) for each in (0, 1))  # (heads, T, 64)
            weights = (q @ k.mT / 8).softmax(-1).mean(0)
            product = (0.5 * weights + 0.5 * torch.eye(257, dtype=torch.float64)) @ product
        expected = product[1:].mean(0)[1:].view(16, 16)
        target = tp.targets.Computed(partial(mean_logit, torch.ones(224, 224, dtype=torch.bool)))
        found = tp.explain(focus, x, method="rollout", target=target).values[0, 0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def mean_logit(mask: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """(N,): over the pixels of the mask."""
    return output[:, 0, mask].logit(eps=1e-6).mean(1)
