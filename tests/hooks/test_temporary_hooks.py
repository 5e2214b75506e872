"""Selecting layers, and hooks that come off again."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest
import torch
from torch import nn

from networks import MessyNet, PooledNet, messy, state_of
from torchpeek.errors import InputError, LayerNotFound
from torchpeek.hooks import attached, select
from torchpeek.interrupts import interruptible, uninterrupted


class TestSelect:
    @pytest.mark.parametrize(
        ("selection", "names"),
        [
            ("features.0", ["features.0"]),
            ("features.*", ["features.0", "features.1", "features.2"]),
            ("*", ["features", "features.0", "features.1", "features.2", "act", "head"]),
            ("features.[02]", ["features.0", "features.2"]),
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


class TestAttached:
    def test_changes_the_output_and_comes_off(self) -> None:
        model = PooledNet().eval()
        x = torch.randn(1, 3, 4, 4)
        before = model(x)
        with attached([(model.act, lambda module, args, output: output * 2)]):
            doubled = model(x)
        assert torch.allclose(doubled - model.head.bias, 2 * (before - model.head.bias), atol=1e-6)
        assert torch.equal(model(x), before)

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_comes_off_after_an_error(self, error: BaseException) -> None:
        model = messy()
        before = state_of(model)
        with pytest.raises(type(error)), attached([(model.conv, lambda *_: None), (model.bn, lambda *_: None)]):
            raise error
        assert state_of(model) == before

    def test_a_hook_that_cannot_be_registered_leaves_none(self) -> None:
        model = MessyNet()
        before = state_of(model)
        with pytest.raises(AttributeError), attached([(model.conv, lambda *_: None), (None, None)]):  # type: ignore[list-item]
            pass
        assert state_of(model) == before


class TestUninterrupted:
    def test_ctrl_c_waits(self) -> None:
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("still here")
        assert steps == ["still here"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_interruptible_parts_let_it_through(self) -> None:
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("held back")
            with interruptible():
                steps.append("never here")
        with pytest.raises(KeyboardInterrupt), uninterrupted(), uninterrupted(), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("nor here")
        assert steps == ["held back"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_block_inside_an_interruptible_part_is_protected_too(self) -> None:
        """As when a model's forward calls torchpeek itself."""
        steps = []
        with pytest.raises(KeyboardInterrupt), uninterrupted(), interruptible():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                steps.append("held back")
            steps.append("never here")
        assert steps == ["held back"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_users_own_handler_is_called(self) -> None:
        received = []
        former = signal.signal(signal.SIGINT, lambda *_: received.append(1))
        try:
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                assert received == []
                with interruptible():
                    assert received == [1]
                    os.kill(os.getpid(), signal.SIGINT)
                    assert received == [1, 1]
        finally:
            signal.signal(signal.SIGINT, former)

    def test_other_threads_have_no_signals_to_hold_back(self) -> None:
        done = []

        def work() -> None:
            with uninterrupted():
                done.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [True]
