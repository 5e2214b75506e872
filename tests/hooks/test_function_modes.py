"""The modes of torch that a block switches on, and that are off after it whatever arrives."""

from __future__ import annotations

import sys
from contextlib import _GeneratorContextManager
from types import FrameType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from torchpeek.hooks import active


class Passing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_that_a_cut_block_of_torch_would_put_back() -> None:
    """Torch takes the mode off for one function; what arrives at the end of that keeps it from putting it back."""

    def cut(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is _GeneratorContextManager.__exit__.__code__:
            sys.settrace(None)
            raise TimeoutError("from outside")

    caught: list[BaseException] = []
    former = sys.gettrace()
    try:
        with active(Passing()), _pop_mode_temporarily():
            sys.settrace(cut)
            raise KeyError("of the user")
    except TimeoutError as error:
        caught.append(error)  # its traceback keeps torch's block alive
    finally:
        sys.settrace(former)
    assert len(caught) == 1
    caught.clear()
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_modes_of_before(error: type[Exception] | None) -> None:
    with Passing():
        before = torch._C._get_function_stack_at(0)
        try:
            with active(Passing()):
                assert torch._C._len_torch_function_stack() == 2
                if error is not None:
                    raise error
        except ValueError:
            assert error is ValueError
        assert torch._C._len_torch_function_stack() == 1
        assert torch._C._get_function_stack_at(0) is before
    assert torch._C._len_torch_function_stack() == 0


def test_a_cut_block_of_torch_that_hides_functions_from_modes() -> None:
    """Nothing calls `__exit__` of a DisableTorchFunction if something arrives before the call."""
    seen: list[Any] = []

    class Noting(Passing):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    try:
        with active(Passing()):
            torch._C.DisableTorchFunction().__enter__()
    finally:
        left = torch._C._get_torch_function_state()
        torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)
    assert left == torch._C._TorchFunctionState.ENABLED
    with active(Noting()):
        torch.add(torch.ones(1), 1)
    assert torch.add in seen


def test_the_callers_own_hidden_functions_stay_hidden() -> None:
    with torch._C.DisableTorchFunction():
        with active(Passing()):
            pass
        assert not torch._C._is_torch_function_enabled()
    assert torch._C._is_torch_function_enabled()
