"""The part of the matrix of architectures that runs in 90 seconds; make matrix runs all of it."""

from __future__ import annotations

import re

import pytest

from matrix.architectures import ARCHITECTURES, QUICK
from matrix.building import Architecture, available
from matrix.checks import examined
from matrix.summary import BEGIN, END, exceptions
from paths import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each.quick], ids=str)
def test_it_works(architecture: Architecture) -> None:
    if not available(architecture):
        pytest.skip(f"this {architecture.source} has no {architecture.name}")
    row = examined(architecture)
    assert not row["failed"], exceptions([row])
    assert row["replay"] == "used"


def test_every_family_is_in_it() -> None:
    """Every module of timm that has a classifier, and every family of torchvision."""
    timm = pytest.importorskip("timm")
    import torchvision
    from torchvision.models import list_models

    listed = {(each.source, each.family) for each in ARCHITECTURES}
    modules = {timm.models._registry._model_to_module[name] for name in timm.list_models()}
    assert modules <= {family for source, family in listed if source == "timm"}
    names = {each.name for each in ARCHITECTURES if each.source == "torchvision"}
    families = {_family(name) for name in list_models(module=torchvision.models)}
    assert families <= {_family(name) for name in names}
    assert len(ARCHITECTURES) >= 120
    assert {each.name for each in ARCHITECTURES} >= QUICK


def test_the_page_lists_them_all() -> None:
    table = (ROOT / "docs" / "models.md").read_text().partition(BEGIN)[2].partition(END)[0]
    assert re.findall(r"^\| `(\S+)` \|", table, re.MULTILINE) == [str(each) for each in ARCHITECTURES]


def _family(name: str) -> str:
    """`resnet18` -> `resnet`, `efficientnet_v2_s` -> `efficientnet_v2`."""
    return re.match(r"(wide_)?[a-z]+(_v\d|_[xy])?", name)[0]
