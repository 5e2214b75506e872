"""A notebook that is executed: what each object shows there."""

from __future__ import annotations

import nbclient
import nbformat

import torchpeek as tp

SETUP = f"""
import torch, torchpeek as tp
from torch import nn
from PIL import Image
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
loaded = tp.LoadedModel(model, tp.Preprocess(resize=32, crop=(32, 32)), ["<cat>", "dog", "fox", "hen"])
picture = loaded.read(Image.new("RGB", (640, 480), "teal"))
heatmap = tp.explain(loaded, picture, target=0)
with tp.record(model, "*") as tape:
    output = model(picture.tensor)
assert tp.__version__ == {tp.__version__!r}
"""

SHOWN = {
    "heatmap": "&lt;cat&gt;",
    "heatmap.provenance": "gradcam",
    "tp.explain(model, torch.rand(20, 3, 8, 8))": "16 of 20 maps",
    "tp.explain(loaded, [picture, torch.rand(1, 3, 9, 9)])": "<img",
    "tp.compare(loaded, picture, methods=['gradcam', 'eigencam'])": "eigencam",
    "picture": "640 x 480",
    "tape": "(1, 4, 30, 30) float32",
    "tape['0']": "output",
    "tape['0'][0]": "output",
    "tp.kernels(model)": "(4, 3, 3, 3)",
    "tp.activations(model, picture, '*')": "(1, 4, 30, 30)",
    "tp.layers(model, picture)": "suggested for heatmaps",
    "tp.statistics(model, [picture.tensor])": ">1 batch<",
    "tp.gradient_flow(model, picture)": "gradient norm",
    "tp.plan(model, picture)": "bytes",
    "tp.evaluate(model, picture, heatmap, metrics={'deletion': {'steps': 4}})": "<img",
}


def test_every_object_shows_itself() -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in [SETUP, *SHOWN, "heatmap.plot()"]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    setup, *shown, plot = notebook.cells
    assert setup.outputs == []
    for cell, expected in zip(shown, SHOWN.values(), strict=True):
        [output] = cell.outputs  # and so no warning and no traceback
        html = output.data["text/html"]
        assert expected in html, cell.source
        assert not html.startswith("<pre"), cell.source
        assert "<cat>" not in html
        assert output.data["text/plain"], cell.source
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
