"""Layer selections: names, globs, patterns, types, predicates and modules."""

from __future__ import annotations

import re

import pytest
from torch import nn

from networks import PooledNet
from torchpeek.errors import AmbiguousCall, InputError, LayerNotFound
from torchpeek.hooks import layer_at, select, select_calls


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


class TestSelectCalls:
    @pytest.mark.parametrize(
        ("selection", "names"),
        [
            ("act[1]", ["act[1]"]),
            ("act[-1]", ["act[-1]"]),
            (["act[1]", "head", "act[0]"], ["act[1]", "act[0]", "head"]),
            (["act[1]", "act", "act[1]"], ["act[1]", "act"]),
            ("features.*[2]", ["features.0[2]", "features.1[2]", "features.2[2]"]),
            ("features.?[0]", ["features.0[0]", "features.1[0]", "features.2[0]"]),
            (nn.ReLU, ["features.1", "act"]),
        ],
    )
    def test_finds(self, selection, names) -> None:
        model = PooledNet()
        found = select_calls(model, selection)
        assert list(found) == names
        for name, layer in found.items():
            path, _, call = name.rstrip("]").partition("[")
            assert layer.name == name
            assert (layer.path, layer.call) == (path, int(call) if call else None)
            assert layer.module is model.get_submodule(path)
            assert layer_at(model, name).name == name

    def test_an_exact_name_with_brackets_wins(self) -> None:
        model = nn.Module()
        model.add_module("a[0]", nn.ReLU())
        model.add_module("a", nn.Tanh())
        assert select_calls(model, "a[0]")["a[0]"].module is model.get_submodule("a[0]")
        assert select_calls(model, "a[0][1]")["a[0][1]"].path == "a[0]"
        assert select_calls(model, "a[1]")["a[1]"].path == "a"

    def test_a_tied_module_has_each_call_once(self) -> None:
        model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        model.add_module("again", model[0])
        assert list(select_calls(model, ["again[1]", "0[1]", "0[0]"])) == ["0[1]", "0[0]"]

    def test_exclude_leaves_out_all_calls(self) -> None:
        assert list(select_calls(PooledNet(), ["act[0]", "act[1]", "head"], exclude="act")) == ["head"]
        with pytest.raises(InputError, match=r"'act\[0\]' selects a single call.*name the layer alone, 'act'"):
            select_calls(PooledNet(), "*", exclude="act[0]")

    def test_a_call_where_only_layers_count(self) -> None:
        with pytest.raises(InputError, match="name the layer alone, 'head'"):
            select(PooledNet(), ["act", "head[0]"])

    @pytest.mark.parametrize("selection", ["features.[02]", "features.[0-2]", "features.[!1]", "[fa]*", "feat[a]res.0"])
    def test_sets_of_characters_are_for_regular_expressions(self, selection) -> None:
        with pytest.raises(LayerNotFound, match=r"no sets of characters; for these give re\.compile"):
            select(PooledNet(), selection)

    def test_nothing_found_names_the_closest(self) -> None:
        with pytest.raises(LayerNotFound, match=r"no layer 'acts' in PooledNet; closest: 'act'.*\[1\] at the end"):
            select_calls(PooledNet(), "acts[1]")
        with pytest.raises(LayerNotFound, match="no layer"):
            select_calls(PooledNet(), "[0]")
        with pytest.raises(AmbiguousCall, match="selects 3 layers"):
            layer_at(PooledNet(), "features.*[0]")
