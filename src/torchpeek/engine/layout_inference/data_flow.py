"""Which layers carry all of the picture to the output, by the graph of the tensor operations of one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class DataFlow:
    """A graph of operations. Nodes are numbered in the order in which they ran, so parents come before children.

    Args:
        parents: Node -> the nodes whose results it took.
        has_grid: Node -> whether its result has a grid of more than one position.
    """

    parents: list[Sequence[int]] = field(default_factory=list)
    has_grid: list[bool] = field(default_factory=list)

    def add(self, parents: Iterable[int], *, has_grid: bool = True) -> int:
        """Add a node, and return its number."""
        self.parents.append(tuple(parents))
        self.has_grid.append(has_grid)
        return len(self.parents) - 1

    def branches(self, nodes: Mapping[str, int]) -> frozenset[str]:
        """The layers after the last one that carries all; each layer if none does.

        Args:
            nodes: Layer -> its result, in the order in which they returned.
        """
        outputs = self.last_grids()
        branches: set[str] = set()
        for layer in reversed(list(nodes)):
            if self.carries_all(nodes[layer], [node for other, node in nodes.items() if other != layer], outputs):
                break
            branches.add(layer)
        return frozenset(branches)

    def last_grids(self) -> list[int]:
        """The last nodes with a grid: what is pooled, or returned. Pooled vectors are joined without positions."""
        followed = {parent for node, parents in enumerate(self.parents) if self.has_grid[node] for parent in parents}
        return [node for node, has_grid in enumerate(self.has_grid) if has_grid and node not in followed]

    def carries_all(self, node: int, others: Iterable[int], outputs: Iterable[int]) -> bool:
        """Whether the others reach the outputs through this node alone, or come after it.

        Otherwise it is a branch: another one is added to it, or joined, later. Only outputs that depend on the node
        count.

        Args:
            node: The result of one layer.
            others: The results of other layers.
            outputs: The last nodes with a grid.
        """
        after = {node}
        for child in range(node + 1, len(self.parents)):
            if not after.isdisjoint(self.parents[child]):
                after.add(child)
        around, remaining = set[int](), [output for output in outputs if output in after]
        while remaining:
            each = remaining.pop()
            if each != node and each not in around:
                around.add(each)
                remaining += self.parents[each]
        return all(other in after or other not in around for other in others)
