"""Find the layers that a dense detector reads its boxes from, one for each scale, in the graph of one pass.

1. All that boxes of a scale depend on passes through one layer, the neck's output, whatever comes after it: branches
   for coordinates and classes, and what puts all boxes into one tensor.
2. From the boxes of all scales, follow the graph back to the first layers with a grid. Those of one grid are what the
   boxes of a scale are read from last: predictions of coordinates and classes or, in a model of queries, feature maps.
3. Of the layers with that grid, from the last one back: without it, does a path lead from these to the picture? If none
   does, all that the boxes of the scale depend on passes through it.
4. If coordinates and scores, or the scores of two halves of the classes, depend on different channels of it, it is a
   prediction, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from torchpeek.engine.gradients import Handle
from torchpeek.engine.layout_inference.candidates import CandidateLayer

Grid: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ScaleLayers:
    """The layers that the boxes of a detector are read from.

    Args:
        count: How many scales there are.
        layers: One for each scale, from the finest grid to the coarsest. Two scales may share a layer.
        head: The layers between these and the boxes.
    """

    count: int
    layers: tuple[str, ...]
    head: frozenset[str]


def scale_layers(
    totals: Sequence[Tensor],
    candidates: Sequence[CandidateLayer],
    handles: Mapping[str, Handle],
    grids: Collection[Grid],
) -> ScaleLayers | None:
    """The layers of all scales; None where all boxes are read from one layer.

    Args:
        totals: Sums over all boxes, of coordinates, and of the scores of some classes each.
        candidates: The layers with a grid, in the order in which they returned.
        handles: Layer -> its place in the graph.
        grids: The grids of the scales; empty where these are not known.
    """
    placed = [each for each in candidates if each.layer in handles]
    graph = _Graph({each.layer: handles[each.layer] for each in placed})
    # Boxes in a row may look like tokens. A map with axes of its own is certain.
    maps = {each.layout.grid for each in placed if not each.layout.flat}
    placed = [each for each in placed if not each.layout.flat or each.layout.grid not in maps]
    totals = [total for total in totals if total.grad_fn is not None]
    starts = [total.grad_fn for total in totals if total.grad_fn is not None]
    of_scales = [each for each in placed if not grids or each.layout.grid in grids]
    first = graph.first_layers(starts, [each.layer for each in of_scales])
    read_last: dict[Grid, list[Node]] = {}
    for each in of_scales:
        if each.layer in first:
            read_last.setdefault(each.layout.grid, []).append(graph.nodes[each.layer])
    common = {grid: _common_layers(graph, nodes, grid, placed) for grid, nodes in read_last.items()}
    counts = {grid: _count_predictions(layers, handles, totals) for grid, layers in common.items()}
    # A scale without a box in this output is taken to be built as the others are.
    most = max((count for count in counts.values() if count is not None), default=0)
    found: dict[str, None] = {}
    for grid in sorted(common, key=lambda grid: -torch.Size(grid).numel()):
        count = counts[grid]
        if layers := common[grid][min(most if count is None else count, len(common[grid]) - 1) :]:
            found[layers[0].layer] = None
    return None if len(found) < 2 else ScaleLayers(len(common), tuple(found), graph.layers_before(starts, found))


def _common_layers(
    graph: _Graph, nodes: Sequence[Node], grid: Grid, candidates: Sequence[CandidateLayer]
) -> list[CandidateLayer]:
    """The layers through which every path from these nodes to the picture passes, from the last one back.

    Those of the grid come first. Where a pooling that is no module makes the grid, the others have the layer before it.
    """
    others = [each for each in candidates if each.layout.grid != grid]
    own = [each for each in candidates if each.layout.grid == grid]
    return [each for each in reversed(others + own) if graph.all_paths_through(each.layer, nodes)]


def _count_predictions(
    layers: Iterable[CandidateLayer], handles: Mapping[str, Handle], totals: Sequence[Tensor]
) -> int | None:
    """How many of the layers come before the first one that is no prediction; None where no gradient shows it."""
    number = 0
    for number, each in enumerate(layers):
        is_prediction = _is_prediction(each, handles[each.layer], totals)
        if not is_prediction:
            return number if is_prediction is False else None
    return number


def _is_prediction(candidate: CandidateLayer, handle: Handle, totals: Sequence[Tensor]) -> bool | None:
    """Whether two of the totals depend on no channel of the layer together; None where only one depends on any."""
    layout, matters = candidate.layout, []
    inputs: Any = handle  # torch accepts gradient edges, but its type hints do not
    for total in totals:
        (gradient,) = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        if gradient is not None:
            on_grid = layout.to_grid(layout.samples_first(gradient))  # (N, C, *grid)
            matters.append((on_grid != 0).flatten(2).any(2).any(0))  # (C,)
    matters = [each for each in matters if each.any()]
    if len(matters) < 2:
        return None
    return any(not bool((one & other).any()) for one, other in combinations(matters, 2))


class _Graph:
    """The graph of a pass, as far as the layers with a grid."""

    def __init__(self, handles: Mapping[str, Handle]) -> None:
        self.handles = handles
        self.nodes = {name: _node(handle) for name, handle in handles.items()}
        layers = set(self.nodes.values())
        # The first layers that the picture reaches: no path leads from these to another one.
        self._beginnings = {node for node in layers if layers.isdisjoint(self._walk(_following(node), layers))}

    def first_layers(self, starts: Iterable[Node], layers: Iterable[str]) -> set[str]:
        """Those of the layers that a path from the starts reaches before any other of them."""
        names = {self.nodes[name]: name for name in layers}
        return {names[node] for node in self._walk(starts, names) if node in names}

    def layers_before(self, starts: Iterable[Node], layers: Iterable[str]) -> frozenset[str]:
        """The layers that a path from the starts reaches before it reaches one of `layers`."""
        stops = {self.nodes[name] for name in layers}
        reached = set(self._walk(starts, stops)) - stops
        return frozenset(name for name, node in self.nodes.items() if node in reached)

    def all_paths_through(self, layer: str, starts: Iterable[Node]) -> bool:
        """Whether every path from the starts to the picture passes through the layer."""
        stop, passed = self.nodes[layer], False
        for node in self._walk(starts, {stop}):
            passed = passed or node is stop
            if node in self._beginnings and node is not stop:
                return False
        return passed

    @staticmethod
    def _walk(starts: Iterable[Node], stops: Collection[Node]) -> Iterator[Node]:
        """The nodes on all paths from the starts. Paths end at the stops."""
        reached: set[Node] = set()
        remaining = list(starts)
        while remaining:
            node = remaining.pop()
            if node not in reached:
                reached.add(node)
                yield node
                if node not in stops:
                    remaining.extend(_following(node))


def _node(handle: Handle) -> Node:
    return get_gradient_edge(handle).node if isinstance(handle, Tensor) else handle.node


def _following(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]
