"""Every layout: activations, gradients, edits and heatmaps against the raw tensor, taken apart by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchpeek as tp
from networks.layouts import CASES, LABELS, Case, gradients, raw
from replicas import one_pass as replicas
from torchpeek.errors import Notice

pytestmark = pytest.mark.usefixtures("one_thread")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class TestEveryLayout:
    @every_case
    def test_activations_and_gradients(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        layout = trace.at["layer"].layout
        assert (layout.kind, layout.grid, layout.prefix, layout.suffix) == (
            case.kind,
            case.grid,
            case.prefix,
            case.suffix,
        )
        expected = case.by_hand(case.tensor(raw(model, x)[0]).detach(), 2)
        assert torch.equal(trace.activations.squeeze(1), expected)
        found = gradients(case, model, x, LABELS)
        torch.testing.assert_close(trace.gradients, found, rtol=1e-10, atol=1e-13)
        assert float(found.flatten(2).norm(dim=2).min()) > 1e-6  # there is something to compare

    @every_case
    def test_alone_or_under_the_suggested_name(self, case: Case) -> None:
        """A batch of one, whose axis of samples any axis of length 1 could be; and the layer that is suggested."""
        model, x = case.made(), case.inputs(1)
        trace = tp.trace(model, x, target=[[1]])
        assert trace.layer == "layer"
        torch.testing.assert_close(trace.gradients, gradients(case, model, x, [[1]]), rtol=1e-10, atol=1e-13)

    @every_case
    def test_changed_activations_are_put_back(self, case: Case) -> None:
        """By a replay; the tokens that are not of the grid stay as they were."""
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        factors = torch.tensor([0.0, -1.5, 0.5], dtype=torch.float64)

        def edit(activation: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
            shape = (-1, *(1 for _ in activation.shape[1:]))
            ramp = torch.linspace(0, 1, activation[0].numel(), dtype=torch.float64).view(1, *activation.shape[1:])
            return activation * factors[trials].view(shape) + ramp * rows.view(shape)

        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)  # that it was no replay
            scores = trace.ablate(edit, 3)
        for trial in range(3):
            rows, trials = torch.arange(2), torch.full((2,), trial)

            def change(output: Any, rows: Tensor = rows, trials: Tensor = trials) -> Any:
                tensor = case.tensor(output)
                return case.rewrapped(output, case.put_back(tensor, edit(case.by_hand(tensor, 2), rows, trials)))

            with torch.no_grad():
                output = raw(model, x, change)[1]
            expected = output.gather(1, torch.tensor(LABELS))
            torch.testing.assert_close(scores[:, trial], expected, rtol=1e-10, atol=1e-12)

    @every_case
    def test_second_derivatives(self, case: Case) -> None:
        """Along the activation, by differences of our own gradients."""
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        vector = trace.activations
        step, ends = 1e-5, []
        for sign in (1, -1):

            def change(output: Any, sign: int = sign) -> Any:
                tensor = case.tensor(output)
                ends.append(case.put_back(tensor, case.by_hand(tensor, 2) * (1 + sign * step)).detach())
                ends[-1].requires_grad_()
                return case.rewrapped(output, ends[-1])

            output = raw(model, x, change)[1]
            at = ends.pop()
            of_each = [
                torch.stack(
                    [
                        case.by_hand(torch.autograd.grad(output[n, label], at, retain_graph=True)[0], 2)[n]
                        for label in row
                    ]
                )
                for n, row in enumerate(LABELS)
            ]
            ends.insert(0, torch.stack(of_each))
        less, more = ends
        expected = (more - less) / (2 * step)
        torch.testing.assert_close(trace.hessian_times(vector), expected, rtol=1e-5, atol=1e-8)

    @every_case
    @pytest.mark.parametrize("method", ["hirescam", "layercam"])
    def test_methods(self, case: Case, method: str) -> None:
        """The replicas are for two axes: the grid is laid flat, which these methods do not mind."""
        model, x = case.made(), case.inputs()
        heatmap = tp.explain(model, x, method=method, layer="layer", target=LABELS)
        A = case.by_hand(case.tensor(raw(model, x)[0]).detach(), 2).flatten(2).unsqueeze(2).numpy()
        g = gradients(case, model, x, LABELS).flatten(3).unsqueeze(3).numpy()
        replica = getattr(replicas, method)
        for n in range(2):
            for k in range(3):
                expected = replica(A[n], g[n, k]).reshape(case.grid)
                np.testing.assert_allclose(heatmap.values[n, k].numpy(), expected, rtol=1e-9, atol=1e-13)

    @every_case
    def test_mirrored(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        x = x[..., : case.grid[-1] * case.patch[-1]]  # so that patches lie on patches
        smooth = tp.Smoothing(factors=(1.0,))
        found = tp.explain(model, x, layer="layer", target=LABELS, smooth=smooth).values
        plain, turned = (tp.explain(model, each, layer="layer", target=LABELS).values for each in (x, x.flip(-1)))
        torch.testing.assert_close(found, (plain + turned.flip(-1)) / 2, rtol=1e-10, atol=1e-13)

    @every_case
    def test_another_size_of_input(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        larger = torch.randn(2, 3, *(size + patch for size, patch in zip(case.size, case.patch, strict=True)))
        larger = larger.double()
        again = trace.again(larger)
        grown = Case(**{**case.__dict__, "size": tuple(larger.shape[2:])})
        assert again.at["layer"].layout.grid == grown.grid
        torch.testing.assert_close(again.gradients, gradients(grown, model, larger, LABELS), rtol=1e-10, atol=1e-13)

    @every_case
    def test_said_by_the_user(self, case: Case) -> None:
        """By its text, or as a Layout: what would be found anyway, also where it is only the kind."""
        model, x = case.made(), case.inputs()
        found = tp.trace(model, x, layer="layer", target=LABELS)
        layout = found.at["layer"].layout
        for said in (layout, str(layout), tp.Layout(case.kind, case.grid, case.prefix, case.suffix), case.kind):
            trace = tp.trace(model, x, layer="layer", layout=said, target=LABELS)
            assert trace.at["layer"].layout == layout
            assert torch.equal(trace.gradients, found.gradients)


NO_CLASS: dict[str, Any] = {"class_token": False, "global_pool": "avg", "num_classes": 4}
