"""Where the samples, the channels and the grid are in what a layer returns."""

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
    """Where the samples, the channels and the grid are in what a layer returns.

    `kind` is "channels-first" (N, C, *grid), "channels-last" (N, *grid, C), "tokens" (N, T, C), "channel-tokens"
    (N, C, T) or "sequence-first" (T, N, C). Of the T tokens `prefix` come before the grid, such as a class token, and
    `suffix` after it. `part` is the path of the tensor in what the layer returns, where that is a container. Written as
    text: "channels-last 7x7", "tokens 1+14x14".
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
        # Of one axis "11+1" would be taken for a grid of 1 after 11 others.
        before = f"{self.prefix}+" if self.prefix or (self.suffix and len(self.grid) == 1) else ""
        return f"{self.kind} {before}{grid}{f'+{self.suffix}' if self.suffix else ''}"

    def for_other_sizes(self) -> LayoutSpec | None:
        """What of it holds for pictures of another size; None for channels first, which is inferred anyway."""
        return None if self.kind == "channels-first" else LayoutSpec(self.kind)

    @property
    def flat(self) -> bool:
        """Whether the grid is laid out as one axis of tokens."""
        return self.kind in ("tokens", "channel-tokens", "sequence-first")

    @property
    def others(self) -> int:
        """How many tokens are not of the grid."""
        return self.prefix + self.suffix

    def taken(self, output: Any) -> Tensor:
        """The tensor in what the layer returned, its samples first: (N, ...)."""
        tensor: Tensor = containers.at(output, self.part)
        return tensor.movedim(self.batch_axis, 0)

    def returned(self, output: Any, tensor: Tensor) -> Any:
        """What the layer returned, with another tensor (N, ...) in that place."""
        placed = tensor.movedim(0, self.batch_axis)
        return containers.with_part(output, self.part, placed) if self.part else placed

    @property
    def batch_axis(self) -> int:
        """Where the samples are in what the layer returns."""
        return 1 if self.kind == "sequence-first" else 0

    def to_grid(self, tensor: Tensor, lead: int = 1) -> Tensor:
        """(N, ...), samples first -> (N, C, *grid), a view; with `lead=2` (N, K, ...) -> (N, K, C, *grid)."""
        if self.kind == "channels-first":
            return tensor
        rows = tensor if self.kind == "channel-tokens" else tensor.movedim(-1, lead)
        if not self.flat:
            return rows
        of_grid = rows.narrow(lead + 1, self.prefix, math.prod(self.grid))
        return of_grid.reshape(*of_grid.shape[: lead + 1], *self.grid)

    def from_grid(self, values: Tensor, others: Tensor) -> Tensor:
        """(N, C, *grid) -> (N, ...), with the tokens that are not of the grid from `others` (N, ...)."""
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
        """Whether what a layer returned for so many samples can be read this way."""
        tensor = dict(containers.leaves(output)).get(self.part)
        if tensor is None or tensor.ndim < 3:
            return False
        if not self.flat:
            grid = tensor.shape[2:] if self.kind == "channels-first" else tensor.shape[1:-1]
            return len(tensor) == count and tuple(grid) == self.grid
        if tensor.ndim != 3:
            return False
        samples, tokens = {"tokens": (0, 1), "channel-tokens": (0, 2), "sequence-first": (1, 0)}[self.kind]
        expected = math.prod(self.grid) + self.others
        return bool(tensor.shape[samples] == count and tensor.shape[tokens] == expected)


_TEXT = re.compile(r"(?P<kind>[a-z-]+)(?: (?:(?P<prefix>\d+)\+)?(?P<grid>\d+(?:x\d+)*)(?:\+(?P<suffix>\d+))?)?")


@dataclass(frozen=True)
class LayoutSpec:
    """How a user says that a layer is to be read; what is left out follows from the shapes."""

    kind: Kind
    grid: Grid | None = None
    prefix: int | None = None
    suffix: int = 0

    @classmethod
    def parsed(cls, given: object) -> LayoutSpec:
        """From a Layout or its text. Raises InputError."""
        match = _TEXT.fullmatch(str(given).strip())
        if match is None or match["kind"] not in get_args(Kind):
            raise InputError(
                f"layout is {given!r}; allowed: {', '.join(get_args(Kind))}, alone or with the grid and the tokens "
                "before it, such as 'tokens 1+14x14'"
            )
        grid = None if match["grid"] is None else tuple(map(int, match["grid"].split("x")))
        prefix = None if grid is None else int(match["prefix"] or 0)
        return cls(match["kind"], grid, prefix, int(match["suffix"] or 0))  # type: ignore[arg-type]  # checked above


def described(output: Any) -> str:
    """The shape of what a layer returned, starting with N, or what else it is."""
    if isinstance(output, Tensor):
        return "(" + ", ".join(["N", *map(str, output.shape[1:])]) + ")" if output.ndim else "()"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of " + ", ".join(described(each) for each in output)
    if isinstance(output, dict):
        return "dict of " + ", ".join(f"{key} {described(each)}" for key, each in output.items())
    return type(output).__name__
