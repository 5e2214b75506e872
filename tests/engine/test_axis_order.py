"""Models with other axis orders than (N, C, *grid): heatmaps and masks lie where the picture is."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import MethodNotApplicable, Notice

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 5}
# Of each: its class, its configuration, what it takes, its grid, and the cell of the grid in that.
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...], tuple[int, ...], Any]] = {
    "videomae": (
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {"image_size": 32, "patch_size": 8, "num_frames": 16, "tubelet_size": 2},
        (16, 3, 32, 32),
        (8, 4, 4),
        lambda t, h, w: (slice(2 * t, 2 * t + 2), slice(None), slice(8 * h, 8 * h + 8), slice(8 * w, 8 * w + 8)),
    ),
    "vivit": (
        "VivitForVideoClassification",
        "VivitConfig",
        {"image_size": 32, "num_frames": 4, "tubelet_size": [2, 8, 8]},
        (4, 3, 32, 32),
        (2, 4, 4),
        lambda t, h, w: (slice(2 * t, 2 * t + 2), slice(None), slice(8 * h, 8 * h + 8), slice(8 * w, 8 * w + 8)),
    ),
    "ast": (
        "ASTForAudioClassification",
        "ASTConfig",
        {"patch_size": 8, "num_mel_bins": 32, "max_length": 64, "frequency_stride": 8, "time_stride": 8},
        (64, 32),
        (4, 8),
        lambda f, t: (slice(8 * t, 8 * t + 8), slice(8 * f, 8 * f + 8)),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, tuple[int, ...], Any]:
    name, config, options, size, grid, cell = CASES[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**SMALL, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.double().eval(), torch.randn(2, *size, dtype=torch.float64), grid, cell


def test_a_cell_of_the_input_is_a_cell_of_the_grid(case: tuple[nn.Module, Tensor, tuple[int, ...], Any]) -> None:
    """Zeroed in the trace's inputs and in the model's own order: the same scores."""
    model, x, grid, cell = case
    trace = tp.trace(model, x, target=2)
    places = [(0,) * len(grid), tuple(size - 1 for size in grid), tuple(range(1, len(grid) + 1))]

    def zeroed(given: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        sides = [size // cells for size, cells in zip(given.shape[2:], grid, strict=True)]
        for number, trial in enumerate(trials.tolist()):
            where = (slice(p * s, p * s + s) for p, s in zip(places[trial], sides, strict=True))
            given[(number, slice(None), *where)] = 0
        return given

    found = trace.rescore(zeroed, len(places))
    for trial, place in enumerate(places):
        changed = x.clone()
        changed[(slice(None), *cell(*place))] = 0
        torch.testing.assert_close(found[:, trial, 0], model(changed).logits[:, 2])


def test_the_last_tokens_before_attention_lie_in_that_order(
    case: tuple[nn.Module, Tensor, tuple[int, ...], Any],
) -> None:
    """Where the layer's activation answers to a change in one cell is that cell of the map."""
    model, x, grid, cell = case
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    place = tuple(range(1, len(grid) + 1))
    changed = x.clone()
    changed[(slice(None), *cell(*place))] += 1
    one, other = (tp.trace(model, each, layer=layer, target=2).activations for each in (x, changed))
    where = (one != other).flatten(1, -len(grid) - 1).any(1)
    assert where.shape[1:] == grid
    assert where[0].nonzero().tolist() == [list(place)]


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "groupcam", "recipro-cam", "legrad"])
def test_methods(case: tuple[nn.Module, Tensor, tuple[int, ...], Any], method: str) -> None:
    model, x, grid, _ = case
    together = tp.explain(model, x, method=method, target=2).values
    assert together.shape == (2, 1, *grid)
    alone = tp.explain(model, [x[:1], {model.main_input_name: x[1:]}], method=method, target=2)
    torch.testing.assert_close(torch.cat([each.values for each in alone]), together, rtol=1e-6, atol=1e-9)


