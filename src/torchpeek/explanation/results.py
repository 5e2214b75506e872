"""What explain and compare return for several inputs and methods: a list and a dict that notebooks show as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torchpeek.heatmap import Heatmap, heading, shown_maps
from torchpeek.html import html_paragraph, notebook_html
from torchpeek.keywords import checked_class
from torchpeek.render.heatmaps import MOST, maps_html


@checked_class
class HeatmapList(list[Heatmap]):
    """The heatmaps of inputs one by one, which may differ in size. A notebook shows the overlays side by side.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmaps = tp.explain(model, [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 6)], layer="1")
        >>> [tuple(heatmap.values.shape[-2:]) for heatmap in heatmaps]
        [(6, 6), (7, 4)]
    """

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as list's own
        found = super().__getitem__(index)
        return HeatmapList(found) if isinstance(index, slice) else found

    @notebook_html
    def _repr_html_(self) -> str:
        return html_paragraph(heading(self[0])) + _of_inputs(self, MOST) if self else "[]"


@checked_class
class HeatmapsByMethod(dict[str, Any]):  # the overloads of compare say which
    """Method name -> Heatmap, or a list of them for a list of inputs. A notebook shows the overlays side by side.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmaps = tp.compare(model, torch.rand(1, 3, 8, 8), methods=["gradcam", "layercam"], layer="1")
        >>> list(heatmaps)
        ['gradcam', 'layercam']
    """

    @notebook_html
    def _repr_html_(self) -> str:
        by_method = {name: [each] if isinstance(each, Heatmap) else each for name, each in self.items()}
        if all(len(each) == 1 and each[0].scores.numel() == 1 for each in by_method.values()):
            maps = [
                replace(shown, title=name, lines=(shown.title, *shown.lines))
                for name, [heatmap] in islice(by_method.items(), MOST)
                for shown in shown_maps(heatmap, 1)
            ]
            return maps_html(maps, len(by_method))
        most = max(2, MOST // max(1, len(by_method)))  # in a row for each method
        return "".join(html_paragraph(heading(each[0])) + _of_inputs(each, most) for each in by_method.values() if each)


def _of_inputs(heatmaps: Sequence[Heatmap], most: int) -> str:
    maps = [shown for heatmap in islice(heatmaps, most) for shown in shown_maps(heatmap, most)]
    return maps_html(maps[:most], sum(heatmap.scores.numel() for heatmap in heatmaps))
