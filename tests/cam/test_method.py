"""Registering a method, and what is refused."""

from __future__ import annotations

import pytest

from torchpeek.cam import METHODS


def test_registering_a_method() -> None:
    """CONTRIBUTING's example, and its refusals."""
    from torchpeek.cam import cam_method

    with pytest.raises(ValueError, match="registered already"):

        @cam_method("gradcam", needs="gradients")
        def again(trace):
            """Once more."""

    with pytest.raises(ValueError, match="docstring"):

        @cam_method("undocumented", needs="gradients")
        def undocumented(trace):
            return trace.gradients.sum(2)

    assert "undocumented" not in METHODS
