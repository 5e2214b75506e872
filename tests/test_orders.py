"""Models that take their axes in another order than (N, C, *grid): maps and masks lie where the picture is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import MethodNotApplicable

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
    with pytest.raises(MethodNotApplicable, match=r"axis of channels.*takes \(N, 1, \*grid\)"):
        tp.explain(model, x, method="scorecam", target=1)
