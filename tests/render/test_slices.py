"""The name of a slice, which stands on its image."""

from __future__ import annotations

from torchpeek.render.slices import slice_name


def test_the_name_says_how_many_slices_there_are_and_from_which_number() -> None:
    assert slice_name(1, 10) == "slice 1 of 10, counted from 0"
    assert slice_name(0, 3, "frame") == "frame 0 of 3, counted from 0"
