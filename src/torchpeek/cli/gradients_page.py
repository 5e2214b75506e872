"""The HTML page of `torchpeek gradients`: the plot of the gradient flow, and its table."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from torchpeek.anatomy import GradientFlow
from torchpeek.render.report import Report, ReportPlot, ReportTable

_READING = {
    "gradient norm": "The length of the gradient of the loss with respect to this parameter, in one training step. "
    "Layers that are far below the others hardly learn: their gradients vanish. Layers far above the others make the "
    "training unstable: their gradients explode.",
    "weight norm": "The length of the parameter itself. The gradient norm divided by it says how much one step changes "
    "the parameter, for a given learning rate.",
    "remark": "Says which parameters have no gradient, are frozen, or have a gradient of zero everywhere.",
    "updates": "The weights were not updated.",
}


def gradients_report(
    flow: GradientFlow | None,
    facts: Mapping[str, str],
    plot: bytes,
    pictures: Sequence[str],
    skipped: Mapping[str, str],
) -> Report:
    """The page.

    Args:
        flow: The gradients. None where no picture could be read.
        facts: What they depend on.
        plot: The plot of the gradient flow, a PNG; empty for none.
        pictures: The paths of the pictures, which made one batch.
        skipped: File -> reason.
    """
    tables = [] if flow is None else [ReportTable("the parameters", flow.header, flow.cells(), items=True)]
    if len(pictures):
        tables.append(ReportTable("the pictures of the batch", ("picture",), [(path,) for path in pictures]))
    image = f"data:image/png;base64,{base64.b64encode(plot).decode()}"
    alt = "the gradient norm of each parameter, layer by layer, of which the table below has the numbers"
    return Report(
        "The gradients of one training step",
        f"{len(pictures)} picture{'s' * (len(pictures) != 1)}, as one batch",
        "parameter",
        facts,
        [],
        "layer or parameter",
        reading=_READING,
        summary=[] if flow is None else [flow.footer],
        plots=[ReportPlot(image, alt, "gradient-flow.png")] if plot else [],
        tables=tables,
        files={"gradients.json": "has the numbers"},
        skipped=skipped,
    )
