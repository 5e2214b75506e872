"""Models that take batches of one size only, and inputs whose axis 0 is not that of the samples."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, Notice

X = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
METHODS = [
    "saliency",
    "smoothgrad",
    "integrated-gradients",
    "guided-backprop",
    "guided-gradcam",
    "occlusion",
    "gradcam",
    "gradcam++",
    "eigencam",
    "smoothgradcam++",
    "integrated-gradcam",
    "fullgrad",
    "scorecam",
    "sscam",
    "iscam",
    "ablationcam",
    "recipro-cam",
    "groupcam",
    "opticam",
    "polycam",
    "refinecam",
    "saliency",
    "smoothgrad",
    "integrated-gradients",
    "guided-backprop",
    "occlusion",
    "rise",
]
OPTIONS = {"smoothgrad": {"samples": 5}, "integrated-gradients": {"steps": 5}, "rise": {"samples": 20}}


class Net(nn.Module):
    """Multiplies its features by a table that has a row for each of `size` samples; None for one row for all."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.first, self.act, self.last, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Linear(6, 5)
        row = torch.linspace(0.5, 1.5, 6).view(1, 6, 1, 1)
        self.size = size
        self.register_buffer("table", row if size is None else row.repeat(size, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.last(self.act(self.first(x)))
        if self.size is not None:
            features = features.view(self.size, 6, -1).view(self.size, *features.shape[1:])
        return self.head((features * self.table).mean((2, 3)))


def made(size: int | None) -> Net:
    torch.manual_seed(0)
    return Net(size).double().eval()


def bound_to(size: int, how: str) -> nn.Module:
    if how == "a buffer":
        return made(size)
    return torch.export.unflatten(torch.export.export(made(None), (X[:size],)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["a buffer", "an exported program"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
def test_the_map_is_that_of_the_free_model(size: int, how: str, method: str) -> None:
    layer = None if method == "fullgrad" else ["act", "last"] if method in ("polycam", "refinecam") else "last"
    got, expected = (
        tp.explain(model, X[:size], method=method, layer=layer, target=1, **OPTIONS.get(method, {}))
        for model in (bound_to(size, how), made(None))
    )
    torch.testing.assert_close(got.values, expected.values, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "integrated-gradcam", "smoothgrad", "rise"])
@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
def test_a_buffer_that_one_sample_is_broadcast_to(method: str) -> None:
    """The model runs on one sample, but returns a row for each of the buffer."""

    class Shifted(Net):
        def __init__(self) -> None:
            super().__init__(None)
            self.register_buffer("shift", torch.zeros(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shift

    model, options = Shifted().double().eval(), {"samples": 20} if method == "rise" else {}
    model.load_state_dict(made(None).state_dict(), strict=False)
    got = tp.explain(model, X[:3], method=method, layer="last", target=1, **options)
    expected = tp.explain(made(None), X[:3], method=method, layer="last", target=1, **options)
    torch.testing.assert_close(got.values, expected.values, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("unflatten", [True, False])
def test_another_batch_than_that_of_an_exported_program(unflatten: bool) -> None:
    program = torch.export.export(made(None), (X[:2],))
    model = torch.export.unflatten(program) if unflatten else program.module()
    for count in (1, 3):
        with pytest.raises(
            InputError, match=f"takes batches of 2 only; got {count}. Next: give 2 at a time, or export"
        ):
            tp.explain(model, X[:count], method="saliency")
    dynamic = torch.export.export(made(None), (X[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert tp.explain(dynamic.module(), X[:3], method="saliency").values.shape == (3, 1, 12, 12)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
class TestOtherFunctions:
    def test_the_suggested_layer(self, size: int) -> None:
        got, expected = (tp.explain(model, X[:size], target=1) for model in (made(size), made(None)))
        assert got.provenance.layer == expected.provenance.layer == "last"
        torch.testing.assert_close(got.values, expected.values)

    def test_layers(self, size: int) -> None:
        assert [row.output for row in tp.layers(made(size), X[:size])] == [
            row.output for row in tp.layers(made(None), X[:size])
        ]

    @pytest.mark.parametrize("metric", ["deletion", "infidelity", "max-sensitivity", "randomisation"])
    def test_metrics(self, size: int, metric: str) -> None:
        values = []
        for model in (made(size), made(None)):
            heatmap = tp.explain(model, X[:size], layer="last", target=1)
            values.append(tp.evaluate(model, X[:size], heatmap, metrics=[metric])[metric].values)
        torch.testing.assert_close(*values)

    def test_input_gradients(self, size: int) -> None:
        """Of more inputs than the model takes, and of a number that its batches do not divide."""
        rows, columns = torch.arange(size).repeat(2)[: size + 1], torch.zeros(size + 1, dtype=torch.long)
        changed = X[:size][rows] * 0.5
        (scores, gradients), (their_scores, theirs) = (
            tp.trace(model, X[:size], layer="last", target=1).input_gradients(changed, rows, columns)
            for model in (made(size), made(None))
        )
        torch.testing.assert_close(scores, their_scores)
        torch.testing.assert_close(gradients, theirs)


class Regrouped(nn.Module):
    """Runs with any batch, but returns a row for each of `size` samples."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.act, self.conv, self.head, self.size = nn.ReLU(), nn.Conv2d(3, 6, 3), nn.Linear(6, 5), size

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.conv(x))
        return self.head(features.reshape(self.size or len(x), 6, -1).mean(2))


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "smoothgrad", "integrated-gradcam"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
def test_a_model_that_runs_with_other_batches_and_returns_too_few_rows(size: int, method: str) -> None:
    model, free = Regrouped(size).double().eval(), Regrouped(None).double().eval()
    free.load_state_dict(model.state_dict())
    got, expected = (
        tp.explain(each, X[:size], method=method, layer="act", target=1, **OPTIONS.get(method, {}))
        for each in (model, free)
    )
    torch.testing.assert_close(got.values, expected.values)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "recipro-cam", "smoothgrad", "integrated-gradcam"])
@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
def test_one_that_regroups_smaller_batches_without_an_error(method: str) -> None:
    """Of 32 samples, 16 of a chunk and one of a dry run become 32 rows, too: 16 * 16 values can be divided by 32."""
    model, free = Regrouped(32).double().eval(), Regrouped(None).double().eval()
    free.load_state_dict(model.state_dict())
    x = torch.rand(32, 3, 18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"samples": 2} if method == "smoothgrad" else {}
    got, expected = (tp.explain(each, x, method=method, layer="act", target=1, **options) for each in (model, free))
    torch.testing.assert_close(got.values, expected.values)


def test_a_trace_of_fewer_samples() -> None:
    model, rows = made(3), torch.tensor([2, 0])
    trace = tp.trace(model, X[:3], layer="last", target=1)
    with pytest.warns(Notice, match="Net takes batches of 3 only, so every pass has 3 samples"):
        again = trace.again(X[:2], rows=rows)
    expected = tp.trace(made(None), X[:2], layer="last", target=1)
    torch.testing.assert_close(again.scores, expected.scores)
    torch.testing.assert_close(again.gradients, expected.gradients)
    torch.testing.assert_close(again.activations, expected.activations)
    with pytest.raises(InputError, match="takes batches of 3 only; got 4 inputs"):
        trace.again(X, rows=torch.tensor([0, 1, 2, 0]))


def test_the_first_samples_of_a_trace() -> None:
    trace = tp.trace(made(None), X, layer="last", target=1)
    first, expected = trace.first(2), tp.trace(made(None), X[:2], layer="last", target=1)
    torch.testing.assert_close(first.scores, expected.scores)
    torch.testing.assert_close(first.gradients, expected.gradients)
    torch.testing.assert_close(
        tp.explain(first, method="layercam").values, tp.explain(expected, method="layercam").values
    )


def test_it_is_found_once_and_said_once() -> None:
    model, passes = made(1), []
    model.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tp.explain(model, X[:1], method="scorecam", layer="last", target=1)
        first = len(passes)
        tp.explain(model, X[:1], method="scorecam", layer="last", target=1)
    assert [str(each.message)[:40] for each in caught] == ["Net takes batches of 1 only, so every pa"]
    assert len(passes) - first <= first
    assert set(passes) == {1}


def test_a_failure_of_another_kind_is_the_models_own() -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x == 0).all(-1).any()):
                raise ValueError("a row of zeros")
            return super().forward(x)

    torch.manual_seed(0)
    model = Picky(None).double().eval()
    trace = tp.trace(model, X, layer="last", target=1)
    with pytest.raises(ValueError, match="a row of zeros"):
        trace.rescore(lambda x, rows, trials: x * 0, trials=2)


class Clip(nn.Module):
    """Pictures by texts; the number of texts is fixed."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self.pictures, self.texts = nn.Conv2d(3, 8, 3), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.rand(texts, 1))

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        embedded = torch.cat([self.texts(text), self.scale.expand(-1, 1)], 1)[:, :8]
        return self.pictures(picture).relu().mean((2, 3)) @ embedded.T


class TestAxis0IsNotOfTheSamples:
    @pytest.mark.parametrize("layer", ["pictures", None])
    def test_a_shared_tensor_with_an_entry_for_each(self, layer: str | None) -> None:
        texts = torch.rand(3, 6, dtype=torch.float64)
        model = Clip(3).double().eval()
        with pytest.raises(InputError, match=r"arguments '1'.*tp.Arguments\(..., shared=\["):
            tp.explain(model, tp.Arguments((X[:3], texts)), layer=layer)
        assert tp.explain(model, tp.Arguments((X[:3], texts), shared="1"), layer=layer).values.shape == (3, 1, 10, 10)

    @pytest.mark.parametrize("layer", ["frames", None])
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_frames_of_one_video(self, layer: str | None, kernel: int) -> None:
        class Video(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.frames, self.time, self.head = nn.Conv2d(3, 8, 3), nn.Conv1d(8, 8, kernel), nn.Linear(8, 5)

            def forward(self, x: Tensor) -> Tensor:
                features = self.frames(x).relu().mean((2, 3)).T.unsqueeze(0)  # (1, 8, frames)
                return self.head(self.time(features).mean(2))

        with pytest.raises(InputError, match=r"axis.* 0 .*frames or steps.*inside a module that takes \(1, ...\)"):
            tp.explain(Video().double().eval(), X, layer=layer)

    def test_time_first(self) -> None:
        class TimeFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv1d(6, 8, 3), nn.Linear(8, 5)

            def forward(self, x: Tensor) -> Any:
                return self.head(self.conv(x.permute(1, 2, 0)).relu().mean(2))

        with pytest.raises(
            InputError, match=r"axis 0 of the input \(7, 2, 6\) does not seem to be that of the samples"
        ):
            tp.explain(TimeFirst().eval(), torch.rand(7, 2, 6))


@pytest.mark.filterwarnings("ignore::torchpeek.Notice")
def test_what_was_found_for_one_batch_does_not_speak_for_another() -> None:
    """The model is rebuilt for another batch size."""
    model = made(2)
    tp.explain(model, X[:2], method="scorecam", layer="last", target=1)
    model.size, model.table = 4, model.table[:1].repeat(4, 1, 1, 1)
    got = tp.explain(model, X, method="scorecam", layer="last", target=1).values
    torch.testing.assert_close(got, tp.explain(made(None), X, method="scorecam", layer="last", target=1).values)
