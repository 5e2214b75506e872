"""Every metric in the registry: against its replica, and invariants that do not depend on the formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import messy, state_of
from paths import ROOT
from replicas import further_metrics as further
from replicas import metric_terms as terms
from replicas import metrics as slow
from torchpeek.engine.targets import ClassesPerSample
from torchpeek.metrics import METRICS, CleanPass, joined
from torchpeek.metrics.fidelity import random_patches, random_positions, random_squares
from torchpeek.metrics.fills import drawn_noise, filled
from torchpeek.metrics.stability import randomised

SMALL: dict[str, dict[str, Any]] = {  # options for pictures of a few pixels
    "deletion": {"steps": 7},
    "insertion": {"steps": 7},
    "aopc": {"cells": 3, "steps": 5},
    "mufidelity": {"cells": 3, "share": 0.3, "samples": 12},
    "infidelity": {"samples": 9},
    "max-sensitivity": {"samples": 3, "radius": 0.1},
    "randomisation": {"stages": 3},
    "pointing-game": {"tolerance": 1.0},
    "top-k": {"k": 17},
    "effective-complexity": {"threshold": 0.3},
    "selectivity": {"cells": 4},
    "monotonicity": {"cells": 4},
    "monotonicity-correlation": {"cells": 4, "samples": 3},
    "sensitivity-n": {"sizes": 3, "samples": 7},
    "sufficiency": {"cells": 4, "samples": 40, "share": 0.1, "baseline": 2.0},
    "average-sensitivity": {"samples": 3, "radius": 0.1},
    "local-lipschitz": {"samples": 3, "radius": 0.1},
    "relative-input-stability": {"samples": 3, "radius": 0.1},
    "relative-output-stability": {"samples": 3, "radius": 0.1},
}
every_metric = pytest.mark.parametrize("name", METRICS)


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Smooth, with several classes that a change of the input moves a good deal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=3)
        self.second = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(torch.tanh(self.second(torch.sin(self.first(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return Net().double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def regions() -> Tensor:
    """For each sample and score one, of an odd shape."""
    return torch.rand(2, 2, 12, 9, generator=torch.Generator().manual_seed(5)) > 0.9


LABELS = torch.tensor([[1, 3], [0, 2]])


@pytest.fixture(scope="module")
def heatmap(model: nn.Module, x: Tensor) -> tp.Heatmap:
    """Signed, on a grid of 4 x 3, for two classes of two samples."""
    return tp.explain(model, x, method="hirescam", layer="second", target=LABELS)


def measured(model: nn.Module, x: Tensor, heatmap: Any, name: str, masks: Tensor | None, **more: Any) -> Any:
    return tp.evaluate(model, x, heatmap, metrics={name: SMALL.get(name, {})}, masks=masks, **more)


def clean_of(model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> CleanPass:
    return CleanPass(tp.trace(model, x, layer="second", target=ClassesPerSample(heatmap.question.labels)))


def tie_keys(clean: CleanPass, n: int, count: int) -> list[int]:
    """In which order equal values are taken: the inverse of the permutation that is drawn for the sample."""
    order = torch.randperm(count, generator=clean.generators()[n])
    return torch.empty_like(order).scatter_(0, order, torch.arange(count)).tolist()


def draws_of(clean: CleanPass, n: int, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The changes of a sample's input, (samples, C, H, W)."""
    generator = clean.generators(salt=2)[n]
    each = [torch.rand(x.shape[1:], generator=generator, dtype=torch.float64) for _ in range(options["samples"])]
    return (2 * torch.stack(each) - 1) * options["radius"]


