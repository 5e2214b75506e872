"""Recordings, calls and gradients show themselves in a notebook."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp


@pytest.fixture
def model() -> nn.Sequential:
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu)


def cells(html: str) -> list[str]:
    return [part.partition("</td>")[0].rpartition(">")[2] for part in html.split("<td")[1:]]


def test_a_recording_is_a_table(model) -> None:
    with tp.record(model, ["0", "1"]) as tape:
        model(torch.rand(2, 3))
    assert cells(tape._repr_html_()) == ["0", "1", "(2, 4) float32", "1", "2", "(2, 4) float32"]


def test_a_call_says_what_was_recorded(model) -> None:
    with tp.record(model, ["0"], inputs=True, gradients=True) as tape:
        output = model(torch.rand(2, 3, requires_grad=True))
        before = cells(tape["0"]._repr_html_())
        output.sum().backward()
    assert before == ["0[0]", "(2, 4) float32", "(2, 3) float32", "none arrived", "none arrived"]
    assert cells(tape["0"][0]._repr_html_()) == ["0", "(2, 4) float32", "(2, 3) float32", "the same", "the same"]


def test_several_calls_are_numbered(model) -> None:
    with tp.record(model, ["1"]) as tape:
        model(torch.rand(2, 3))
    assert cells(tape["1"]._repr_html_())[::2] == ["1[0]", "1[1]"]


def test_a_layer_that_was_not_called(model) -> None:
    tape = tp.record(model, "0")
    assert "was not called" in tape._repr_html_()
    assert "0" in tape["0"]._repr_html_()


def test_what_a_function_made_is_described_by_its_shape(model) -> None:
    with tp.record(model, ["0"], keep=lambda tensor: tensor.mean(1)) as tape:
        model(torch.rand(2, 3))
    assert "(2,) float32" in str(tape)
    assert "tensor(" not in str(tape) + tape._repr_html_()


def test_names_are_escaped() -> None:
    model = nn.Module()
    model.add_module("<b>", nn.Linear(3, 2))
    model.forward = lambda x: model.get_submodule("<b>")(x)  # type: ignore[method-assign]
    with tp.record(model, "<b>") as tape:
        model(torch.rand(1, 3))
    for shown in (tape, tape["<b>"], tape["<b>"][0]):
        assert "<b>" not in shown._repr_html_()
        assert "&lt;b&gt;" in shown._repr_html_()


def test_gradients_print_as_a_table(model) -> None:
    with tp.record(model, ["0", "1"], gradients=True) as tape:
        output = model(torch.rand(2, 3))
    gradients = tape.grad(output.sum())
    assert str(gradients).splitlines() == [
        "layer  call  gradient",
        "0            (2, 4) float32",
        "1      0     (2, 4) float32",
        "1      1     (2, 4) float32",
    ]
    assert "(2, 4) float32" in gradients._repr_html_()
