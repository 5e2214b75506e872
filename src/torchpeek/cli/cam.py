"""torchpeek cam: which part of each picture decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchpeek.cam import Smoothing
from torchpeek.cli.cam_run import CamRun
from torchpeek.cli.console import print_json, print_skipped, print_table, progress
from torchpeek.cli.drawing import check_overlay
from torchpeek.cli.explainer import make_explainer
from torchpeek.cli.loading import check_pictures_fit, loaded_model
from torchpeek.cli.method_selection import check_methods
from torchpeek.cli.options import (
    FolderOptions,
    MethodOptions,
    ModelOptions,
    OverlayOptions,
    PictureOptions,
    TargetOptions,
)
from torchpeek.cli.output import saved_on_failure
from torchpeek.cli.pictures import picture_files
from torchpeek.cli.targets import check_target
from torchpeek.cli.terminal import print_text
from torchpeek.explanation import HeatmapOptions
from torchpeek.store import OutputFolder


def run(
    pictures: Sequence[Path],
    model: ModelOptions,
    device: str,
    batch_size: int,
    target: TargetOptions,
    method: MethodOptions,
    overlay: OverlayOptions,
    output: FolderOptions,
    *,
    top: int | None,
    contrast: int | None,
    fuse: str | None,
    smooth: bool,
    inputs: PictureOptions,
    json: bool,
) -> int:
    """Explain the pictures batch by batch, and write the results. Returns the exit status."""
    check_overlay(overlay)
    check_target(target, top, contrast)
    options = HeatmapOptions(fuse, Smoothing() if smooth else None, model.seed)
    check_methods(method)
    files = picture_files(pictures, inputs, "torchpeek cam cat.jpg --model torchvision:resnet50")
    loaded = loaded_model(model, device, inputs)
    check_pictures_fit(loaded, files, inputs)
    explainer = make_explainer(loaded, files, target, method, options, top=top, contrast=contrast)
    folder = OutputFolder.prepared(output.out, overwrite=output.overwrite)
    cam_run = CamRun(explainer, folder, overlay, len(files))
    try:
        with saved_on_failure(folder, cam_run.save), progress("explaining", len(files)) as advance:
            for start in range(0, len(files), batch_size):
                batch = files[start : start + batch_size]
                cam_run.add(batch)
                advance(len(batch))
        results = cam_run.finish()
        folder.check_files()
    except BaseException:
        folder.abandon()
        raise
    folder.close()
    if json:
        print_json(results)
    else:
        _print(results, cam_run.table)
    return 1 if results["skipped"] else 0


def _print(results: dict[str, Any], rows: list[tuple[str, ...]]) -> None:
    if rows:
        print_table(("picture", "predicted", "explained", "method", "layer", "overlay"), rows)
    print_skipped(results["skipped"], len(results["skipped"]) + len(results["pictures"]))
    if rows:
        print_text(f"layer: {results['about']['layer']}")
    print_text(f"report: {results['report']}")