def by_replica(name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor) -> Tensor:
    """(N, K), one sample and score after the other."""
    clean, size = clean_of(model, x, heatmap), tuple(x.shape[2:])
    options = {**METRICS[name].options, **SMALL.get(name, {})}
    found = torch.zeros(heatmap.scores.shape, dtype=torch.float64)
    for n in range(len(x)):
        for k in range(found.shape[1]):
            label, values, region = int(LABELS[n, k]), heatmap.values[n, k], regions[n, k].tolist()
            keys = tie_keys(clean, n, math.prod(size))

            def fill(kind: str, n: int = n) -> Tensor:
                return filled(clean, kind)[n]

            def again(picture: Tensor, label: int = label) -> Tensor:
                return tp.explain(model, picture[None], method="hirescam", layer="second", target=label).values[0, 0]

            def asked(pictures: Tensor, label: int = label) -> Tensor:
                return model(pictures)[:, label : label + 1]

            given = model, x[n], values, label
            match name:
                case "average-drop" | "increase" | "average-gain":
                    number = getattr(slow, name.replace("-", "_"))(*given)
                case "deletion":
                    number = slow.area(slow.deletion_curve(*given, options["steps"], fill("zeros"), keys))
                case "insertion":
                    number = slow.area(slow.insertion_curve(*given, options["steps"], fill("blur"), keys))
                case "aopc":
                    keys = tie_keys(clean, n, options["cells"] ** 2)
                    number = slow.aopc(*given, options["cells"], options["steps"], fill("noise"), keys)
                case "road-morf" | "road-lerf" | "road":
                    drawn = torch.randn(x.shape[1:], generator=clean.generators(4)[n], dtype=torch.float64)
                    number = getattr(slow, name.replace("-", "_"))(*given, keys, 0.01 * drawn)
                case "mufidelity":
                    subsets = random_patches(options["cells"] ** 2, options["share"], options["samples"], 0)
                    subsets = subsets.view(-1, options["cells"], options["cells"])
                    number = slow.mufidelity(*given, subsets.tolist(), fill("zeros"))
                case "infidelity":
                    subsets = random_squares(x.shape[2:], options["samples"], 0)
                    number = slow.infidelity(asked, x[n], values, subsets.tolist(), fill("zeros"))
                case "max-sensitivity":
                    number = slow.max_sensitivity(again, x[n], draws_of(clean, n, x, options))
                case "average-sensitivity" | "local-lipschitz":
                    compute = getattr(further, name.replace("-", "_"))
                    number = compute(again, x[n], draws_of(clean, n, x, options))
                case "relative-input-stability" | "relative-output-stability":
                    compute = getattr(further, name.replace("-", "_"))
                    number = compute(again, model, x[n], draws_of(clean, n, x, options))
                case "selectivity" | "monotonicity":
                    keys = tie_keys(clean, n, options["cells"] ** 2)
                    number = getattr(further, name)(*given, options["cells"], fill("zeros"), keys)
                case "monotonicity-correlation":
                    contents = drawn_noise(clean, options["samples"], salt=5)[n]
                    number = further.monotonicity_correlation(*given, options["cells"], contents)
                case "sensitivity-n":
                    subsets = random_positions(x.shape[2:], options["sizes"], options["samples"], 0)
                    each_size = subsets.chunk(options["sizes"])
                    counts = further.subset_sizes(math.prod(size), options["sizes"])
                    assert [each.flatten(1).sum(1).unique().tolist() for each in each_size] == [[n] for n in counts]
                    found_at = further.sensitivity_n(asked, x[n], values, each_size, fill("zeros"))
                    number = sum(found_at) / len(found_at)
                case "completeness":
                    number = further.completeness(asked, x[n], values, fill("zeros"))
                case "sufficiency":
                    subsets = random_patches(options["cells"] ** 2, 0.5, options["samples"], 0)
                    subsets = subsets.view(-1, options["cells"], options["cells"]).tolist()
                    number = further.sufficiency(*given, options["share"], subsets, fill(options["baseline"]), keys)
                case "top-k":
                    number = further.top_k(values, region, options["k"])
                case "auc":
                    number = further.auc(values, region)
                case "effective-complexity":
                    number = further.effective_complexity(values, options["threshold"])
                case "adcc":
                    number = slow.adcc(*given, again)
                case "pointing-game":
                    number = slow.pointing_game(values, region, options["tolerance"])
                case "energy-pointing-game" | "grid-pointing-game":
                    number = slow.energy_pointing_game(values, region)
                case "relevance-rank-accuracy":
                    number = slow.relevance_rank_accuracy(values, region)
                case "iou":
                    number = slow.iou(values, region, options["threshold"])
                case "sparseness":
                    number = slow.gini(values)
                case "entropy":
                    number = slow.entropy(values)
                case "random-class":
                    shift = torch.randint(1, 4, (2,), generator=clean.generators(salt=3)[n])
                    number = abs(terms.spearman(values, again(x[n], (label + int(shift[k])) % 4)))
                case "randomisation":
                    found_at = []
                    for other in randomised(model, options["stages"], 0):
                        asked_of = tp.explain(other, x[n : n + 1], method="hirescam", layer="second", target=label)
                        found_at.append(abs(terms.spearman(values, asked_of.values[0, 0])))
                    number = sum(found_at) / len(found_at)
                case _:
                    raise AssertionError(f"no replica of {name}; write one")
            found[n, k] = number
    return found


