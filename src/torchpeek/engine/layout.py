"""Layout: which axes of a layer's output hold the samples, the channels and the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.argument_types import NonNegativeInt, PositiveInt
from torchpeek.errors import InputError
from torchpeek.hooks import containers
from torchpeek.keywords import checked_class

Kind: TypeAlias = Literal["channels-first", "channels-last", "tokens", "channel-tokens", "sequence-first"]
Grid: TypeAlias = tuple[int, ...]


@checked_class
@dataclass(frozen=True)
class Layout:
    """Which axes of a layer's output hold the samples, the channels and the grid.

    The five kinds:

    - "channels-first": (N, C, *grid), as convolutions return it.
    - "channels-last": (N, *grid, C).
    - "tokens": (N, T, C).
    - "channel-tokens": (N, C, T).
    - "sequence-first": (T, N, C).

    In the last three the grid is flattened into one axis of T tokens, in row-major order. Some tokens, such as a class
    token, may be outside the grid. `str` gives the text that `layout=` accepts: "channels-last 7x7", "tokens 1+14x14".

    The batch axis may hold several views of each sample, such as the frames of a video or the crops of a picture. Such
    a layout is written by its axes: "(N 4) C 7 7" where the four views of a sample follow each other, "(4 N) C 7 7"
    where all samples of a view do. A layout of one of the views reads that view alone; the others are left as they are.

    Args:
        kind: One of the five kinds.
        grid: The sizes of the grid, such as (14, 14).
        prefix: How many tokens come before the grid, such as 1 for a class token.
        suffix: How many tokens come after the grid.
        part: The path of the tensor in the output, where the layer returns a container; else "".
        views: How many views of each sample the batch axis holds. None where it holds the samples themselves.
        views_first: Whether the batch axis is "(views N)", all samples of a view after each other.
        view: The one view that is read, from 0. None reads all, as the first axis of the grid.

    Example:
        >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
        >>> str(layout), layout.fits(torch.zeros(2, 197, 384), 2)
        ('tokens 1+14x14', True)
    """

    kind: Kind
    grid: Grid
    prefix: NonNegativeInt = 0
    suffix: NonNegativeInt = 0
    part: str = ""
    views: PositiveInt | None = None
    views_first: bool = False
    view: NonNegativeInt | None = None

    def __str__(self) -> str:
        grid = "x".join(map(str, self.grid))
        if self.views is None and not self.flat:
            return f"{self.kind} {grid}"
        # With one axis, "11+1" would read as a grid of 1 after 11 other tokens.
        before = f"{self.prefix}+" if self.prefix or (self.suffix and len(self.grid) == 1) else ""
        tokens = f"{before}{grid}{f'+{self.suffix}' if self.suffix else ''}"
        if self.views is None:
            return f"{self.kind} {tokens}"
        batch = f"({self.views} N)" if self.views_first else f"(N {self.views})"
        axes = " ".join(map(str, self.grid))
        return {
            "channels-first": f"{batch} C {axes}",
            "channels-last": f"{batch} {axes} C",
            "tokens": f"{batch} {tokens} C",
            "channel-tokens": f"{batch} C {tokens}",
            "sequence-first": f"{tokens} {batch} C",
        }[self.kind]

    def for_other_sizes(self) -> LayoutSpec | None:
        """What still holds for pictures of another size.

        Returns:
            A specification with the kind and the views alone. None for channels-first without views, which is inferred
            anyway.

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.for_other_sizes().kind
            'tokens'
        """
        if self.views is None:
            return None if self.kind == "channels-first" else LayoutSpec(self.kind)
        axes = None if self.flat else len(self.grid)
        return LayoutSpec(self.kind, axes=axes, views=self.views, views_first=self.views_first, view=self.view)

    def of_view(self, view: int) -> Layout:
        """The layout of one of the views.

        Args:
            view: Its index, from 0.

        Returns:
            The same layout, which reads that view alone.

        Raises:
            InputError: When there are no views, or not so many.

        Example:
            >>> layout, tensor = tp.Layout("channels-first", (7, 7), views=4), torch.zeros(2, 4, 8, 7, 7)
            >>> layout.to_grid(tensor).shape, layout.of_view(3).to_grid(tensor).shape
            (torch.Size([2, 8, 4, 7, 7]), torch.Size([2, 8, 7, 7]))
        """
        if self.views is None or not 0 <= view < self.views:
            raise InputError(f"the layout {str(self)!r} has no view {view}; allowed: 0 to {(self.views or 0) - 1}")
        return replace(self, view=view)

    @property
    def flat(self) -> bool:
        """Whether the grid is flattened into one axis of tokens."""
        return self.kind in ("tokens", "channel-tokens", "sequence-first")

    @property
    def others(self) -> int:
        """How many tokens are outside the grid: `prefix` and `suffix` together."""
        return self.prefix + self.suffix

    def taken(self, output: Any) -> Tensor:
        """The tensor in a layer's output, with its samples first.

        Args:
            output: What the layer returned, a tensor or a container.

        Returns:
            (N, ...), a view; with views (N, views, ...).

        Example:
            >>> layout = tp.Layout("sequence-first", (4, 4))
            >>> layout.taken(torch.zeros(16, 2, 8)).shape
            torch.Size([2, 16, 8])
        """
        tensor: Tensor = containers.at(output, self.part)
        return self.samples_first(tensor)

    def samples_first(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """Move the samples of the layer's tensor to the front, and its views behind them.

        Args:
            tensor: A tensor as the layer returns it, or with `lead` more axes before those of the layer.
            lead: How many axes come before those of the layer.

        Returns:
            (N, *lead, ...), or (N, *lead, views, ...) with views.

        Example:
            >>> layout = tp.Layout("channels-first", (7, 7), views=4)
            >>> layout.samples_first(torch.zeros(8, 16, 7, 7)).shape
            torch.Size([2, 4, 16, 7, 7])
        """
        axis = lead + self.batch_axis
        if self.views is None:
            return tensor.movedim(axis, 0)
        sizes = (self.views, -1) if self.views_first else (-1, self.views)
        unfolded = torch.unflatten(tensor, axis, sizes)
        return unfolded.movedim((axis + 1, axis) if self.views_first else (axis, axis + 1), (0, lead + 1))

    def in_layer_order(self, tensor: Tensor) -> Tensor:
        """The inverse of `samples_first`.

        Args:
            tensor: (N, ...), or (N, views, ...) with views.

        Returns:
            The tensor with its axes as the layer returns them.

        Example:
            >>> layout = tp.Layout("channels-first", (7, 7), views=4)
            >>> layout.in_layer_order(torch.zeros(2, 4, 16, 7, 7)).shape
            torch.Size([8, 16, 7, 7])
        """
        axis = self.batch_axis
        if self.views is None:
            return tensor.movedim(0, axis)
        target = (axis + 1, axis) if self.views_first else (axis, axis + 1)
        return tensor.movedim((0, 1), target).flatten(axis, axis + 1)

    def returned(self, output: Any, tensor: Tensor) -> Any:
        """A layer's output with another tensor in place of its own, the inverse of `taken`.

        Args:
            output: What the layer returned.
            tensor: (N, ...), with its samples first, as `taken` returns it.

        Returns:
            The same kind of output: the tensor with its axes in the layer's order, or a container with that tensor.

        Example:
            >>> layout = tp.Layout("sequence-first", (4, 4))
            >>> layout.returned(torch.zeros(16, 2, 8), torch.ones(2, 16, 8)).shape
            torch.Size([16, 2, 8])
        """
        placed = self.in_layer_order(tensor)
        return containers.with_part(output, self.part, placed) if self.part else placed

    @property
    def batch_axis(self) -> int:
        """The axis of the samples in the layer's output: 1 for sequence-first, else 0."""
        return 1 if self.kind == "sequence-first" else 0

    def to_grid(self, tensor: Tensor, lead: int = 1) -> Tensor:
        """Move the channels behind the leading axes and unflatten the grid. Tokens outside the grid are left out.

        Args:
            tensor: (N, ...) as `taken` returns it, or (N, K, ...).
            lead: How many axes come before those of the layer, and its views: 1 for (N, ...), 2 for (N, K, ...).

        Returns:
            (N, C, *grid), or (N, K, C, *grid), a view. With several views, and none of them chosen, (N, C, views,
            *grid).

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.to_grid(torch.zeros(2, 197, 384)).shape
            torch.Size([2, 384, 14, 14])
        """
        if self.views is not None:
            if self.view is not None:
                return self._to_grid(tensor.select(lead, self.view), lead)
            return self._to_grid(tensor, lead + 1).movedim(lead, lead + 1)
        return self._to_grid(tensor, lead)

    def _to_grid(self, tensor: Tensor, lead: int) -> Tensor:
        if self.kind == "channels-first":
            return tensor
        rows = tensor if self.kind == "channel-tokens" else tensor.movedim(-1, lead)
        if not self.flat:
            return rows
        of_grid = rows.narrow(lead + 1, self.prefix, math.prod(self.grid))
        return of_grid.reshape(*of_grid.shape[: lead + 1], *self.grid)

    def from_grid(self, values: Tensor, others: Tensor) -> Tensor:
        """The inverse of `to_grid`.

        Args:
            values: (N, C, *grid), as `to_grid` returns it.
            others: (N, ...) in the layer's own layout. The tokens outside the grid, and the views that are not read,
                are taken from it.

        Returns:
            (N, ...), as `taken` returns it.

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.from_grid(torch.ones(2, 384, 14, 14), torch.zeros(2, 197, 384)).shape
            torch.Size([2, 197, 384])
        """
        if self.views is None:
            return self._from_grid(values, others)
        if self.view is None:
            each = zip(values.unbind(2), others.unbind(1), strict=True)
            return torch.stack([self._from_grid(of_view, other) for of_view, other in each], 1)
        views = list(others.unbind(1))
        views[self.view] = self._from_grid(values, views[self.view])
        return torch.stack(views, 1)

    def _from_grid(self, values: Tensor, others: Tensor) -> Tensor:
        match self.kind:
            case "channels-first":
                return values
            case "channels-last":
                return values.movedim(1, -1)
        axis = 2 if self.kind == "channel-tokens" else 1
        tokens = values.flatten(2) if axis == 2 else values.flatten(2).movedim(1, -1)
        if not self.others:
            return tokens
        count = math.prod(self.grid)
        before = others.narrow(axis, 0, self.prefix)
        after = others.narrow(axis, self.prefix + count, self.suffix)
        return torch.cat([before, tokens, after], dim=axis)

    def fits(self, output: Any, count: int) -> bool:
        """Whether a layer's output can have this layout, by its sizes.

        Args:
            output: What the layer returned.
            count: The number of samples.

        Returns:
            True where the tensor exists, has so many samples, and has the sizes of this layout.

        Example:
            >>> layout = tp.Layout("channels-last", (7, 7))
            >>> layout.fits(torch.zeros(2, 7, 7, 768), 2), layout.fits(torch.zeros(2, 768, 7, 7), 2)
            (True, False)
        """
        tensor = dict(containers.leaves(output)).get(self.part)
        if tensor is None or tensor.ndim < 3 or tensor.shape[self.batch_axis] != count * (self.views or 1):
            return False
        if not self.flat:
            grid = tensor.shape[2:] if self.kind == "channels-first" else tensor.shape[1:-1]
            return tuple(grid) == self.grid
        token_axis = {"tokens": 1, "channel-tokens": 2, "sequence-first": 0}[self.kind]
        return tensor.ndim == 3 and int(tensor.shape[token_axis]) == math.prod(self.grid) + self.others


@dataclass(frozen=True)
class LayoutSpec:
    """What a user says of a layer's layout. What is left open follows from the shapes.

    Args:
        kind: One of the five kinds of `Layout`.
        grid: The sizes of the grid; None to infer them.
        prefix: How many tokens come before the grid; None, without a grid, to infer it.
        suffix: How many tokens come after the grid.
        axes: How many axes the grid has, where its sizes are left open; None for as many as the picture has.
        views: How many views of each sample the batch axis holds; None for none.
        views_first: Whether all samples of a view come after each other.
        view: The one view that is read; None for all.
    """

    kind: Kind
    grid: Grid | None = None
    prefix: int | None = None
    suffix: int = 0
    axes: int | None = None
    views: PositiveInt | None = None
    views_first: bool = False
    view: NonNegativeInt | None = None
