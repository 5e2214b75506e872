"""The texts of layouts: parsed and written."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from torchpeek.engine.layout import Layout, LayoutSpec
from torchpeek.engine.layout_text import described, parsed_layout
from torchpeek.errors import InputError

LAYOUTS = [
    Layout("channels-first", (7, 7)),
    Layout("channels-last", (7, 5)),
    Layout("tokens", (14, 14), 1, 2),
    Layout("tokens", (11,), 0, 1),
    *(
        Layout(kind, (7, 5) if "channels-" in kind else (4, 4), prefix, views=4, views_first=views_first)
        for views_first in (False, True)
        for kind, prefix in (
            ("channels-first", 0),
            ("channels-last", 0),
            ("tokens", 1),
            ("channel-tokens", 2),
            ("sequence-first", 1),
        )
    ),
    Layout("channels-first", (49,), views=2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_written_is_parsed(layout: Layout) -> None:
    spec = parsed_layout(layout)
    found = Layout(
        spec.kind, spec.grid or (), spec.prefix or 0, spec.suffix, views=spec.views, views_first=spec.views_first
    )
    assert found == layout


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("N C H W", LayoutSpec("channels-first", axes=2)),
        ("N D H W C", LayoutSpec("channels-last", axes=3)),
        ("( 4  N ) C H W", LayoutSpec("channels-first", axes=2, views=4, views_first=True)),
        ("(N 4) T C", LayoutSpec("tokens", views=4)),
        ("N C T", LayoutSpec("channel-tokens")),
        ("T N C", LayoutSpec("sequence-first")),
        ("N 49 C", LayoutSpec("tokens", (49,), 0)),
        ("(N 4) 1+14x14 C", LayoutSpec("tokens", (14, 14), 1, views=4)),
        ("(N 4) C 7 7", LayoutSpec("channels-first", (7, 7), axes=2, views=4)),
    ],
)
def test_axes(text: str, spec: LayoutSpec) -> None:
    assert parsed_layout(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        *("N H C W", "N C", "C N H W", "N N C H", "(N) C H W", "(N 0) C H W", "N C H H", "N C 7 W", "NCHW", "n c h w"),
        *("(N 4 C H W", "N 4) C H W", "(N a) C H W", "(4 4) C H W", "(N 4) tokens", "N C 7x7 2", "(N 2 2) C H W"),
    ],
)
def test_no_layout(text: str) -> None:
    with pytest.raises(InputError, match=r"'\(N 4\) C H W' where the batch axis holds 4 views"):
        parsed_layout(text)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("view", [None, 1])
def test_from_the_grid_and_back(layout: Layout, view: int | None) -> None:
    """Only the positions of the grid change, of the view that is read; everything else stays."""
    if view is not None and layout.views is None:
        pytest.skip("no views")
    shape = {
        "channels-first": (3, 6, *layout.grid),
        "channels-last": (3, *layout.grid, 6),
        "tokens": (3, layout.others + torch.Size(layout.grid).numel(), 6),
        "channel-tokens": (3, 6, layout.others + torch.Size(layout.grid).numel()),
        "sequence-first": (layout.others + torch.Size(layout.grid).numel(), 3, 6),
    }[layout.kind]
    sizes = list(shape)
    sizes[layout.batch_axis] *= layout.views or 1
    output = torch.randn(sizes)
    layout = layout if view is None else layout.of_view(view)
    assert layout.fits(output, 3)
    taken = layout.taken(output)
    assert torch.equal(layout.returned(output, taken), output)
    values = layout.to_grid(taken)
    assert torch.equal(layout.from_grid(values, taken), taken)
    stacked = torch.stack([output, 2 * output])  # (K, ...)
    assert torch.equal(layout.to_grid(layout.samples_first(stacked, lead=1), lead=2)[:, 1], 2 * values)
    changed = layout.returned(output, layout.from_grid(values + 1, taken))
    assert int((changed != output).sum()) == values.numel()
    assert torch.equal(layout.to_grid(layout.taken(changed)), values + 1)


def test_views_by_hand() -> None:
    """Row n * 4 + view, and row view * 3 + n."""
    output = torch.randn(12, 6, 2, 5)
    for views_first in (False, True):
        layout = tp.Layout("channels-first", (2, 5), views=4, views_first=views_first).of_view(3)
        rows = [3 * 3 + n if views_first else n * 4 + 3 for n in range(3)]
        assert torch.equal(layout.to_grid(layout.taken(output)), output[rows])


@pytest.mark.parametrize(
    ("shape", "count", "text"),
    [
        ((2, 64, 7, 7), 2, "(N, 64, 7, 7)"),
        ((8, 64, 7, 7), 2, "(4N, 64, 7, 7)"),
        ((3, 64, 7, 7), 2, "(3, 64, 7, 7)"),
        ((4, 64, 7, 7), 1, "(4N, 64, 7, 7)"),
        ((49, 2, 6), 2, "(49, N, 6)"),
        ((49, 1, 6), 1, "(49, N, 6)"),
        ((64, 2, 6), 2, "(64, 2, 6)"),  # either way
        ((), 2, "()"),
    ],
)
def test_described(shape: tuple[int, ...], count: int, text: str) -> None:
    assert described(torch.zeros(shape), count) == text
    assert described({"a": (torch.zeros(shape),)}, count) == f"dict of a tuple of {text}"