@every_metric
def test_against_the_replica(name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor) -> None:
    found = measured(model, x, heatmap, name, regions)[name]
    expected = by_replica(name, model, x, heatmap, regions)
    # The imputation is solved to a residual, not to the last digit.
    tolerance = 2e-4 if name.startswith("road") else 1e-8
    torch.testing.assert_close(found.values.double(), expected, rtol=tolerance, atol=tolerance)
    assert found.values.unique().numel() > 1 or name in ("increase", "average-gain")


@every_metric
class TestInvariants:
    def test_one_by_one_and_in_any_chunks_is_as_all_at_once(
        self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor
    ) -> None:
        together = measured(model, x, heatmap, name, regions)[name]
        for batch in (1, 3):
            found = measured(model, x, heatmap, name, regions, batch=batch)[name]
            torch.testing.assert_close(found.values, together.values, rtol=1e-5, atol=1e-5)
        alone = joined([measured(model, x[n : n + 1], heatmap[n], name, regions[n : n + 1]) for n in range(2)])[name]
        torch.testing.assert_close(alone.values, together.values, rtol=1e-5, atol=1e-5)
        for baseline, values in together.baselines.items():
            torch.testing.assert_close(alone.baselines[baseline], values, rtol=1e-5, atol=1e-5)

    def test_several_methods_together_are_as_each_alone(
        self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor
    ) -> None:
        both = {"one": heatmap, "other": tp.explain(model, x, method="gradcam", layer="first", target=LABELS)}
        if name == "adcc":  # which asks at the layer of each
            assert both["other"].provenance.layer == "first"
        together = measured(model, x, both, name, regions)
        for key, each in both.items():
            alone = measured(model, x, each, name, regions)[name]
            torch.testing.assert_close(together[key][name].values, alone.values, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(together[key][name].baselines["centre"], alone.baselines["centre"])

    def test_the_baselines_are_those_heatmaps_scored_the_same_way(
        self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor
    ) -> None:
        found = measured(model, x, heatmap, name, regions)[name]
        rows, columns = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (4, 3))
        gaussian = torch.exp(-(rows[:, None] ** 2) / 2 - (columns / 0.75) ** 2 / 2)  # sigma: 4 / 4, 3 / 4
        values = gaussian.expand_as(heatmap.values)
        centred = replace(heatmap, values=values)

        def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            return values[: len(inputs)]

        again = measured(model, x, centred, name, regions, explain=explain)[name]
        torch.testing.assert_close(again.values, found.baselines["centre"], rtol=1e-8, atol=1e-10)
        assert set(found.baselines) == {"random", "centre"}
        assert all(each.shape == found.values.shape for each in found.baselines.values())

    def test_a_seed_decides_all_that_is_drawn(
        self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap, regions: Tensor
    ) -> None:
        one, again, other = (measured(model, x, heatmap, name, regions, seed=seed)[name] for seed in (0, 0, 1))
        assert torch.equal(one.values, again.values)
        assert torch.equal(one.baselines["random"], again.baselines["random"])
        if name not in ("increase", "average-gain", "randomisation", "sufficiency"):
            assert not torch.equal(one.baselines["random"], other.baselines["random"])

    @pytest.mark.filterwarnings("ignore::torchpeek.Notice")
    def test_the_model_is_left_as_it_was(self, name: str) -> None:
        model = messy()
        x = torch.randn(2, 3, 12, 12)
        heatmap = tp.explain(model, x, method="gradcam", target=[[0, 1], [2, 0]])
        model.train()
        before, drawn = state_of(model), torch.get_rng_state()
        measured(model, x, heatmap, name, torch.ones(2, 12, 12, dtype=torch.bool))
        after = state_of(model)
        assert before.keys() == after.keys()
        assert all(_same(before[key], after[key]) for key in before)
        assert torch.equal(drawn, torch.get_rng_state())

    def test_of_a_heatmap_of_zeros(self, name: str, model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> None:
        """A number, whatever it says; and one that no method is proud of."""
        nothing = replace(heatmap, values=torch.zeros_like(heatmap.values))

        def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            return torch.zeros(len(inputs), 2, 4, 3, dtype=inputs.dtype)

        found = measured(model, x, nothing, name, torch.ones(2, 12, 9, dtype=torch.bool), explain=explain)[name]
        assert bool(found.values.isfinite().all())

    def test_is_documented(self, name: str) -> None:
        entry = METRICS[name]
        page = (ROOT / "docs" / "metrics.md").read_text()
        assert f"| `{name}` | {'higher' if entry.higher_is_better else 'lower'} |" in page
        assert entry.paper.startswith(("arXiv:", "doi:"))


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one == other
