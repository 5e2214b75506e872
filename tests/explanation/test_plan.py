"""The planner: which methods share a pass, and what each pass keeps."""

from __future__ import annotations

import pytest

import torchpeek as tp
from torchpeek.errors import InputError, MethodNotFound, OptionError
from torchpeek.explanation.plan import PassRequirements, plan_passes, selected_methods


def planned(names: list[str], *, layer_named: bool = False, fused: bool = False) -> list[list[str]]:
    """The methods of each pass, by name."""
    passes = plan_passes(selected_methods(names), layer_named=layer_named, fused=fused)
    return [[method.name for method, _ in each.methods] for each in passes]


def requirements(names: list[str], **choices: bool) -> PassRequirements:
    """Those of the only pass."""
    [only] = plan_passes(selected_methods(names), **{"layer_named": False, "fused": False, **choices})
    return only.requirements


def test_methods_of_one_layer_share_a_pass() -> None:
    assert planned(["gradcam", "eigencam", "scorecam", "ablationcam"]) == [
        ["gradcam", "eigencam", "scorecam", "ablationcam"]
    ]


def test_methods_that_combine_layers_have_their_own_unless_layers_are_named() -> None:
    assert planned(["gradcam", "polycam", "layercam"]) == [["gradcam", "layercam"], ["polycam"]]
    assert planned(["gradcam", "polycam"], layer_named=True) == [["gradcam", "polycam"]]


def test_methods_that_combine_as_many_layers_share_one() -> None:
    stages = {name: tp.METHODS[name].stages for name in ("polycam", "refinecam")}
    assert stages["polycam"] != stages["refinecam"]
    assert planned(["polycam", "refinecam"]) == [["polycam"], ["refinecam"]]
    assert planned(["gradcam", "layercam"], fused=True) == [["gradcam", "layercam"]]


def test_methods_that_read_attention_have_their_own() -> None:
    assert planned(["rollout", "gradcam", "legrad"]) == [["rollout", "legrad"], ["gradcam"]]


def test_every_method_is_planned_once() -> None:
    for layer_named in (False, True):
        names = [name for group in planned(list(tp.METHODS), layer_named=layer_named) for name in group]
        assert sorted(names) == sorted(tp.METHODS)


def test_a_pass_keeps_what_its_methods_read() -> None:
    assert requirements(["eigencam"]) == PassRequirements(gradients=False)
    assert requirements(["eigencam", "gradcam"]).gradients
    assert requirements(["ablationcam"]).prefix
    assert not requirements(["gradcam"]).prefix
    assert requirements(["rollout"]) == PassRequirements(gradients=True, attention=True, no_layer=True)
    assert requirements(["polycam"]).stages == tp.METHODS["polycam"].stages
    assert requirements(["polycam"]).several
    assert requirements(["gradcam"], fused=True).several
    assert requirements(["gradcam"], fused=True).stages == tp.METHODS["gradcam"].stages


def test_no_layer_is_captured_where_the_methods_read_them_all() -> None:
    assert requirements(["fullgrad"]).no_layer
    assert not requirements(["fullgrad"], layer_named=True).no_layer
    assert not requirements(["fullgrad", "gradcam"]).no_layer
    assert requirements(["legrad"], layer_named=True).no_layer


def test_methods_that_look_at_the_input_need_no_layer_and_join_any_pass() -> None:
    for layer_named in (False, True):
        alone = requirements(["saliency", "occlusion"], layer_named=layer_named)
        assert alone == PassRequirements(gradients=False, several=True, no_layer=True)
    assert not requirements(["saliency", "guided-gradcam"]).no_layer
    assert planned(["saliency", "gradcam"]) == [["saliency", "gradcam"]]
    assert planned(["polycam", "saliency"]) == [["polycam"], ["saliency"]]
    assert requirements(["polycam", "saliency"], layer_named=True).several


def test_what_is_no_selection_of_methods() -> None:
    with pytest.raises(InputError, match="methods is empty"):
        selected_methods([])
    with pytest.raises(MethodNotFound, match="closest"):
        selected_methods(["gradcan"])
    with pytest.raises(OptionError, match="no option 'steps'"):
        selected_methods({"gradcam": {"steps": 3}})
    [(method, options)] = selected_methods("gradcam")
    assert (method.name, options) == ("gradcam", {})
