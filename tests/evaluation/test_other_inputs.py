"""evaluate() recognises heatmaps of other inputs, by the digests in their provenance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from paths import IMAGES
from torchpeek.errors import InputError

METRICS = ["sparseness"]


class Constant(nn.Sequential):
    """Its scores hardly depend on the input, so only the digests tell inputs apart."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for parameter in self.parameters():
            nn.init.constant_(parameter, 1e-6)
        nn.init.constant_(self[0].bias, 1.0)


class Scaled(Constant):
    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return super().forward(image) * (1 + 1e-9 * scale.sum())


@pytest.fixture
def model() -> nn.Module:
    return Constant().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 8, 8)


def test_another_batch_and_another_sequence(model, x) -> None:
    heatmap = tp.explain(model, x, layer="0", target=1)
    tp.evaluate(model, x, heatmap, metrics=METRICS)
    with pytest.raises(InputError, match=r"'gradcam' was made with other inputs: sample 0, 1, 2 of 3 differs\. Next"):
        tp.evaluate(model, torch.rand(3, 3, 8, 8), heatmap, metrics=METRICS)
    with pytest.raises(InputError, match=r"sample 0, 2 of 3 differs; sample 0 is sample 2 of the heatmap"):
        tp.evaluate(model, x.flip(0), heatmap, metrics=METRICS)


def test_one_changed_bit(model, x) -> None:
    heatmap = tp.explain(model, x, layer="0", target=1)
    changed = x.clone()
    changed[1, 2, 3, 4] = torch.nextafter(changed[1, 2, 3, 4], torch.tensor(2.0))
    with pytest.raises(InputError, match="sample 1 of 3 differs"):
        tp.evaluate(model, changed, heatmap, metrics=METRICS)


def test_slices_keep_their_own(model, x) -> None:
    heatmap = tp.explain(model, x, layer="0", target=[[0, 1]] * 3)
    assert heatmap[1].provenance.inputs == heatmap[1, 0].provenance.inputs == heatmap.provenance.inputs[1:2]
    assert heatmap[1:].provenance.inputs == heatmap.provenance.inputs[1:]
    tp.evaluate(model, x[1:2], heatmap[1], metrics=METRICS)
    tp.evaluate(model, x[1:], heatmap[1:, 1], metrics=METRICS)
    with pytest.raises(InputError, match="sample 0 of 1 differs"):
        tp.evaluate(model, x[:1], heatmap[1], metrics=METRICS)
    one = tp.explain(model, x[1:2], layer="0", target=1)
    assert one.provenance.inputs == heatmap[1].provenance.inputs


def test_all_methods_of_a_comparison_and_a_trace(model, x) -> None:
    compared = tp.compare(model, x, methods=["gradcam", "saliency", "random"], layer="0", target=1)
    traced = tp.explain(tp.trace(model, x, layer="0", target=1))
    assert {each.provenance.inputs for each in (*compared.values(), traced)} == {traced.provenance.inputs}
    with pytest.raises(InputError, match="sample 0, 2"):
        tp.evaluate(model, x.flip(0), compared, metrics=METRICS)


def test_lists(model) -> None:
    inputs = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 6)]
    heatmaps = tp.explain(model, inputs, layer="0", target=1)
    tp.evaluate(model, inputs, heatmaps, metrics=METRICS)
    with pytest.raises(InputError, match="sample 0 of 1 differs") as raised:
        tp.evaluate(model, [inputs[0], inputs[0], inputs[2]], heatmaps, metrics=METRICS)
    assert raised.value.__notes__ == ["at inputs[1] of the list"]


def test_several_arguments() -> None:
    model, x, scale = Scaled().eval(), torch.rand(2, 3, 8, 8), torch.rand(2, 4)
    heatmap = tp.explain(model, {"image": x, "scale": scale}, layer="0", target=1)
    tp.evaluate(model, tp.Arguments(kwargs={"scale": scale, "image": x}), heatmap, metrics=METRICS)
    tp.evaluate(model, {"image": x[1:], "scale": scale[1:]}, heatmap[1], metrics=METRICS)
    with pytest.raises(InputError, match="sample 0, 1 of 2 differs"):
        tp.evaluate(model, {"image": x, "scale": scale + 1}, heatmap, metrics=METRICS)
    shared = tp.Arguments(kwargs={"image": x, "scale": torch.rand(4)})
    tp.evaluate(model, shared, tp.explain(model, shared, layer="0", target=1), metrics=METRICS)


def test_the_same_picture_in_another_type(x) -> None:
    model = PooledNet().eval()
    heatmap = tp.explain(model, x, target=1)
    double = PooledNet().double().eval()
    double.load_state_dict({name: each.double() for name, each in model.state_dict().items()})
    tp.evaluate(double, x.double(), heatmap, metrics=METRICS)
    precise = tp.explain(double, x.double() + 1e-12, target=1)
    tp.evaluate(model, x, precise, metrics=METRICS)
    tp.evaluate(model, x.to(memory_format=torch.channels_last), heatmap, metrics=METRICS)


def test_files(model, x, tmp_path) -> None:
    tp.save(tp.explain(model, x, layer="0", target=1), tmp_path / "map.safetensors")
    loaded = tp.load(tmp_path / "map.safetensors")
    tp.evaluate(model, x, loaded, metrics=METRICS)
    with pytest.raises(InputError, match="made with other inputs"):
        tp.evaluate(model, x.flip(0), loaded, metrics=METRICS)


def test_one_without_digests_is_not_checked(model, x) -> None:
    heatmap = tp.explain(model, x, layer="0", target=1)
    older = replace(heatmap, provenance=replace(heatmap.provenance, inputs=()))
    tp.evaluate(model, x.flip(0), older, metrics=METRICS)
    assert older[1].provenance.inputs == ()


def test_pictures(tmp_path: Path) -> None:
    loaded = tp.LoadedModel(PooledNet().eval(), preprocess=tp.Preprocess(resize=16, crop=(16, 16)))
    path = IMAGES / "chelsea.png"
    heatmap = tp.explain(loaded, str(path), target=1)
    for each in (path, Image.open(path), loaded.read(path), loaded.read(path).tensor):
        tp.evaluate(loaded, each, heatmap, metrics=METRICS)
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    with pytest.raises(InputError, match="made with other inputs"):
        tp.evaluate(loaded, tmp_path / "other.png", heatmap, metrics=METRICS)


def test_digests_are_not_shown(model, x) -> None:
    heatmap = tp.explain(model, x, layer="0", target=1)
    assert "inputs" not in dict(heatmap.provenance.described())
    assert heatmap.provenance.inputs[0] not in heatmap.provenance._repr_html_() + repr(heatmap)