class Gray(nn.Module):
    """(N, H, W), to which it adds the axis of channels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.unsqueeze(1)).relu().mean((2, 3)))


def test_an_input_without_channels_is_not_masked() -> None:
    model, x = Gray().eval(), torch.randn(2, 8, 6)
    assert tp.explain(model, x, target=1).values.shape == (2, 1, 8, 6)
    with pytest.raises(MethodNotApplicable, match=r"8 x 6, cannot mask.*takes \(N, 1, \*grid\)"):
        tp.explain(model, x, method="scorecam", target=1)
    for method in ("saliency", "occlusion"):
        with pytest.warns(Notice, match=f"{method}: the inputs are read as 8 channels on a grid of 6. If"):
            tp.explain(model, x, method=method, target=1)


@pytest.mark.parametrize("method", ["saliency", "input-x-gradient", "integrated-gradients", "occlusion", "rise"])
def test_maps_of_the_input_are_on_its_grid(case: tuple[nn.Module, Tensor, tuple[int, ...], Any], method: str) -> None:
    """In the order (C, *grid), whatever the order that the model takes: as of a model that takes that order."""
    model, x, _, _ = case
    trace = tp.trace(model, x, target=2)

    class ChannelsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model
            self.order = trace.forward_pass.call.axis_order

        def forward(self, picture: Tensor) -> Tensor:
            return self.inside(self.order.to_model(picture)).logits

    options: dict[str, Any] = {"integrated-gradients": {"steps": 2}, "rise": {"samples": 4}}.get(method, {})
    if method == "occlusion":
        options = {"window": [-(-size // 2) for size in trace.inputs.shape[2:]]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # too few steps
        got = tp.explain(model, x, method=method, target=2, **options).values
        expected = tp.explain(ChannelsFirst(), trace.inputs, method=method, target=2, **options).values
    assert got.shape == (2, 1, *trace.inputs.shape[2:])
    torch.testing.assert_close(got, expected)


class Logits(nn.Module):
    """What users put around a model of transformers."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.net = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


def test_in_a_wrapper_it_is_the_same(case: tuple[nn.Module, Tensor, tuple[int, ...], Any]) -> None:
    model, x, _, _ = case
    bare = tp.explain(model, x, method="groupcam", target=2).values
    for wrapped in (Logits(model), nn.DataParallel(model)):
        torch.testing.assert_close(tp.explain(wrapped, x, method="groupcam", target=2).values, bare)


def test_asked_again_with_what_it_was_given(case: tuple[nn.Module, Tensor, tuple[int, ...], Any]) -> None:
    model, x, _, _ = case
    trace = tp.trace(model, x, target=2)
    torch.testing.assert_close(trace.again(x).scores, trace.scores)
    torch.testing.assert_close(trace.again(x + 1).scores[:, 0], model(x + 1).logits[:, 2])
    smooth = tp.explain(model, x, target=2, smooth=tp.Smoothing(factors=(1.0,))).values
    plain, mirrored = (tp.explain(model, each, target=2).values for each in (x, x.flip(1 if x.ndim == 3 else -1)))
    torch.testing.assert_close(smooth, (plain + mirrored.flip(-1)) / 2)


def test_as_many_frames_as_channels_and_another_length() -> None:
    torch.manual_seed(0)
    options = {**SMALL, "image_size": 32, "patch_size": 8, "num_frames": 3, "tubelet_size": 1}
    model = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**options)).eval()
    x = torch.randn(1, 3, 3, 32, 32)
    trace = tp.trace(model, x, target=1)
    assert torch.equal(trace.inputs, x.transpose(1, 2))
    torch.testing.assert_close(trace.again(x).scores, trace.scores)
    sizes = {"patch_size": 8, "num_mel_bins": 32, "max_length": 64, "frequency_stride": 5, "time_stride": 5}
    ast = transformers.ASTForAudioClassification(transformers.ASTConfig(**SMALL, **sizes)).eval()
    trace = tp.trace(ast, torch.randn(1, 63, 32), target=1)  # as many patches as of 64
    assert trace.inputs.shape == (1, 1, 32, 63)


def test_what_it_was_given_is_said_as_it_was_given() -> None:
    options = {**SMALL, "image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    model = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**options)).eval()
    with pytest.raises(ValueError) as caught:
        tp.trace(model, torch.randn(1, 4, 3, 40, 40))
    assert any("(1, 4, 3, 40, 40)" in note for note in caught.value.__notes__)
