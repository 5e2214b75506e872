"""Layer selections: names, globs, patterns, types, predicates and modules."""

from __future__ import annotations

import re

import pytest
from torch import nn

from networks import PooledNet
from torchpeek.errors import InputError, LayerNotFound
from torchpeek.hooks import select


class TestSelect:
    @pytest.mark.parametrize(
        ("selection", "names"),
        [
            ("features.0", ["features.0"]),
            ("features.*", ["features.0", "features.1", "features.2"]),
            ("*", ["features", "features.0", "features.1", "features.2", "act", "head"]),
            ("features.?", ["features.0", "features.1", "features.2"]),
            (re.compile(r"\d$"), ["features.0", "features.1", "features.2"]),
            (nn.ReLU, ["features.1", "act"]),
            (lambda name, module: name == "act", ["act"]),
            (["head", nn.Conv2d], ["features.0", "features.2", "head"]),
        ],
    )
    def test_finds(self, selection, names) -> None:
        assert list(select(PooledNet(), selection)) == names

    def test_a_module_selects_itself_and_the_root_too(self) -> None:
        model = PooledNet()
        assert list(select(model, model.act)) == ["act"]
        assert list(select(model, model)) == [""]

    def test_exclude(self) -> None:
        assert list(select(PooledNet(), "features.*", exclude=nn.ReLU)) == ["features.0", "features.2"]
        with pytest.raises(LayerNotFound, match="excluded"):
            select(PooledNet(), nn.ReLU, exclude="*")

    def test_a_tied_module_is_excluded_by_any_of_its_names(self) -> None:
        model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        model.add_module("again", model[0])
        assert list(select(model, "*", exclude="again")) == ["1"]
        assert list(select(model, ["again", "1"], exclude=model[0])) == ["1"]

    def test_an_exact_name_wins_over_a_glob(self) -> None:
        model = nn.Module()
        model.add_module("a*", nn.ReLU())
        model.add_module("ab", nn.ReLU())
        assert list(select(model, "a*")) == ["a*"]

    def test_a_tied_module_comes_once_but_goes_by_the_name_asked_for(self) -> None:
        model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        model.add_module("again", model[0])
        assert list(select(model, nn.ReLU)) == ["0"]
        assert list(select(model, "again")) == ["again"]

    def test_nothing_found_names_the_closest(self) -> None:
        with pytest.raises(
            LayerNotFound, match=r"no layer 'featurs\.0' in PooledNet; closest: 'features\.0'.* 6 layers"
        ):
            select(PooledNet(), "featurs.0")
        with pytest.raises(LayerNotFound, match="of type LSTM"):
            select(PooledNet(), nn.LSTM)
        with pytest.raises(LayerNotFound, match="another copy"):
            select(PooledNet(), nn.ReLU())
        with pytest.raises(LayerNotFound, match="nope"):
            select(PooledNet(), ["head", "nope"])  # one good part does not hide a bad one

    def test_bad_selection(self) -> None:
        with pytest.raises(InputError, match="got int"):
            select(PooledNet(), 3)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="empty list"):
            select(PooledNet(), [])
