"""Layout: which axes of a layer's output hold the samples, the channels and the grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from torchpeek.errors import InputError
from torchpeek.hooks import containers

Kind: TypeAlias = Literal["channels-first", "channels-last", "tokens", "channel-tokens", "sequence-first"]
Grid: TypeAlias = tuple[int, ...]


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

    Args:
        kind: One of the five kinds.
        grid: The sizes of the grid, such as (14, 14).
        prefix: How many tokens come before the grid, such as 1 for a class token.
        suffix: How many tokens come after the grid.
        part: The path of the tensor in the output, where the layer returns a container; else "".

    Example:
        >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
        >>> str(layout), layout.fits(torch.zeros(2, 197, 384), 2)
        ('tokens 1+14x14', True)
    """

    kind: Kind
    grid: Grid
    prefix: int = 0
    suffix: int = 0
    part: str = ""

    def __str__(self) -> str:
        grid = "x".join(map(str, self.grid))
        if not self.flat:
            return f"{self.kind} {grid}"
        # With one axis, "11+1" would read as a grid of 1 after 11 other tokens.
        before = f"{self.prefix}+" if self.prefix or (self.suffix and len(self.grid) == 1) else ""
        return f"{self.kind} {before}{grid}{f'+{self.suffix}' if self.suffix else ''}"

    def for_other_sizes(self) -> LayoutSpec | None:
        """What still holds for pictures of another size.

        Returns:
            A specification with the kind alone. None for channels-first, which is inferred anyway.

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.for_other_sizes()
            LayoutSpec(kind='tokens', grid=None, prefix=None, suffix=0)
        """
        return None if self.kind == "channels-first" else LayoutSpec(self.kind)

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
            (N, ...), a view.

        Example:
            >>> layout = tp.Layout("sequence-first", (4, 4))
            >>> layout.taken(torch.zeros(16, 2, 8)).shape
            torch.Size([2, 16, 8])
        """
        tensor: Tensor = containers.at(output, self.part)
        return tensor.movedim(self.batch_axis, 0)

    def returned(self, output: Any, tensor: Tensor) -> Any:
        """A layer's output with another tensor in place of its own, the inverse of `taken`.

        Args:
            output: What the layer returned.
            tensor: (N, ...), with its samples first.

        Returns:
            The same kind of output: the tensor with its axes in the layer's order, or a container with that tensor.

        Example:
            >>> layout = tp.Layout("sequence-first", (4, 4))
            >>> layout.returned(torch.zeros(16, 2, 8), torch.ones(2, 16, 8)).shape
            torch.Size([16, 2, 8])
        """
        placed = tensor.movedim(0, self.batch_axis)
        return containers.with_part(output, self.part, placed) if self.part else placed

    @property
    def batch_axis(self) -> int:
        """The axis of the samples in the layer's output: 1 for sequence-first, else 0."""
        return 1 if self.kind == "sequence-first" else 0

    def to_grid(self, tensor: Tensor, lead: int = 1) -> Tensor:
        """Move the channels behind the leading axes and unflatten the grid. Tokens outside the grid are left out.

        Args:
            tensor: (N, ...) as `taken` returns it, or (N, K, ...).
            lead: How many axes come before those of the layer: 1 for (N, ...), 2 for (N, K, ...).

        Returns:
            (N, C, *grid), or (N, K, C, *grid), a view.

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.to_grid(torch.zeros(2, 197, 384)).shape
            torch.Size([2, 384, 14, 14])
        """
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
            values: (N, C, *grid).
            others: (N, ...) in the layer's own layout. The tokens outside the grid are taken from it.

        Returns:
            (N, ...), as `taken` returns it.

        Example:
            >>> layout = tp.Layout("tokens", (14, 14), prefix=1)
            >>> layout.from_grid(torch.ones(2, 384, 14, 14), torch.zeros(2, 197, 384)).shape
            torch.Size([2, 197, 384])
        """
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
        if tensor is None or tensor.ndim < 3:
            return False
        if not self.flat:
            grid = tensor.shape[2:] if self.kind == "channels-first" else tensor.shape[1:-1]
            return len(tensor) == count and tuple(grid) == self.grid
        if tensor.ndim != 3:
            return False
        batch_axis, token_axis = {"tokens": (0, 1), "channel-tokens": (0, 2), "sequence-first": (1, 0)}[self.kind]
        expected = math.prod(self.grid) + self.others
        return bool(tensor.shape[batch_axis] == count and tensor.shape[token_axis] == expected)


_TEXT = re.compile(r"(?P<kind>[a-z-]+)(?: (?:(?P<prefix>\d+)\+)?(?P<grid>\d+(?:x\d+)*)(?:\+(?P<suffix>\d+))?)?")


@dataclass(frozen=True)
class LayoutSpec:
    """What a user says of a layer's layout. What is left open follows from the shapes.

    Args:
        kind: One of the five kinds of `Layout`.
        grid: The sizes of the grid; None to infer them.
        prefix: How many tokens come before the grid; None, without a grid, to infer it.
        suffix: How many tokens come after the grid.
    """

    kind: Kind
    grid: Grid | None = None
    prefix: int | None = None
    suffix: int = 0

    @classmethod
    def parsed(cls, layout: object) -> LayoutSpec:
        """Parse a Layout or its text.

        Args:
            layout: A Layout, or text such as "channels-last" or "tokens 1+14x14".

        Raises:
            InputError: When it is neither.
        """
        match = _TEXT.fullmatch(str(layout).strip())
        if match is None or match["kind"] not in get_args(Kind):
            raise InputError(
                f"layout is {layout!r}; allowed: {', '.join(get_args(Kind))}, alone or with the grid and the number of "
                "tokens before it, such as 'tokens 1+14x14'"
            )
        grid = None if match["grid"] is None else tuple(map(int, match["grid"].split("x")))
        prefix = None if grid is None else int(match["prefix"] or 0)
        return cls(match["kind"], grid, prefix, int(match["suffix"] or 0))  # type: ignore[arg-type]  # checked above


def described(output: Any) -> str:
    """The shape of a layer's output as text, with N for the samples; of a container, its type and the shapes in it."""
    if isinstance(output, Tensor):
        return "(" + ", ".join(["N", *map(str, output.shape[1:])]) + ")" if output.ndim else "()"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of " + ", ".join(described(each) for each in output)
    if isinstance(output, dict):
        return "dict of " + ", ".join(f"{key} {described(each)}" for key, each in output.items())
    return type(output).__name__
