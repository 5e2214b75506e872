"""Values of other types than the annotation names, which mean the same: each is taken as the plain value is."""

from __future__ import annotations

import itertools
from collections import UserDict, UserList, deque, namedtuple
from collections.abc import Mapping
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.annotation_checks import check_of
from torchpeek.argument_types import Number, Whole
from torchpeek.errors import OptionError
from torchpeek.keywords import checked_keywords

Pair = namedtuple("Pair", ["height", "width"])  # a user's, without types


class Three(IntEnum):
    THREE = 3


class Word(StrEnum):
    NEAREST = "nearest"


class OfUser(list):  # type: ignore[type-arg]
    def __init__(self, entries: Any, name: str) -> None:
        super().__init__(entries)
        self.name = name


SAME: list[tuple[Any, Any, Any]] = [  # annotation, value, what is taken
    *((int, value, 3) for value in (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), Three.THREE)),
    *((Annotated[int, Whole(1, 9)], value, 3) for value in (np.int16(3), torch.tensor(3, dtype=torch.uint8))),
    *((float, value, 0.5) for value in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))),
    *((Annotated[float, Number()], value, 0.5) for value in (Decimal("0.5"), torch.tensor(0.5, dtype=torch.float64))),
    *((bool, value, True) for value in (1, np.int64(1), np.bool_(True), torch.tensor(True), np.array(True))),
    *((bool, value, False) for value in (0, np.uint8(0), torch.tensor(0))),
    *(
        (list[int], value, [0, 1, 2])
        for value in (
            range(3), (0, 1, 2), np.arange(3), torch.arange(3), deque([0, 1, 2]), UserList([0, 1, 2]), {2, 0, 1},
            dict.fromkeys(range(3)).keys(), {"a": 0, "b": 1, "c": 2}.values(), iter([0, 1, 2]),
            [np.int64(0), torch.tensor(1), 2], OfUser([np.int64(0), 1, 2], "mine"), torch.Size([0, 1, 2]),
        )
    ),
    *((tuple[int, int], value, [4, 5]) for value in (Pair(np.int64(4), 5), torch.Size([4, 5]), np.array([4, 5]))),
    *((torch.Size, value, [4, 5]) for value in ([4, 5], (4, np.int64(5)), np.array([4, 5]), torch.Size([4, 5]))),
    (list[str], np.array(["a", "b"]), ["a", "b"]),
    (list[str], {0: "a", 1: "b"}.values(), ["a", "b"]),
    (Literal["nearest"], Word.NEAREST, ["n", *"earest"]),
    (Literal["nearest"], np.str_("nearest"), ["n", *"earest"]),
    (Mapping[str, int], UserDict(a=1), {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "expected"), SAME, ids=lambda each: type(each).__name__)
def test_the_same_value_of_another_type(annotation: Any, value: Any, expected: Any) -> None:
    check = check_of(annotation)
    assert check is not None
    found = check.take(value)
    found = list(found) if isinstance(expected, list) else found
    assert found == expected


@pytest.mark.parametrize(
    "value", ["ab", b"ab", {"a": 1}, {"a", "b"}, itertools.repeat("a"), 3, np.array("a"), np.array([["a"]])]
)
def test_what_is_no_list_of_texts(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_of(list[str]).take(value)  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["a", Path("a"), PurePosixPath("a"), "a\udcff"])
def test_paths(path: Any) -> None:
    assert check_of(str | Path).take(path) == path  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "a" * 5000, b"a", 3, None])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_of(str | Path).take(path)  # type: ignore[union-attr]


def test_a_default_can_be_written_out() -> None:
    @checked_keywords
    def function(*, function: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013
        return function

    assert function(function=None) is None
    with pytest.raises(OptionError, match="function is 'a'; allowed: a whole number or None"):
        function(function="a")
    assert isinstance(tp.LoadedModel(nn.Identity(), preprocess=None).preprocess, tp.Preprocess)  # type: ignore[arg-type]


def test_public_functions_take_them() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(1, 3, 8, 8)
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    loaded = tp.LoadedModel(model, tp.Preprocess(resize=Pair(8, 8), crop=None), names.values())  # type: ignore[arg-type]
    assert tp.explain(loaded, x, layer="0", target="c").label() == 2
    with tp.record(model, "0", max_bytes=1e9, gradients=np.int64(0)) as tape:  # type: ignore[arg-type]
        model(x)
    assert tape["0"].output.shape == (1, 4, 6, 6)
    assert tp.keep.Stored(device=0).device == 0
    heatmap = tp.explain(model, x, layer="0", target=1)
    assert heatmap.resized(Pair(np.int64(4), 4)).values.shape == (1, 1, 4, 4)
    contrast = tp.explain(model, x, layer="0", target=tp.targets.Contrast(1, torch.tensor([0, 2])))
    expected = tp.explain(model, x, layer="0", target=tp.targets.Contrast(1, [0, 2]))
    assert torch.equal(contrast.values, expected.values)
    assert torch.equal(tp.edits.zero(channels={0, 2})(torch.ones(1, 3)), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("name", ["label", "sign_remark"])
def test_an_index_beyond_the_heatmap(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=1)
    with pytest.raises(tp.errors.InputError, match="k is 1; the heatmap has 1 scores, counted from 0"):
        getattr(heatmap, name)(0, 1)
    assert getattr(heatmap, name)(-1, -1) == getattr(heatmap, name)()
