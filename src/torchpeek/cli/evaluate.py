"""torchpeek evaluate: how far the heatmaps can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from json import loads as parsed_json
from pathlib import Path
from typing import Any

from torchpeek.cli.console import counted, print_json, print_skipped, print_table, print_written, progress
from torchpeek.cli.estimate import passes_per_picture, print_estimate
from torchpeek.cli.evaluation_page import EvaluationPage
from torchpeek.cli.evaluation_run import COLUMNS, EvaluationRun
from torchpeek.cli.explainer import make_explainer
from torchpeek.cli.loading import check_pictures_fit, loaded_model, titled
from torchpeek.cli.method_selection import check_methods, metric_options
from torchpeek.cli.options import (
    MethodOptions,
    MetricOptions,
    ModelOptions,
    OutputOptions,
    PictureOptions,
    TargetOptions,
)
from torchpeek.cli.output import output_folder, saved_on_failure, write_results
from torchpeek.cli.page import PAGE, write_page
from torchpeek.cli.pictures import picture_files
from torchpeek.cli.regions import read_regions
from torchpeek.cli.targets import check_target
from torchpeek.cli.terminal import print_text
from torchpeek.errors import TorchpeekError, notify
from torchpeek.explanation import HeatmapOptions
from torchpeek.metrics import FEWEST, HEADER
from torchpeek.metrics.verdicts import Verdicts
from torchpeek.render import curves
from torchpeek.store import OutputFolder, figure_bytes, parquet_bytes

_DEFAULT_METRICS = ("deletion", "insertion", "average-drop", "average-gain")
_CURVES = ("deletion", "insertion")  # the metrics in curves.png
_FILES = {"curves.png": "curves", "results.parquet": "table"}  # -> the key of results.json that holds its path
_CONTENTS = {
    "results.json": "has everything",
    "results.parquet": "has a row for each picture, metric and method",
    "curves.png": "has the mean curves",
}
_LEGEND = "; in brackets the 95 % interval of the mean; better: by more than chance has it"


def run(
    pictures: Sequence[Path],
    model: ModelOptions,
    device: str,
    target: TargetOptions,
    method: MethodOptions,
    metric: MetricOptions,
    output: OutputOptions,
    *,
    inputs: PictureOptions,
    json: bool,
) -> int:
    """Explain and measure the pictures one by one, and print and write the results. Returns the exit status."""
    check_target(target)
    check_methods(method)
    metrics = metric_options(metric.metrics or _DEFAULT_METRICS, metric.metric_options or ())
    files = picture_files(pictures, inputs, "torchpeek evaluate holiday/ --model torchvision:resnet50")
    regions = read_regions(files, metrics, metric.boxes, metric.masks)
    loaded = loaded_model(model, device, inputs)
    check_pictures_fit(loaded, files, inputs)
    explainer = make_explainer(loaded, files, target, method, HeatmapOptions(seed=model.seed))
    page = None if output.out is None else EvaluationPage(len(files), [*explainer.methods])
    evaluation = EvaluationRun(explainer, metrics, regions, frozenset(metric.metrics or ()), page)
    with output_folder(output) as folder:
        stale = [] if folder is None else _earlier_files(folder)

        def save(folder: OutputFolder) -> bool:
            if evaluation.results:
                results = _results(evaluation, files)
                # First without the summary, which takes time that an interrupted process may not have.
                write_results(folder, "results.json", results)
                _write(folder, evaluation, _add_summary(evaluation, results), results, stale)
            return bool(evaluation.results)

        with saved_on_failure(folder, save):
            passes = passes_per_picture(metrics, len(explainer.methods), _score_count(target))
            print_estimate(explainer, passes)
            with progress("evaluating", len(files), steps=max(1, passes)) as advance:
                for file in files:
                    evaluation.add(file)
                    advance(1)
        evaluation.check()
        results = _results(evaluation, files)
        verdicts = _add_summary(evaluation, results)
        try:
            if folder is not None:
                _write(folder, evaluation, verdicts, results, stale)
        finally:  # also print if the disk is full
            if json:
                print_json(results)
            else:
                _print(evaluation, results, verdicts)
    if folder is not None and not json:
        print_written(folder.path, *(name for name, key in _FILES.items() if key in results), "results.json", page=PAGE)
    return 1 if evaluation.skipped else 0


def _score_count(target: TargetOptions) -> int:
    """How many classes, boxes or texts are explained in each picture."""
    return max(1, len(set(target.boxes or target.texts or target.classes or ())))


def _results(evaluation: EvaluationRun, files: Sequence[Path]) -> dict[str, Any]:
    """results.json without its summary. An interrupted command has not reached some of the pictures."""
    done = {*(each.file for each in evaluation.results), *map(Path, evaluation.skipped.why)}
    return {
        "about": evaluation.about,
        "results": [],
        "pictures": evaluation.pictures(),
        "skipped": evaluation.skipped.why,
        "not_reached": [str(file) for file in files if file not in done],
    }


def _add_summary(evaluation: EvaluationRun, results: dict[str, Any]) -> Verdicts:
    """Add the summary of all pictures to `results`. Returns the verdicts behind it."""
    verdicts = Verdicts.of(evaluation.joined())
    results["results"] = verdicts.summary
    return verdicts


def _earlier_files(folder: OutputFolder) -> list[str]:
    """The figure and the table of an earlier run, by its results.json. Other files of these names are not deleted."""
    try:
        earlier = parsed_json(folder.read("results.json") or b"{}")
        paths = [earlier.get(key) for key in _FILES.values()] if "metrics" in earlier["about"] else []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # not written by this command
        return []
    return [
        name for name, path in zip(_FILES, paths, strict=False) if isinstance(path, str) and Path(path).name == name
    ]


def _write(
    folder: OutputFolder, evaluation: EvaluationRun, verdicts: Verdicts, results: dict[str, Any], stale: list[str]
) -> None:
    """Write all files, and delete those of an earlier run. The paths of figure and table are added to `results`."""
    for name in stale:
        folder.delete(name)
    write_results(folder, "results.json", results)  # first, as the others may fail
    if evaluation.results:
        results |= _written(
            folder, "results.parquet", lambda: parquet_bytes(COLUMNS, evaluation.rows(), evaluation.about)
        )
    if verdicts.panels(_CURVES):
        results |= _written(folder, "curves.png", lambda: figure_bytes(_figure(evaluation, verdicts)))
    write_results(folder, "results.json", results)
    if evaluation.page is not None:
        written = {name: content for name, content in _CONTENTS.items() if _FILES.get(name, "about") in results}
        about, skipped, not_reached = results["about"], results["skipped"], results["not_reached"]
        score = evaluation.score if evaluation.results else ""
        write_page(folder, evaluation.page.report(about, verdicts, score, written, skipped, not_reached))


def _written(folder: OutputFolder, name: str, make: Callable[[], bytes]) -> dict[str, str]:
    """The path for results.json. Nothing, with a notice, if a package that the file needs is not installed."""
    try:
        data = make()
    except TorchpeekError as error:
        notify(f"{name} is left out: {error}")
        return {}
    return {_FILES[name]: str(folder.write(name, data))}


def _figure(evaluation: EvaluationRun, verdicts: Verdicts) -> Any:
    panels = verdicts.panels(_CURVES)
    return curves(
        {metric: methods for metric, (methods, _) in panels.items()},
        baselines={metric: baselines for metric, (_, baselines) in panels.items()},
        score=evaluation.score,
        title=f"{titled(evaluation.explainer.loaded.spec, evaluation.explainer.loaded)}, seed {evaluation.seed}",
        seed=evaluation.seed,
    )


def _print(evaluation: EvaluationRun, results: dict[str, Any], verdicts: Verdicts) -> None:
    if count := len(evaluation.results):
        print_table(HEADER, verdicts.cells(), names=2)
        print_text("", f"{counted(count, 'picture')}, seed {evaluation.seed}{_LEGEND if count > 1 else ''}")
        if count < FEWEST:
            print_text(f"of fewer than {FEWEST} pictures nothing can be said of significance; give more")
        else:
            print_text(*verdicts.sentences())
    print_skipped(results["skipped"], len(results["skipped"]) + len(results["pictures"]))
    if evaluation.results:
        about = results["about"]
        print_text(f"model: {about['model']}, weights: {about['weights']}", f"layer: {about['layer']}")
