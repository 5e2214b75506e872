"""TensorBoard: what its event files hold when they are read back, and which calls a writer receives."""

from __future__ import annotations

import doctest
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import OptionError
from torchpeek.integrations.tensorboard import (
    add_features,
    add_gradient_flow,
    add_kernels,
    add_statistics,
    add_training_flow,
)
from torchpeek.render import feature_grid, kernel_grid


class Noting:
    """Has the three methods that are used, and notes how they were called."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.images: dict[str, tuple[Tensor, int, str]] = {}
        self.histograms: dict[str, dict[str, Any]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert tag not in self.scalars
        self.scalars[tag] = scalar_value, global_step

    def add_image(
        self, tag: str, img_tensor: Tensor, global_step: int | None = None, *, dataformats: str = "CHW"
    ) -> None:
        assert tag not in self.images
        self.images[tag] = img_tensor, global_step, dataformats

    def add_histogram_raw(self, tag: str, **numbers: Any) -> None:
        assert tag not in self.histograms
        self.histograms[tag] = numbers


@pytest.fixture
def read_back(tmp_path: Path) -> Callable[[Callable[[SummaryWriter], None]], EventAccumulator]:
    """What TensorBoard reads of what was written with a SummaryWriter."""

    def written(write: Callable[[SummaryWriter], None]) -> EventAccumulator:
        with SummaryWriter(str(tmp_path / "runs")) as writer:
            write(writer)
        everything = dict.fromkeys(("scalars", "images", "histograms"), 0)
        return EventAccumulator(str(tmp_path / "runs"), size_guidance=everything).Reload()

    return written


def picture(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Images(tag)
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert image.size == (event.width, event.height)
    return np.asarray(image)


def number(events: EventAccumulator, tag: str) -> float:
    (event,) = events.Scalars(tag)
    return event.value


class TestPictures:
    def test_kernels(self, read_back) -> None:
        kernels = tp.kernels(PooledNet(), "*")
        assert "head" in kernels
        events = read_back(lambda writer: add_kernels(writer, kernels, 7, most=2, scale="each"))
        assert events.Tags()["images"] == ["kernels/features.0", "kernels/features.2"]  # a Linear has none
        for layer in ("features.0", "features.2"):
            expected = np.asarray(kernel_grid(kernels[layer], title=layer, most=2, scale="each"))
            assert np.array_equal(picture(events, f"kernels/{layer}"), expected)
            assert events.Images(f"kernels/{layer}")[0].step == 7

    def test_transposed_convolutions_and_remarks(self, read_back) -> None:
        kernels = tp.kernels(nn.Sequential(nn.ConvTranspose2d(4, 6, 3)))
        events = read_back(lambda writer: add_kernels(writer, kernels, remark="random weights"))
        expected = np.asarray(kernel_grid(kernels["0"].transpose(0, 1), title="0 (random weights)"))
        assert np.array_equal(picture(events, "kernels/0"), expected)

    def test_features_of_the_first_sample(self, read_back) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 8, 9)
        activations = tp.activations(model, x, "*")
        several = {**activations, "lstm": (x, x), "volume": x[None]}
        events = read_back(lambda writer: add_features(writer, several, 2, colormap="inferno"))
        grids = ["features", "features.0", "features.1", "features.2", "act"]
        assert sorted(events.Tags()["images"]) == sorted(f"features/{layer}" for layer in grids)
        with torch.no_grad():
            first = model.act(model.features(x))[0]
        expected = np.asarray(feature_grid(first, title="act", colormap="inferno"))
        assert np.array_equal(picture(events, "features/act"), expected)

    def test_how_they_are_handed_over(self) -> None:
        writer, kernels = Noting(), tp.kernels(PooledNet(), "features.0")
        add_kernels(writer, kernels)
        pixels, step, layout = writer.images["kernels/features.0"]
        assert (pixels.dtype, pixels.shape[2], step, layout) == (torch.uint8, 3, 0, "HWC")
        with pytest.raises(OptionError, match="no scale 'all'"):
            add_kernels(writer, kernels, scale="all")

    def test_steps(self, read_back) -> None:
        def write(writer: SummaryWriter) -> None:
            for step in range(3):
                add_kernels(writer, {"conv": torch.full((1, 1, 2, 2), float(step))}, step)

        events = read_back(write).Images("kernels/conv")
        assert [event.step for event in events] == [0, 1, 2]
        assert events[0].encoded_image_string != events[1].encoded_image_string


class TestStatistics:
    def test_scalars_are_those_of_plain_torch(self, read_back) -> None:
        model, batches = PooledNet().eval(), torch.randn(3, 2, 3, 8, 8)
        model.features[2].weight.data[1] = 0  # a dead channel
        model.features[2].bias.data[1] = -1
        statistics = tp.statistics(model, list(batches), ["act", "head"], loss=lambda out: out.square().sum())
        events = read_back(lambda writer: add_statistics(writer, statistics, 5))
        activation = model.act(model.features(batches.flatten(0, 1)))
        gradient = torch.autograd.grad(model.head(activation.mean((2, 3))).square().sum(), activation)[0].double()
        activation = activation.detach().double()
        for what, values in (("activation", activation), ("gradient", gradient)):
            expected = {
                "mean": values.mean(),
                "std": values.std(correction=0),
                "zero_share": (values == 0).double().mean(),
                "dead": (values == 0).all(0).flatten(1).all(1).sum(),
                "not_finite": torch.tensor(0),
            }
            for name, value in expected.items():
                assert number(events, f"{what}/act/{name}") == pytest.approx(float(value), rel=1e-5), (what, name)
        assert number(events, "activation/act/dead") == 1
        assert number(events, "activation/head/mean") == pytest.approx(statistics["head"].output.summary().mean)
        assert {event.step for tag in events.Tags()["scalars"] for event in events.Scalars(tag)} == {5}

    def test_histograms_add_up(self, read_back) -> None:
        model, x = PooledNet().eval(), torch.randn(4, 3, 8, 8)
        statistics = tp.statistics(model, [x], "features.2")
        events = read_back(lambda writer: add_statistics(writer, statistics))
        with torch.no_grad():
            values = model.features(x).double()
        (event,) = events.Histograms("activation/features.2/histogram")
        found = event.histogram_value
        counts, limits = np.array(found.bucket), np.array(found.bucket_limit)
        assert found.num == values.numel()
        assert counts.sum() == pytest.approx(values.numel())
        assert (found.min, found.max) == pytest.approx((float(values.min()), float(values.max())))
        assert found.max == limits[-1]
        assert found.sum == pytest.approx(float(values.sum()), abs=0.02 * values.numel())
        assert found.sum_squares == pytest.approx(float(values.square().sum()), rel=0.05)
        for limit in limits[[7, 31, 55]]:  # what lies below it
            assert counts[limits <= limit].sum() == pytest.approx(int((values <= limit).sum()), abs=10)

    def test_the_number_of_values_is_whole(self) -> None:
        found = []
        for _ in range(40):
            writer, values = Noting(), torch.randn(1, 1, 50_000).abs() ** 2
            add_statistics(writer, tp.statistics(nn.Sequential(nn.Identity()), [values], "0"))
            found.append(writer.histograms["activation/0/histogram"]["num"])
        assert found == [50_000] * 40

    def test_what_is_not_finite_is_counted_and_left_out(self, read_back) -> None:
        x = torch.tensor([[1.0, math.nan, math.inf, 3.0, -math.inf, 0.0]])
        statistics = tp.statistics(nn.Sequential(nn.Identity()), [x], "0")
        events = read_back(lambda writer: add_statistics(writer, statistics))
        assert number(events, "activation/0/not_finite") == 3
        assert number(events, "activation/0/mean") == pytest.approx(4 / 3)
        assert number(events, "activation/0/zero_share") == pytest.approx(1 / 3)
        assert events.Histograms("activation/0/histogram")[0].histogram_value.num == 3

    def test_nothing_but_what_is_there(self) -> None:
        """No histogram where none was kept or no value came; no gradient where none was asked for; no silent layer."""

        class Silent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.act, self.unused = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.act(self.conv(x) * math.nan)

        model, writer = Silent(), Noting()
        add_statistics(writer, tp.statistics(model, [torch.ones(1, 3, 2, 2)]), 1)
        assert set(writer.histograms) == {"activation/conv/histogram"}
        names = ("mean", "std", "zero_share", "dead", "not_finite")
        assert set(writer.scalars) == {f"activation/{layer}/{name}" for layer in ("conv", "act") for name in names}
        assert writer.scalars["activation/act/not_finite"] == (16, 1)
        assert math.isnan(writer.scalars["activation/act/mean"][0])
        writer = Noting()
        add_statistics(writer, tp.statistics(model, [torch.ones(1, 3, 2, 2)], "conv", histogram=False))
        assert not writer.histograms

    def test_calls_and_paths_have_tags_of_their_own(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act, self.lstm = nn.ReLU(), nn.LSTM(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.lstm(self.act(self.act(x) - 1))[0]

        writer, x = Noting(), torch.full((2, 3, 4), 3.0)
        add_statistics(writer, tp.statistics(Twice(), [x]))
        assert writer.scalars["activation/act[0]/mean"] == (3, 0)
        assert writer.scalars["activation/act[1]/mean"] == (2, 0)
        assert {"activation/lstm:0/mean", "activation/lstm:1.0/mean", "activation/lstm:1.1/mean"} <= set(writer.scalars)


class TestGradientFlow:
    def test_norms_are_those_of_a_backward_pass(self, read_back) -> None:
        model, x, labels = PooledNet().eval(), torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 3, 1])
        model.features[0].requires_grad_(False)
        flow = tp.gradient_flow(model, x, labels)
        events = read_back(lambda writer: add_gradient_flow(writer, flow, 9))
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        taking = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert "features.0.weight" not in taking
        assert set(events.Tags()["scalars"]) == {
            *(f"gradient_norm/{name}" for name in taking),
            "gradient_norm/all",
            "loss",
        }
        for name, gradient in taking.items():
            assert number(events, f"gradient_norm/{name}") == pytest.approx(float(gradient.norm()), rel=1e-5), name
        whole = torch.stack([gradient.norm() for gradient in taking.values()]).norm()
        assert number(events, "gradient_norm/all") == pytest.approx(float(whole), rel=1e-5)
        assert number(events, "loss") == pytest.approx(loss.item(), rel=1e-5)
        assert events.Scalars("loss")[0].step == 9

    def test_a_plain_writer(self) -> None:
        writer, flow = Noting(), tp.gradient_flow(PooledNet(), torch.randn(2, 3, 4, 4), 1)
        add_gradient_flow(writer, flow, 2)
        assert writer.scalars.pop("loss") == (flow.loss, 2)
        assert writer.scalars.pop("gradient_norm/all") == (flow.total_norm, 2)
        assert writer.scalars == {f"gradient_norm/{row.layer}.{row.parameter}": (row.gradient_norm, 2) for row in flow}


class TestTrainingFlow:
    def test_each_watched_step(self, read_back) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 4, 4)
        model.features[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model, every=2) as seen:
            for _ in range(5):
                model(x).square().sum().backward()
                optimizer.step()
        events = read_back(lambda writer: add_training_flow(writer, seen, since=2))
        for row in seen:
            for what in ("gradient_norm", "weight_norm", "update_ratio"):
                value, tag = getattr(row, what), f"{what}/{row.layer}"
                if value is None:
                    assert tag not in events.Tags()["scalars"]
                elif row.step >= 2:
                    written = {event.step: event.value for event in events.Scalars(tag)}
                    assert sorted(written) == [2, 4]
                    assert written[row.step] == pytest.approx(value, rel=1e-6)
        totals = {event.step: event.value for event in events.Scalars("gradient_norm/all")}
        assert totals == {step: pytest.approx(seen.total_norm(step), rel=1e-6) for step in (2, 4)}

    def test_the_example_runs(self, tmp_path: Path) -> None:
        names = {"torch": torch, "nn": nn, "tp": tp, "folder": tmp_path, "SummaryWriter": SummaryWriter}
        examples = doctest.DocTestParser().get_doctest(add_training_flow.__doc__ or "", names, "example", None, None)
        assert len(examples.examples) == 3
        assert doctest.DocTestRunner().run(examples).failed == 0
        assert list(tmp_path.iterdir())
